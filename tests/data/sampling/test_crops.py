"""Crops follow from the seed and the sample alone; their sizes suit the scans."""

import dataclasses
import itertools
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import selfvox
from selfvox.data.preparation.store import open_store
from selfvox.data.sampling.crop_size import (
    choose_crop,
    choose_whole_size,
    distinct_resolutions,
    distinct_spacings,
    fits_most_scans,
    in_plane_cases,
)
from selfvox.data.sampling.crops import Crops
from selfvox.data.sampling.sample_order import case_index, sample_generator
from selfvox.errors import DataError, UsageError
from selfvox.ops.mirrored_crop import mirrored_crop

OASIS = Path(__file__).parents[3].parent / "shared" / "data" / "oasis_subcortical"


@pytest.fixture(scope="module")
def store(shapes_store):
    return open_store(shapes_store)


def crops(store, size=(16, 16, 16), seed=0, **options):
    return Crops(store, store.cases, size, seed, **options)


def are_equal(item, expected):
    return item.keys() == expected.keys() and all(
        torch.equal(item[key], expected[key]) for key in item
    )


def test_a_sample_depends_on_the_seed_and_its_number_alone(store):
    data = crops(store, labels=True)
    repeated = crops(store, labels=True)
    expected = [data[sample] for sample in range(40)]
    assert all(are_equal(repeated[sample], expected[sample]) for sample in reversed(range(40)))
    assert not are_equal(crops(store, seed=1, labels=True)[0], expected[0])


def of_people(store, *subjects):
    """The first cases of a store, as scans of these people."""
    pairs = zip(store.cases, subjects, strict=False)
    return [dataclasses.replace(case, subject=subject) for case, subject in pairs]


def whole_scan(store, case):
    return store.crop(case, (0,) * len(case.shape), case.shape)


def test_a_pair_is_the_same_place_of_another_scan_of_the_person(store):
    cases = of_people(store, "ann", "bob", "ann", "ann")
    data = Crops(store, cases, (16, 16, 16), 3, pairs=True)
    alone = Crops(store, cases, (16, 16, 16), 3)
    partners = Counter()
    for sample in range(40):
        item = data[sample]
        # pairs do not change the samples themselves
        assert torch.equal(item["image"], alone[sample]["image"])
        case = cases[case_index(3, sample, 4)]
        start = data._draw_start(case, sample_generator(3, sample))
        found = [
            other.id
            for other in cases
            if other.subject == case.subject
            # the scans have one shape, so the same place is the same start
            and np.array_equal(mirrored_crop(whole_scan(store, other), start, (16,) * 3),
                               item["partner"])
        ]  # fmt: skip
        assert len(found) == 1
        assert (found[0] == case.id) == (case.subject == "bob")
        partners[case.id, found[0]] += 1
    # both others of ann are partners of each of her scans
    assert len(partners) == 1 + 3 * 2
    assert torch.equal(data[7]["partner"], data[7]["partner"])


def test_the_same_place_of_a_scan_of_another_size_is_as_far_along_it(store):
    first, second = of_people(store, "ann", "ann")
    # the second scan alone has room for more places along the first axis
    second = dataclasses.replace(second, shape=(24, 32, 32))
    data = Crops(store, [first, second], (16, 16, 16), 0, pairs=True)
    read = []
    data.store = SimpleNamespace(crop=lambda case, start, size: read.append((case.id, start)))
    for start, expected in (
        ((0, 0, 0), [0, 0, 0]),
        ((16, 8, 4), [8, 8, 4]),
        ((8, 16, 16), [4, 16, 16]),
    ):
        data._partner_crop(0, 0, start, None)
        assert read[-1] == (second.id, expected)
    # a scan that is smaller than the crop has one place, its middle
    flat = dataclasses.replace(second, shape=(10, 32, 32))
    data.cases = [first, flat]
    data._partner_crop(0, 0, (16, 8, 4), None)
    assert read[-1] == (flat.id, [-3, 8, 4])


@pytest.mark.skipif(not OASIS.is_dir(), reason="the real scans are not here")
def test_two_visits_of_a_person_show_the_same_place(tmp_path):
    table = ["image,subject"]
    for person in ("sub-1003", "sub-1004", "sub-1005"):
        for visit in (1, 2):
            name = f"{person}_ses-{visit}.nii.gz"
            shutil.copy(OASIS / "images" / name, tmp_path)
            table.append(f"{name},{person}")
    (tmp_path / "table.csv").write_text("\n".join(table) + "\n")
    visits = open_store(selfvox.prepare(tmp_path / "table.csv", out=tmp_path / "s", workers=1))
    data = Crops(visits, visits.cases, (32, 32, 32), 0, pairs=True)
    alike = {True: [], False: []}
    for sample in range(24):
        item = data[sample]
        alike[True].append(np.corrcoef(item["image"].ravel(), item["partner"].ravel())[0, 1])
        other = data[sample + 1]["partner"]
        alike[False].append(np.corrcoef(item["image"].ravel(), other.ravel())[0, 1])
    same, different = (np.nanmedian(alike[is_same]) for is_same in (True, False))
    assert same > 0.5 > 0.2 > different


def test_pairs_of_slices_are_of_one_axis_less(store):
    cases = of_people(store, "ann", "ann")
    data = Crops(store, cases, (16, 16), 0, axis=1, pairs=True)
    assert data[0]["partner"].shape == data[0]["image"].shape == (1, 16, 16)


def test_workers_read_the_same_samples_in_the_same_order(store):
    data = crops(store, labels=True, foreground=0.5)
    loader = DataLoader(
        data, batch_sampler=[[3, 4], [90, 2]], num_workers=1, multiprocessing_context="fork"
    )
    for batch, samples in zip(loader, ([3, 4], [90, 2]), strict=True):
        for row, sample in enumerate(samples):
            assert are_equal({key: value[row] for key, value in batch.items()}, data[sample])


def test_every_epoch_shows_each_case_once_in_its_own_order(store):
    data = crops(store)
    count = len(store.cases)
    epochs = [[int(data[epoch * count + i]["subject"]) for i in range(count)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_case_has_another_crop_in_every_epoch(store):
    data = Crops(store, store.cases[:1], (16, 16, 16), 0)
    assert len({data[epoch]["image"].numpy().tobytes() for epoch in range(20)}) == 20


def test_the_positions_of_a_case_are_spread_evenly_over_all_that_fit(store):
    case = store.cases[0]
    positions = []

    def crop(case, start, size):
        positions.append(start)
        return np.zeros((1, *size), np.float32)

    data = Crops(SimpleNamespace(crop=crop), [case], (16, 16, 16), 0)
    for sample in range(2000):
        data[sample]
    starts = np.array(positions)
    for axis, edge in enumerate(case.shape):
        room = edge - 16
        assert (starts[:, axis].min(), starts[:, axis].max()) == (0, room)
        share = np.bincount(starts[:, axis], minlength=room + 1) / len(starts)
        assert abs(share - 1 / (room + 1)).max() < 5 * (room + 1) ** -0.5 * len(starts) ** -0.5


def test_image_and_label_are_cropped_at_the_same_position(store):
    data = crops(store, labels=True)
    for sample in range(8):
        item = data[sample]
        dark, bright = (item["image"][0][item["label"] == value] for value in (1, 2))
        # the phantom's class 1 is darker than anything in the body, class 2 brighter
        assert len(dark) == 0 or len(bright) == 0 or dark.mean() < bright.mean() - 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_requested_share_of_crops_is_centred_on_a_labelled_voxel(store, share):
    size = (3, 3, 3)
    data = Crops(store, store.cases, size, 0, labels=True, foreground=share)
    centres = Counter(int(data[sample]["label"][1, 1, 1]) for sample in range(600))
    plain = np.mean(
        [(store.label_crop(case, (0,) * 3, case.shape) > 0).mean() for case in store.cases]
    )
    labelled = (centres[1] + centres[2]) / 600
    assert labelled == pytest.approx(share + (1 - share) * plain, abs=0.06)


def test_the_class_of_a_foreground_crop_is_drawn_before_its_voxel(store):
    """A class of 10 voxels is seen as often as one of 1000."""
    case = store.cases[0]
    rng = np.random.default_rng(0)
    positions = np.concatenate(
        [
            np.concatenate([np.full((count, 1), value), rng.integers(8, 24, (count, 3))], axis=1)
            for value, count in ((1, 10), (2, 1000))
        ]
    )
    small = {tuple(position) for position in positions[:10, 1:].tolist()}
    large = {tuple(position) for position in positions[10:, 1:].tolist()}
    starts = []

    def crop(case, start, size):
        starts.append(tuple(start))
        return np.zeros((1, *size), np.float32)

    stub = SimpleNamespace(crop=crop, foreground=lambda case: positions)
    data = Crops(stub, [case], (1, 1, 1), 0, foreground=1.0)
    for sample in range(600):
        data[sample]
    assert set(starts) <= small | large
    share = sum(start in small for start in starts) / len(starts)
    in_both = len(small & large) / len(large)
    assert share == pytest.approx(0.5 + 0.5 * in_both, abs=0.06)


def test_a_scan_smaller_than_the_crop_is_in_its_middle_and_mirrored(store):
    case = store.cases[0]
    size = tuple(edge + extra for edge, extra in zip(case.shape, (3, 10, 0), strict=True))
    item = Crops(store, [case], size, 0, labels=True)[0]
    around = []
    for edge, extent in zip(size, case.shape, strict=True):
        low = (edge - extent + 1) // 2
        around.append((low, edge - extent - low))
    for key, read, lead in (("image", store.crop, [(0, 0)]), ("label", store.label_crop, [])):
        expected = np.pad(read(case, (0,) * 3, case.shape), lead + around, mode="symmetric")
        np.testing.assert_array_equal(item[key].numpy(), expected)


class Scan:
    def __init__(self, shape, spacing_mm=(1.0, 1.0, 1.0)):
        self.shape = shape
        self.spacing_mm = spacing_mm[: len(shape)]


def test_an_interpolated_axis_is_as_coarse_as_it_was_scanned(tmp_path):
    (tmp_path / "scans").mkdir()
    rng = np.random.default_rng(0)
    for name, axes in {
        "axial": (1.0, 1.0, 5.0),
        "coronal": (1.0, 4.0, 1.0),
        "fine": (0.5, 0.5, 0.5),
    }.items():
        voxels = rng.normal(size=[int(40 / mm) for mm in axes]).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([*axes, 1])), tmp_path / "scans" / f"{name}.nii")
    cases = selfvox.prepare(
        tmp_path / "scans", out=tmp_path / "store", spacing=(2.0, 2.0, 2.0), workers=1
    )
    cases = open_store(cases).cases
    assert distinct_spacings(cases) == [(2.0, 2.0, 2.0)]
    # a coarser scan keeps its resolution, a finer one is reduced
    assert np.round(distinct_resolutions(cases), 1).tolist() == [[2, 2, 5], [2, 4, 2], [2, 2, 2]]
    assert np.round(distinct_resolutions(in_plane_cases(cases, 2)), 1).tolist() == [[2, 2], [2, 4]]


def test_two_scans_of_one_person_have_one_number(store):
    first, second, third = store.cases[:3]
    cases = [first, dataclasses.replace(second, subject=first.subject), third]
    data = Crops(store, cases, (8, 8, 8), 0)
    shown = [int(data[sample]["subject"]) for sample in range(3)]
    assert sorted(shown) == [0, 0, 1]


def test_crops_contain_the_median_scan_or_are_inside_nine_of_ten():
    scans = [Scan((20 + n, 40, 200)) for n in range(11)]
    assert choose_crop(None, scans) == (32, 40, 200)
    assert choose_crop(None, scans, inside=True) == (16, 40, 200)
    assert choose_crop(None, [Scan((5, 5, 5))], inside=True) == (8, 8, 8)
    assert choose_crop(None, [Scan((500, 100))]) == (504, 104)
    assert choose_crop(None, [Scan((500, 700))]) == (256, 256)
    for edge, divisor in itertools.product((9, 20, 100), (2, 16, 24)):
        crop = choose_crop(None, [Scan((edge,) * 3)], (divisor,) * 3)
        assert all(length % divisor == 0 and length > 0 for length in crop)
        assert np.prod(crop) <= 64**3


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "crop"),
    [
        ((512, 512, 100), (0.75, 0.75, 5.0), (128, 128, 16)),  # 96 x 96 x 80 mm
        ((512, 512, 8), (0.75, 0.75, 5.0), (176, 184, 8)),  # the cases reach no farther
        ((300, 300, 300), (1.0, 1.0, 1.0), (64, 64, 64)),
        ((300, 300, 300), (1.0, 2.0, 1.0), (80, 40, 80)),
        ((40, 50, 60), (1.0, 1.0, 5.0), (40, 56, 64)),  # few voxels: whole
    ],
)
def test_a_default_crop_is_equally_long_in_mm(shape, spacing_mm, crop):
    scans = [Scan(shape, spacing_mm)] * 3
    assert choose_crop(None, scans) == crop
    assert np.prod(crop) <= 64**3


def test_whole_scans_keep_their_size_unless_they_are_large():
    scans = [Scan((90, 109, 91))] * 3
    assert choose_whole_size(scans, (8, 8, 8)) == (88, 112, 88)
    assert choose_whole_size([Scan((5, 5, 5))], (8, 8, 8)) == (8, 8, 8)
    # as many voxels as four crops, and every axis is reduced by the same factor
    large = choose_whole_size([Scan((512, 512, 256))], (8, 8, 8))
    assert large == (128, 128, 64)
    assert np.prod(large) == 4 * 64**3


def test_nine_of_ten_scans_contain_the_crop_along_all_axes_at_once():
    # each axis is short in a tenth of the scans, but not in the same ones
    shapes = [[40, 40, 40] for _ in range(30)]
    for number in range(9):
        shapes[number][number % 3] = 33
        shapes[number + 9][number % 3] = 39
    scans = [Scan(tuple(shape)) for shape in shapes]
    assert not fits_most_scans((40, 40, 40), scans)
    assert choose_crop(None, scans, inside=True) == (32, 32, 32)
    uneven = [Scan((64, 64, 40)) if n % 5 else Scan((64, 20, 40)) for n in range(50)]
    assert choose_crop(None, uneven, inside=True) == (64, 16, 40)
    three = [Scan((16, 40, 40)), Scan((40, 40, 40)), Scan((40, 24, 40))]
    assert choose_crop(None, three, inside=True) == (16, 24, 40)
    thin = [Scan((64, 64, 6))] * 4
    # no crop is inside, so none is better
    assert choose_crop(None, thin, inside=True) == (64, 64, 8)
    assert not fits_most_scans((8, 8, 8), thin)
    far = [Scan((64, 64, 64))] * 4 + [Scan((64, 20, 64))]
    assert choose_crop(None, far, inside=True) == (64, 16, 64)


def shrink(crop, scans, unit):
    """A second implementation: one unit off the axis that lets most scans contain the crop."""

    def count(edges):
        return sum(
            all(have >= edge for have, edge in zip(scan.shape, edges, strict=True))
            for scan in scans
        )

    crop = list(crop)
    while count(crop) < 0.9 * len(scans):
        ranks = []
        for axis in range(len(crop)):
            if crop[axis] > unit:
                near = [edge - unit * (index == axis) for index, edge in enumerate(crop)]
                far = [unit if index == axis else edge for index, edge in enumerate(crop)]
                ranks.append((-count(near), -count(far), axis))
        crop[min(ranks)[-1]] -= unit
    return tuple(crop)


def test_a_crop_inside_most_scans_is_shortened_along_the_axis_that_gains_most():
    rng = np.random.default_rng(0)
    shortened = 0
    for _ in range(200):
        scans = [Scan(tuple(shape)) for shape in rng.integers(8, 60, (12, 3)).tolist()]
        edges = np.quantile([scan.shape for scan in scans], 0.1, axis=0)
        start = tuple(int(edge) for edge in np.clip(edges // 8 * 8, 8, 64))
        expected = shrink(start, scans, 8)
        assert choose_crop(None, scans, inside=True) == expected
        shortened += expected != start
    assert shortened > 20


def test_edges_that_do_not_fit_are_refused_with_the_nearest_that_do():
    scans = [Scan((40, 40, 40))]
    assert choose_crop((24, 32, 8), scans) == (24, 32, 8)
    with pytest.raises(UsageError, match="30 is no multiple of 8; the nearest are 24 and 32"):
        choose_crop((24, 30, 8), scans)
    with pytest.raises(UsageError, match="names 2 edges and the scans have 3 axes"):
        choose_crop((24, 32), scans)


def test_a_crop_that_is_far_larger_than_every_scan_is_refused():
    scans = [Scan((40, 48, 40)), Scan((40, 40, 40))]
    assert choose_crop((120, 144, 120), scans) == (120, 144, 120)
    with pytest.raises(
        UsageError, match=r"1000 x 1000 x 1000 voxels are more than 27 times .* 40 x 48 x 40"
    ):
        choose_crop((1000,), scans)
    assert choose_crop((24, 24), [Scan((9, 9))]) == (24, 24)
    with pytest.raises(UsageError, match="more than 9 times"):
        choose_crop((32, 32), [Scan((9, 9))])


def test_every_spacing_of_the_cases_is_listed_once():
    scans = [
        Scan((9, 9, 9), spacing) for spacing in ((1.0, 1.0, 1.5), (2.0, 2.0, 4.0), (1.0, 1.0, 1.5))
    ]
    assert distinct_spacings(scans) == [(1.0, 1.0, 1.5), (2.0, 2.0, 4.0)]


def test_a_partner_that_cannot_be_read_costs_the_pair_and_not_the_sample(store, monkeypatch):
    cases = of_people(store, "ann", "ann", "ann", "bob")
    damaged = cases[2].id
    crop = type(store).crop

    def read(self, case, start, size):
        if case.id == damaged:
            raise DataError("damaged")
        return crop(self, case, start, size)

    monkeypatch.setattr(type(store), "crop", read)
    data = Crops(store, cases, (16, 16, 16), 3, pairs=True)
    reported = {item["left_out"].partition(":")[0] for item in map(data.__getitem__, range(40))}
    assert reported == {"", damaged}
