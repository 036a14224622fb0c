"""Pseudo-labels against votes that are counted by hand, and what happens to untrusted ones."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import selfvox
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError, UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.runs.device import make_fabric
from selfvox.training import pseudo_label_picture, pseudo_labels
from selfvox.training.pseudo_labels import PASSES, Teacher, label_scan, make_pseudo_labels
from selfvox.training.segmentation import Segmentation, unused_label
from selfvox.uncertainty.mc_dropout import Dropout
from selfvox.uncertainty.passes import SubNetworks, run_passes

CROP = (32, 32, 32)
DROPOUT = Dropout(encoder=0.4, decoder=0.0, kind="element", seed=0)
IGNORED = 3


@pytest.fixture(scope="module")
def store(shapes_store):
    return open_store(shapes_store)


@pytest.fixture
def teacher_of(store, tmp_path):
    """A network with random weights, which its passes disagree on."""

    def make(train_on="classes"):
        settings = selfvox.finetune.settings(
            labelled=store.path,
            out=tmp_path,
            encoder="none",
            regions="both=1,2;second=2",
            train_on=train_on,
        )
        task = Segmentation(store, settings, IGNORED)
        spec = plan_encoder({"channels": (4, 8)}, CROP, (1, 1, 1))
        torch.manual_seed(3)
        network = task.network(build_encoder(spec, 3, 1), spec)
        return Teacher(
            network=network.eval(),
            sha256="of these weights",
            task=task,
            crop=CROP,
            dropout=DROPOUT,
            fabric=make_fabric("cpu", 1, "fp32"),
        )

    return make


@pytest.fixture
def scans(store):
    return dataclasses.replace(store, cases=store.cases[:3])


def read(store, case):
    return store.crop(case, (0,) * 3, case.shape)


def passes_of(teacher, image):
    """Probabilities (output, *space) of each pass."""
    outputs = [np.zeros((teacher.network.classes, *image.shape[1:])) for _ in range(PASSES)]

    def receive(number, place, probabilities):
        outputs[number][(slice(None), *place)] = probabilities

    regions = teacher.task.region_labels is not None
    with torch.inference_mode(), SubNetworks(teacher.network, DROPOUT, regions) as networks:
        run_passes(networks, torch.from_numpy(image), CROP, 0.5, range(PASSES), receive)
    return outputs


def dice_with_vote(passes, vote):
    """Dice of all passes together with their vote."""
    common = sum((single & vote).sum() for single in passes)
    return 2 * common / (sum(single.sum() for single in passes) + PASSES * vote.sum())


def test_agreement_and_trust_are_those_of_votes_counted_by_hand(teacher_of, store):
    teacher = teacher_of()
    image = read(store, store.cases[0])
    label, trust, agreement = label_scan(teacher, image)
    decided = np.stack([probabilities.argmax(0) for probabilities in passes_of(teacher, image)])
    counts = np.stack([(decided == number).sum(0) for number in range(3)])
    assert np.array_equal(label, counts.argmax(0))
    assert np.array_equal(agreement, counts.max(0) / PASSES)
    assert (agreement < 1).mean() > 0.2  # the passes differ
    classes = [number for number in (1, 2) if (decided == number).any()]
    dice = [dice_with_vote(decided == number, label == number) for number in classes]
    assert trust == pytest.approx(np.mean(dice))


def test_a_voxel_of_regions_is_as_certain_as_its_least_certain_region(teacher_of, store):
    teacher = teacher_of("regions")
    image = read(store, store.cases[0])
    label, trust, agreement = label_scan(teacher, image)
    # a pass writes class 2 where it finds the second region, else 1 where it finds both
    written = np.stack(
        [np.where(p[1] > 0.5, 2, p[0] > 0.5).astype(int) for p in passes_of(teacher, image)]
    )
    shares = np.stack([(written > 0).mean(0), (written == 2).mean(0)])
    assert np.array_equal(label, np.where(shares[1] > 0.5, 2, shares[0] > 0.5))
    in_label = np.stack([label > 0, label == 2])
    assert np.allclose(agreement, np.where(in_label, shares, 1 - shares).min(0))
    dice = [dice_with_vote(written > 0, label > 0), dice_with_vote(written == 2, label == 2)]
    assert trust == pytest.approx(np.mean([value for value in dice if not np.isnan(value)]))


def test_voxels_without_agreement_are_ignored_and_no_crop_is_centred_on_them(
    teacher_of, store, scans, tmp_path, monkeypatch
):
    monkeypatch.setattr(pseudo_labels, "LEAST_TRUST", 0.0)
    teacher = teacher_of()
    made = make_pseudo_labels(tmp_path, teacher, scans, store, store.cases)
    assert len(made.cases) == 3
    for scan, case in zip(scans.cases, made.cases, strict=True):
        image = read(store, scan)
        label, _, agreement = label_scan(teacher, image)
        written = made.store.label_crop(case, (0,) * 3, case.shape)
        expected = np.where(agreement >= 0.75, label, IGNORED)
        assert np.array_equal(written, expected)
        assert (written == IGNORED).any()
        assert written.dtype == store.label_crop(scan, (0,) * 3, scan.shape).dtype
        assert np.array_equal(read(made.store, case), image)
        assert IGNORED not in made.store.foreground(case)[:, 0]
        assert IGNORED not in case.label_values
        assert case.subject == scan.subject
    assert (tmp_path / "pseudo-labels.png").exists()


def test_finished_scans_are_kept_and_a_missing_one_is_made_again_alike(
    teacher_of, store, scans, tmp_path, monkeypatch
):
    monkeypatch.setattr(pseudo_labels, "LEAST_TRUST", 0.0)
    teacher = teacher_of()
    made = make_pseudo_labels(tmp_path, teacher, scans, store, store.cases)

    def contents():
        arrays = {file: file.read_bytes() for file in tmp_path.rglob("*.npy")}
        # without the times of files, and the checksum over these
        records = {
            file: {
                key: value
                for key, value in json.loads(file.read_text()).items()
                if key not in ("stamps", "checksum")
            }
            for file in tmp_path.rglob("*.json")
        }
        return arrays, records

    before = contents()
    labelled = []
    monkeypatch.setattr(
        pseudo_labels,
        "label_scan",
        lambda *arguments: labelled.append(1) or label_scan(*arguments),
    )
    assert make_pseudo_labels(tmp_path, teacher, scans, store, store.cases).cases == made.cases
    assert not labelled
    (tmp_path / "records" / f"{made.cases[0].id}.json").unlink()
    (tmp_path / "labels" / f"{made.cases[1].id}.npy").write_bytes(b"damaged")
    # as in a process of its own, which has no array open
    fresh = open_store(store.path)
    assert make_pseudo_labels(tmp_path, teacher, scans, fresh, store.cases).cases == made.cases
    assert len(labelled) == 2
    assert contents() == before
    # other weights, other pseudo-labels
    other = dataclasses.replace(teacher, sha256="of other weights")
    others = make_pseudo_labels(tmp_path, other, scans, store, store.cases)
    assert not {case.id for case in others.cases} & {case.id for case in made.cases}


def test_scans_of_low_trust_and_damaged_ones_are_named_and_left_out(
    teacher_of, store, scans, tmp_path, monkeypatch, capsys
):
    teacher = teacher_of()
    damaged = dataclasses.replace(
        scans.cases[0], sha256={**scans.cases[0].sha256, "images": "0" * 64}, stamps={}
    )
    with_damaged = dataclasses.replace(scans, cases=(damaged, *scans.cases[1:]))
    trusts = [label_scan(teacher, read(store, case))[1] for case in scans.cases[1:]]
    assert trusts[0] != trusts[1]
    monkeypatch.setattr(pseudo_labels, "LEAST_TRUST", np.mean(trusts))
    made = make_pseudo_labels(tmp_path, teacher, with_damaged, store, store.cases)
    assert len(made.cases) == 1
    left_out = scans.cases[1 + int(np.argmin(trusts))]
    assert made.cases[0].subject not in (damaged.subject, left_out.subject)
    printed = capsys.readouterr().err
    assert f"left out: {damaged.id}: " in printed
    assert f"left out: {left_out.id}: trust {min(trusts):.2f} is below" in printed
    assert "1 of 3 scans have pseudo-labels that are trusted" in printed
    monkeypatch.setattr(pseudo_labels, "LEAST_TRUST", 1.01)
    with pytest.raises(DataError, match="none of 3 pseudo-labels can be trusted"):
        make_pseudo_labels(tmp_path, teacher, with_damaged, store, store.cases)


def test_a_class_that_the_teacher_never_finds_is_named(
    teacher_of, store, scans, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(pseudo_labels, "LEAST_TRUST", 0.0)
    teacher = teacher_of()
    with torch.no_grad():
        for module in teacher.network.decoder.modules():
            if getattr(module, "out_channels", None) == 3:
                module.bias[2] = -100.0
    make_pseudo_labels(tmp_path, teacher, scans, store, store.cases)
    assert f"warning: {store.classes[2]}: in no pseudo-label" in capsys.readouterr().err


def test_ignored_voxels_get_a_value_that_is_no_class():
    assert unused_label([0, 1, 2]) == 3
    assert unused_label([0, 255]) == 1
    assert unused_label([*range(256), 300]) == 256
    with pytest.raises(UsageError, match="--teacher atlas"):
        unused_label(range(256))


def test_the_picture_names_the_directions_of_every_slice(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        pseudo_label_picture, "save_figure", lambda figure, out: figures.append(figure)
    )
    image = np.zeros((1, 6, 5, 4), dtype=np.float32)
    scans = SimpleNamespace(
        crop=lambda case, start, shape: image, label_crop=lambda case, start, shape: image[0]
    )
    case = SimpleNamespace(shape=image.shape[1:])
    draw_pseudo_labels = pseudo_label_picture.draw_pseudo_labels
    draw_pseudo_labels(tmp_path / "picture.png", scans, [(case, 0.5)], ["scan"], None)
    # left and upper edge, as in every axial slice
    for axes in figures[0].axes:
        assert [text.get_text() for text in axes.texts] == ["L", "A"]
