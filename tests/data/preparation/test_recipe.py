"""Scans reach the prepared grid and labels return, for every orientation, in 2D and 3D."""

from __future__ import annotations

import dataclasses
import itertools
import json

import nibabel as nib
import numpy as np
import pytest

import selfvox
from selfvox.data.formats.image import Image
from selfvox.data.preparation.fit_recipe import (
    choose_intensity_kinds,
    fit_ct_window,
    fit_intensities,
    sample_ct_voxels,
)
from selfvox.data.preparation.geometry import Geometry
from selfvox.data.preparation.normalise import Intensity, foreground
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.resample import resample_image
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError, UsageError
from selfvox.runs.typed_json import parse

MRI = Intensity(kind="mri")
ALL_ORIENTATIONS = [
    "".join(codes)
    for pairs in itertools.permutations(("LR", "PA", "IS"))
    for codes in itertools.product(*pairs)
]


def make_recipe(**settings: object) -> Recipe:
    defaults = {"spatial_dims": 3, "channel_names": ("T1",), "intensity": (MRI,)}
    return Recipe(**(defaults | settings))  # type: ignore[arg-type]


def phantom(
    shape: tuple[int, ...] = (24, 20, 16),
    spacing: tuple[float, ...] = (1.0, 1.5, 2.0),
    seed: int = 0,
) -> Image:
    """A bright, lopsided body inside air, RAS+."""
    rng = np.random.default_rng(seed)
    data = np.zeros(shape, dtype=np.float32)
    inner = tuple(slice(3, extent - 4) for extent in shape)
    data[inner] = rng.uniform(100, 200, data[inner].shape)
    data[tuple(slice(4, 8) for _ in shape)] += 300
    affine = np.eye(4)
    if len(shape) == 3:
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = (-10, 20, -30)
    return Image(data[None], affine, "phantom.nii.gz")


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.meshgrid(*(np.arange(extent) for extent in shape), indexing="ij")
    return (sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2).astype(
        np.uint8
    )


def turned(image: Image, codes: str) -> Image:
    """The same anatomy stored with other axes, by nibabel: a second implementation."""
    ras = nib.orientations.axcodes2ornt("RAS")
    transform = nib.orientations.ornt_transform(ras, nib.orientations.axcodes2ornt(codes))
    nifti = nib.Nifti1Image(image.data[0], image.affine).as_reoriented(transform)
    assert "".join(nib.aff2axcodes(nifti.affine)) == codes
    return Image(np.asarray(nifti.dataobj)[None], nifti.affine, f"{codes}.nii.gz")


@pytest.mark.parametrize("codes", ALL_ORIENTATIONS)
def test_every_orientation_gives_the_same_array_and_undo_is_the_identity(codes: str) -> None:
    scan = turned(phantom(), codes)
    expected = make_recipe().apply(phantom())
    prepared = make_recipe().apply(scan)
    np.testing.assert_array_equal(prepared.data, expected.data)
    np.testing.assert_allclose(prepared.affine, expected.affine, atol=1e-9)
    assert expected.spacing_mm == pytest.approx(prepared.spacing_mm) == (1.0, 1.5, 2.0)

    inside = foreground(scan.data[0])
    label = np.where(inside, np.random.default_rng(1).integers(0, 4, scan.shape), 0).astype(
        np.uint8
    )
    label_on_grid = make_recipe().apply_label(label, prepared.geometry)
    assert label_on_grid.shape == prepared.data.shape[1:]
    np.testing.assert_array_equal(make_recipe().undo(label_on_grid, prepared.geometry), label)

    one_hot = (np.arange(4)[:, None, None, None] == label_on_grid).astype(np.float32)
    back = make_recipe().undo_probabilities(one_hot, prepared.geometry)
    np.testing.assert_array_equal(back.argmax(0), label)
    np.testing.assert_array_equal(back.sum(0), np.ones(label.shape))


def test_forty_eight_orientations_are_tested() -> None:
    assert len(set(ALL_ORIENTATIONS)) == 48


def test_a_rotated_oblique_scan_is_turned_by_axes_alone() -> None:
    """A head tilted by 20 degrees, stored turned by 90: the same voxels in another order."""
    scan = phantom()
    angle = np.deg2rad(20)
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    quarter = np.array([[0, -1, 0, scan.shape[1] - 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    # stored voxel (i, j) is the straight scan's voxel (rows - 1 - j, i)
    stored = np.rot90(scan.data[0], 1)
    affine = tilt @ scan.affine @ np.linalg.inv(quarter)
    np.testing.assert_array_equal(
        make_recipe().apply(Image(stored[None], affine, "tilted.nii.gz")).data,
        make_recipe().apply(scan).data,
    )


def test_the_prepared_affine_points_at_the_same_anatomy() -> None:
    scan = turned(phantom(), "PIR")
    for recipe in (
        make_recipe(),
        make_recipe(size=(17, 18, 9)),
        make_recipe(spacing_mm=(1.3, 1.3, 1.3)),
    ):
        prepared = recipe.apply(scan)
        corner = nib.affines.apply_affine(
            prepared.affine, [(0, 0, 0), np.array(prepared.data.shape[1:]) - 1]
        )
        np.testing.assert_allclose(
            np.linalg.norm(prepared.affine[:3, :3], axis=0), prepared.spacing_mm
        )
        # the centre of the box keeps its place in mm
        first = nib.affines.apply_affine(
            phantom().affine, (prepared.geometry.start, np.array(prepared.geometry.stop) - 1)
        )
        np.testing.assert_allclose(corner.mean(0), first.mean(0), atol=1e-9)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR"])
@pytest.mark.parametrize("settings", [{"size": (30, 20, 40)}, {"spacing_mm": (0.8, 1.1, 1.7)}])
def test_a_smooth_label_survives_the_round_trip(codes: str, settings: dict[str, object]) -> None:
    scan = phantom((40, 36, 32))
    scan = turned(scan, codes)
    label = ball(scan.shape, tuple(0.5 * extent - 1.3 for extent in scan.shape), 9)
    prepared = make_recipe(**settings).apply(scan)
    back = make_recipe(**settings).undo(
        make_recipe(**settings).apply_label(label, prepared.geometry), prepared.geometry
    )
    assert back.shape == label.shape
    assert back.dtype == label.dtype
    assert 2 * (back & label).sum() / (back.sum() + label.sum()) > 0.95
    moved = np.argwhere(back).mean(0) - np.argwhere(label).mean(0)
    assert np.abs(moved).max() < 0.1


def test_shrinking_does_not_move_a_label_on_average() -> None:
    """One coarse disc is off by a part of a voxel; averaged over all positions, by nothing."""
    recipe = make_recipe(spatial_dims=2, size=(20, 19))
    geometry = recipe.apply(phantom((42, 36))).geometry
    rng = np.random.default_rng(0)
    moved = []
    for _ in range(500):
        middle = [
            (a + b - 1) / 2 + rng.uniform(-3.5, 3.5)
            for a, b in zip(geometry.start, geometry.stop, strict=True)
        ]
        label = ball((42, 36), tuple(middle), 8)
        back = recipe.undo(recipe.apply_label(label, geometry), geometry)
        moved.append(np.argwhere(back).mean(0) - np.argwhere(label).mean(0))
    assert np.abs(np.mean(moved, 0)).max() < 0.05


def test_undoing_probabilities_keeps_position_and_sum() -> None:
    scan = phantom((40, 36, 32))
    recipe = make_recipe(size=(24, 24, 24))
    prepared = recipe.apply(scan)
    label = ball(scan.shape, (19, 17, 15), 9)
    label_on_grid = recipe.apply_label(label, prepared.geometry).astype(np.float32)
    back = recipe.undo_probabilities(
        np.stack([1 - label_on_grid, label_on_grid]), prepared.geometry
    )
    np.testing.assert_allclose(back.sum(0), 1, atol=1e-6)
    weighted = (np.argwhere(label >= 0) * back[1].reshape(-1, 1)).sum(0) / back[1].sum()
    assert np.abs(weighted - np.argwhere(label).mean(0)).max() < 0.1
    assert back[0, 0, 0, 0] == 1  # outside the box


def test_a_resampled_label_gets_no_new_value() -> None:
    scan = phantom()
    label = np.random.default_rng(0).choice([0, 3, 200], scan.shape).astype(np.uint8)
    recipe = make_recipe(spacing_mm=(0.7, 2.0, 1.1))
    prepared = recipe.apply(scan)
    label_on_grid = recipe.apply_label(label, prepared.geometry)
    assert set(np.unique(label_on_grid)) <= {0, 3, 200}
    assert set(np.unique(recipe.undo(label_on_grid, prepared.geometry))) <= {0, 3, 200}


def test_size_and_spacing_are_met_exactly() -> None:
    sized = make_recipe(size=(11, 13, 17)).apply(phantom())
    assert sized.data.shape == (1, 11, 13, 17)
    spaced = make_recipe(spacing_mm=(2.0, 1.0, 1.0)).apply(phantom())
    assert spaced.spacing_mm == pytest.approx((2.0, 1.0, 1.0), abs=1e-12)


def test_a_linear_ramp_is_resampled_to_itself() -> None:
    """Closed form: away from its ends, a ramp has the value of its position in mm."""
    grid = np.indices((20, 22, 24)).astype(np.float64)
    ramp = 2 * grid[0] - 3 * grid[1] + 0.5 * grid[2] + 100
    image = Image(ramp[None], np.eye(4), "ramp.nii.gz")
    photo = Intensity(kind="photo", mean=0.0, std=1 / 255)  # leaves values as they are
    for settings in ({"size": (27, 20, 30)}, {"spacing_mm": (0.9, 0.8, 0.7)}):
        prepared = make_recipe(intensity=(photo,), **settings).apply(image)
        places = nib.affines.apply_affine(
            prepared.affine, np.moveaxis(np.indices(prepared.data.shape[1:]), 0, -1)
        )
        expected = places @ (2, -3, 0.5) + 100
        np.testing.assert_allclose(
            prepared.data[0][5:-5, 5:-5, 5:-5], expected[5:-5, 5:-5, 5:-5], atol=0.05
        )


def test_shrinking_smooths_first() -> None:
    """Checkerboard noise at the finest scale must fade, not come back as coarse noise."""
    scan = phantom((48, 48, 48), (1, 1, 1))
    scan.data[0, 4:-4, 4:-4, 4:-4] = 150 + 50 * (-1.0) ** np.indices((40, 40, 40)).sum(0)
    photo = Intensity(kind="photo", mean=0.0, std=1 / 255)
    prepared = make_recipe(intensity=(photo,), spacing_mm=(2.5, 2.5, 2.5)).apply(scan)
    assert prepared.data[0, 5:-5, 5:-5, 5:-5].std() < 5


def test_the_smoothing_before_shrinking_has_the_width_of_cardoso_2015() -> None:
    """Closed form: the variance of a Gaussian profile grows by 0.4247^2 (step^2 - 1)."""
    positions = np.arange(80)
    profile = np.exp(-0.5 * ((positions - 39.5) / 5) ** 2)
    values = np.ones((80, 8, 8)) * profile[:, None, None]
    geometry = Geometry(
        shape=(80, 8, 8),
        orientation=((0, 1), (1, 1), (2, 1)),
        start=(0, 0, 0),
        stop=(80, 8, 8),
        step=(4.0, 1.0, 1.0),
        prepared_shape=(20, 8, 8),
    )
    shrunk = resample_image(values.astype(np.float32), geometry)[:, 4, 4].astype(np.float64)
    centres = geometry.offset[0] + 4 * np.arange(20)
    variance = (shrunk * (centres - 39.5) ** 2).sum() / shrunk.sum()
    assert variance == pytest.approx(5**2 + 0.4247**2 * (4**2 - 1), rel=0.01)


def test_a_spacing_that_differs_by_rounding_resamples_nothing() -> None:
    expected = make_recipe().apply(phantom())
    rounded = make_recipe(spacing_mm=(1.0001, 1.5, 2.0)).apply(phantom())
    assert rounded.geometry.step == (1.0, 1.0, 1.0)
    np.testing.assert_array_equal(rounded.data, expected.data)
    drifting = make_recipe(spacing_mm=(1.002, 1.5, 2.0)).apply(phantom())
    assert drifting.geometry.step[0] == pytest.approx(1.002)


def test_pictures_keep_their_axes_and_labels_return() -> None:
    picture = phantom((40, 30))
    rgb = Image(np.concatenate([picture.data % 256] * 3), np.eye(4), "eye.png")
    recipe = make_recipe(
        spatial_dims=2,
        channel_names=("R", "G", "B"),
        intensity=fit_intensities(["photo"] * 3, [[]] * 3),
        size=(45, 35),
    )
    prepared = recipe.apply(rgb)
    assert prepared.data.shape == (3, 45, 35)
    label = ball((40, 30), (18.2, 14.6), 8)
    back = recipe.undo(recipe.apply_label(label, prepared.geometry), prepared.geometry)
    assert 2 * (back & label).sum() / (back.sum() + label.sum()) > 0.95
    assert np.abs(np.argwhere(back).mean(0) - np.argwhere(label).mean(0)).max() < 0.1


@pytest.mark.parametrize("shape", [(60, 60), (40, 64), (64, 40), (33, 80)])
@pytest.mark.parametrize("size", [(32, 32), (24, 36)])
def test_a_picture_of_any_shape_is_not_stretched(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    """A disc stays round, whatever is cropped; a transposed picture gives the transposed array."""
    light = np.where(ball(shape, ((shape[0] - 1) / 2, (shape[1] - 1) / 2), 22) > 0, 200.0, 0.0)
    light[:, :3] = light[:, -3:] = 0
    recipe = make_recipe(
        spatial_dims=2, intensity=(Intensity(kind="photo", mean=0.0, std=1 / 255),), size=size
    )
    prepared = recipe.apply(Image(light[None].astype(np.float32), np.eye(4), "eye.png"))
    assert prepared.data.shape == (1, *size)
    step = prepared.spacing_mm[0]
    assert prepared.spacing_mm == (step, step)
    lit = np.argwhere(prepared.data[0] > 100)
    widths = (lit.max(0) - lit.min(0) + 1) * step
    visible = [min(extent, 45) for extent in (shape[0], shape[1] - 6)]
    # beyond the picture, its outermost pixels are repeated
    for width, expected, extent in zip(widths, visible, shape, strict=True):
        assert abs(width - expected) <= 2 * step or (expected == extent and width > expected)
    transposed_recipe = dataclasses.replace(recipe, size=size[::-1])
    transposed_image = Image(light.T[None].astype(np.float32), np.eye(4), "eye.png")
    transposed = transposed_recipe.apply(transposed_image)
    np.testing.assert_allclose(transposed.data[0].T, prepared.data[0], atol=1e-2)


def test_z_score_is_over_each_channels_own_foreground() -> None:
    first = phantom(seed=1)
    second = phantom(seed=2)
    second.data[:, :10] = 0
    image = Image(np.concatenate([first.data, 1000 - second.data * 2]), first.affine, "two.nii.gz")
    prepared = make_recipe(channel_names=("T1", "T2"), intensity=(MRI, MRI)).apply(image)
    box = tuple(
        slice(a, b) for a, b in zip(prepared.geometry.start, prepared.geometry.stop, strict=True)
    )
    for channel, raw in zip(prepared.data, image.data, strict=True):
        low, high = np.percentile(raw, [0.5, 99.5])
        inside = channel[(raw > low + 0.05 * (high - low))[box]]
        assert inside.mean() == pytest.approx(0, abs=1e-5)
        assert inside.std() == pytest.approx(1, abs=1e-5)


def test_photographs_are_scaled_as_imagenet() -> None:
    data = np.random.default_rng(0).integers(0, 256, (3, 9, 8)).astype(np.uint8)
    recipe = make_recipe(
        spatial_dims=2,
        channel_names=("R", "G", "B"),
        intensity=fit_intensities(["photo"] * 3, [[]] * 3),
    )
    prepared = recipe.apply(Image(data, np.eye(4), "eye.png"))
    expected = (data / 255 - np.reshape((0.485, 0.456, 0.406), (3, 1, 1))) / np.reshape(
        (0.229, 0.224, 0.225), (3, 1, 1)
    )
    box = tuple(
        slice(a, b) for a, b in zip(prepared.geometry.start, prepared.geometry.stop, strict=True)
    )
    np.testing.assert_allclose(prepared.data, expected[(slice(None), *box)], atol=1e-5)


def test_the_ct_window_is_the_pooled_percentiles() -> None:
    rng = np.random.default_rng(0)
    scans = [
        np.where(rng.random((10, 9, 8)) < 0.3, -1000, rng.normal(50 * k, 100, (10, 9, 8)))
        for k in range(4)
    ]
    window = fit_ct_window([sample_ct_voxels(scan, len(scans)) for scan in scans])
    pooled = []
    for scan in scans:
        low, high = np.percentile(scan, [0.5, 99.5])
        pooled += [value for value in scan.ravel() if value > low + 0.05 * (high - low)]
    lower, upper = np.percentile(pooled, [0.5, 99.5])
    clipped = np.clip(pooled, lower, upper)
    assert (window.lower, window.upper) == pytest.approx((lower, upper), rel=1e-5)
    assert (window.mean, window.std) == pytest.approx((clipped.mean(), clipped.std()), rel=1e-5)
    assert window == fit_ct_window([sample_ct_voxels(scan, len(scans)) for scan in reversed(scans)])

    image = Image(scans[0][None], np.eye(4), "ct.nii.gz")
    prepared = make_recipe(channel_names=("CT",), intensity=(window,)).apply(image)
    box = tuple(
        slice(a, b) for a, b in zip(prepared.geometry.start, prepared.geometry.stop, strict=True)
    )
    expected = (np.clip(scans[0], lower, upper) - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(prepared.data[0], expected[box], atol=1e-4)


def test_the_padding_in_the_corners_of_a_ct_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    scan = np.full((12, 20, 20), -1000.0)
    scan[3:9, 5:15, 6:14] = rng.normal(40, 60, (6, 10, 8))
    beyond = np.add.outer((np.arange(20) - 9.5) ** 2, (np.arange(20) - 9.5) ** 2) > 10**2
    results = []
    for filling in (-1000, -1024, -2000, -3024):
        image = Image(
            np.where(beyond, filling, scan)[None].astype(np.float32), np.eye(4), "ct.nii.gz"
        )
        window = fit_ct_window([sample_ct_voxels(image.data[0], 1)])
        results.append(
            (window, make_recipe(channel_names=("CT",), intensity=(window,)).apply(image))
        )
    for window, prepared in results:
        assert (prepared.geometry.start, prepared.geometry.stop) == ((2, 4, 5), (10, 16, 15))
        assert window == results[0][0]
        np.testing.assert_array_equal(prepared.data, results[0][1].data)


def test_a_large_scan_is_sampled_evenly() -> None:
    values = np.random.default_rng(0).normal(0, 100, (80, 80, 80))
    sample = sample_ct_voxels(values, scans=1)
    assert len(sample) == 100_000
    inside = values[foreground(values)]
    np.testing.assert_allclose(
        np.percentile(sample, [1, 50, 99]), np.percentile(inside, [1, 50, 99]), atol=3
    )


def test_the_box_contains_the_foreground_of_all_channels_and_a_margin() -> None:
    data = np.zeros((2, 20, 20, 20), np.float32)
    data[0, 5:12, 5:12, 5:12] = 10
    data[1, 8:15, 8:18, 2:10] = 7
    prepared = make_recipe(channel_names=("a", "b"), intensity=(MRI, MRI)).apply(
        Image(data, np.eye(4), "two.nii.gz")
    )
    assert prepared.geometry.start == (4, 4, 1)
    assert prepared.geometry.stop == (16, 19, 13)


def test_names_and_voxels_choose_the_intensity() -> None:
    air = np.full((1, 10, 10, 10), -1000.0)
    air[0, 3:8, 3:8, 3:8] = 40
    ct = Image(air, np.eye(4), "a.nii.gz")
    assert [kind for kind, _ in choose_intensity_kinds(("T1", "CT", "PET"), [ct])] == [
        "mri",
        "ct",
        "mri",
    ]
    assert choose_intensity_kinds(("image",), [ct])[0] == (
        "ct",
        choose_intensity_kinds(("image",), [ct])[0][1],
    )
    assert choose_intensity_kinds(("image",), [phantom()])[0][0] == "mri"
    picture = Image(np.full((1, 5, 5), 200, np.uint8), np.eye(4), "a.png")
    assert choose_intensity_kinds(("image",), [picture])[0][0] == "photo"
    assert choose_intensity_kinds(("R",), [picture])[0] == ("photo", "R: photo, by its name")
    assert choose_intensity_kinds(("T1", "CT"), [ct], "ct,mri") == [
        ("ct", "T1: ct, as requested"),
        ("mri", "CT: mri, as requested"),
    ]
    with pytest.raises(UsageError, match="3 given for 2 channels"):
        choose_intensity_kinds(("T1", "CT"), [ct], "ct,mri,mri")


@pytest.mark.parametrize("name", ["image", "gray"])
@pytest.mark.parametrize("highest", [1.0, 4095.0])
def test_a_picture_that_does_not_reach_from_0_to_255_is_no_photograph(
    name: str, highest: float
) -> None:
    """Divided by 255, values up to 1 would keep only 18 steps of float16."""
    picture = Image(np.linspace(0, highest, 400).reshape(1, 20, 20), np.eye(4), "a.tif")
    assert choose_intensity_kinds((name,), [picture])[0][0] == "mri"


def test_a_photograph_with_a_dark_channel_is_one_in_all_its_channels() -> None:
    eye = np.random.default_rng(0).integers(0, 256, (3, 9, 8)).astype(np.uint8)
    eye[2] = eye[2] > 128
    assert [
        kind
        for kind, _ in choose_intensity_kinds(
            ("red", "green", "blue"), [Image(eye, np.eye(4), "eye.png")]
        )
    ] == ["photo"] * 3


def test_a_recipe_and_a_geometry_are_read_back_from_json() -> None:
    recipe = make_recipe(
        size=(8, 8, 8),
        intensity=(Intensity(kind="ct", lower=-99.5, upper=300.25, mean=0.1, std=3.0),),
    )
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    geometry = recipe.apply(phantom()).geometry
    written = json.loads(json.dumps(geometry.to_dict()))
    assert parse(Geometry, Geometry.by_field(written), "geometry") == geometry


def test_a_scan_that_cannot_be_prepared_is_refused_in_one_line() -> None:
    with pytest.raises(DataError, match=r"a.nii.gz: channel T1 is constant \(3\)"):
        make_recipe().apply(Image(np.full((1, 5, 5, 5), 3.0), np.eye(4), "a.nii.gz"))
    with pytest.raises(DataError, match="single slice"):
        make_recipe().apply(
            Image(np.random.default_rng(0).random((1, 5, 5, 1)), np.eye(4), "a.nii.gz")
        )
    with pytest.raises(DataError, match="2 spatial axes where the data set has 3"):
        make_recipe().apply(Image(np.zeros((1, 5, 5)), np.eye(4), "a.png"))
    far = phantom().data * np.float32(1e-6)
    far[0, 9, 9, 9] = -3e38
    with pytest.raises(
        DataError, match=r"a.nii.gz: has values too large to be normalised; repair the scan"
    ):
        make_recipe(spacing_mm=(2.0, 2.0, 2.0)).apply(Image(far, np.eye(4), "a.nii.gz"))
    with pytest.raises(DataError, match="2 channels where the data set has 1"):
        make_recipe().apply(Image(np.zeros((2, 5, 5, 5)), np.eye(4), "a.nii.gz"))


def spaced_scan(path, spacing_mm, edge_mm=48):
    """A ball of noise in a field of view of `edge_mm`."""
    shape = [round(edge_mm / mm) for mm in spacing_mm]
    axes = [
        (np.arange(n) + 0.5) * mm - edge_mm / 2 for n, mm in zip(shape, spacing_mm, strict=True)
    ]
    radius = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij")))
    data = np.random.default_rng(0).normal(100, 10, shape) * (radius < edge_mm / 2.5)
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([*spacing_mm, 1])), path)


def test_scans_far_from_the_median_spacing_are_resampled_to_it(tmp_path, capsys):
    scans = tmp_path / "scans"
    scans.mkdir()
    spacings = {
        "a": (1.0, 1.0, 1.0),
        "b": (1.0, 1.0, 1.0),
        "c": (1.15, 0.9, 1.0),
        "d": (3.0, 3.0, 3.0),
        "e": (1.0, 1.0, 2.0),
    }
    for name, spacing in spacings.items():
        spaced_scan(scans / f"{name}.nii.gz", spacing)
    selfvox.prepare(scans, out=tmp_path / "store", workers=1)
    text = "spacing: 2 of 5 scans differ by more than a fifth from the median, 1 x 1 x 1 mm"
    assert text in capsys.readouterr().err
    prepared = {case.id: case for case in open_store(tmp_path / "store").cases}
    assert prepared["d"].spacing_mm == pytest.approx((1, 1, 1))
    assert prepared["e"].spacing_mm == pytest.approx((1, 1, 1))
    # near ones are not interpolated, nor is an axis that is near
    assert prepared["c"].spacing_mm == pytest.approx((1.15, 0.9, 1.0))
    assert prepared["c"].geometry.step == (1.0, 1.0, 1.0)
    assert prepared["e"].geometry.step == pytest.approx((1.0, 1.0, 0.5))


def test_a_requested_spacing_is_exact(tmp_path, capsys):
    scans = tmp_path / "scans"
    scans.mkdir()
    for name, spacing in {"a": (1.0,) * 3, "b": (1.1,) * 3}.items():
        spaced_scan(scans / f"{name}.nii.gz", spacing)
    selfvox.prepare(scans, out=tmp_path / "store", spacing=(1.0, 1.0, 1.0), workers=1)
    assert "spacing:" not in capsys.readouterr().err
    for case in open_store(tmp_path / "store").cases:
        assert case.spacing_mm == pytest.approx((1, 1, 1))


def test_median_spacings_that_differ_little_are_one_recipe():
    first = make_recipe(spacing_mm=(1.0, 1.0, 1.0), keep_within=0.2)
    assert first.is_equivalent(make_recipe(spacing_mm=(1.1, 1.0, 1.2), keep_within=0.2))
    assert not first.is_equivalent(make_recipe(spacing_mm=(1.1, 1.0, 1.3), keep_within=0.2))
    assert not first.is_equivalent(make_recipe(spacing_mm=(1.1, 1.0, 1.0)))
    assert first.is_equivalent(first)


def test_a_requested_spacing_is_not_that_of_a_store_with_a_tolerance(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for name, spacing in {"a": (1.0,) * 3, "b": (1.0,) * 3, "c": (1.1,) * 3}.items():
        spaced_scan(scans / f"{name}.nii.gz", spacing)
    store = selfvox.prepare(scans, out=tmp_path / "store", workers=1)
    assert open_store(store).recipe.spacing_mm == (1.0, 1.0, 1.0)
    with pytest.raises(UsageError, match=r"^spacing: .* was prepared differently"):
        selfvox.preview(store, out=tmp_path / "a.png", spacing=(1.0, 1.0, 1.0))
