"""Fine-tuning for segmentation: what it draws, when its encoder learns, and how it validates."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import selfvox
from selfvox.data.preparation.store import open_store
from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.segmenter import Segmenter
from selfvox.training.augment import LIGHT, STRONG, Augmentation
from selfvox.training.downstream import Validation
from selfvox.training.dropout import TrainingDropout
from selfvox.training.kept_weights import Validator
from selfvox.training.segmentation import Segmentation
from selfvox.training.segmentation_objective import LOSSES, SegmentationObjective

CROP = (8, 8, 8)


@pytest.fixture
def store(shapes_store):
    return open_store(shapes_store)


@pytest.fixture
def task(store, tmp_path):
    settings = selfvox.finetune.settings(labelled=store.path, out=tmp_path, encoder="none")
    return Segmentation(store, settings)


def labelled_centres(crops, count=400):
    """Share of the crops with a labelled central voxel."""
    middle = tuple(edge // 2 for edge in CROP)
    return np.mean([bool(crops[number]["label"][middle]) for number in range(count)])


def test_half_of_the_crops_are_centred_on_a_labelled_voxel(store, task, monkeypatch):
    share = labelled_centres(task.data(store, store.cases, CROP, 0))
    monkeypatch.setattr("selfvox.training.segmentation.FOREGROUND_SHARE", 0.0)
    at_random = labelled_centres(task.data(store, store.cases, CROP, 0))
    monkeypatch.setattr("selfvox.training.segmentation.FOREGROUND_SHARE", 1.0)
    centred = labelled_centres(task.data(store, store.cases, CROP, 0))
    assert at_random < 0.2 < 0.8 < centred
    assert share == pytest.approx((at_random + centred) / 2, abs=0.07)


def test_augmentation_learns_the_spacing_of_each_crop(store, tmp_path):
    case = dataclasses.replace(store.cases[0], spacing_mm=(1.0, 2.0, 3.5))
    settings = {"labelled": store.path, "out": tmp_path, "encoder": "none"}
    for slices, spacing in ((None, [1.0, 2.0, 3.5]), ("coronal", [1.0, 3.5])):
        task = Segmentation(store, selfvox.finetune.settings(**settings, slices=slices))
        crop = CROP if slices is None else CROP[:2]
        assert task.data(store, [case], crop, 0)[0]["spacing"].tolist() == spacing


@pytest.mark.parametrize(
    ("setting", "slices", "axes"),
    [
        (None, None, ()),
        (("left-right", "up-down"), None, (0, 2)),
        (("left-right", "up-down"), "coronal", (0, 1)),
        (("all",), "sagittal", (0, 1)),
    ],
)
def test_volumes_and_slices_are_mirrored_along_the_axes_named(
    store, tmp_path, setting, slices, axes
):
    settings = {"labelled": store.path, "out": tmp_path, "encoder": "none", "slices": slices}
    task = Segmentation(store, selfvox.finetune.settings(**settings, mirror=setting))
    assert task.augmentation == Augmentation(STRONG, axes)


def test_an_axis_that_slices_do_not_have_is_not_mirrored(store, tmp_path):
    settings = {"labelled": store.path, "out": tmp_path, "encoder": "none", "slices": "axial"}
    with pytest.raises(UsageError, match="no axis up-down; use none, all, or some of left-right"):
        Segmentation(store, selfvox.finetune.settings(**settings, mirror=("up-down",)))


def objective(frozen_steps, norm="batch"):
    torch.manual_seed(0)
    spec = plan_encoder({"channels": (4, 8), "norm": norm}, CROP, (1, 1, 1))
    network = Segmenter(build_encoder(spec, 3, 1), 3, norm)
    dropout = TrainingDropout(network.encoder, network.decoder, None)
    return SegmentationObjective(
        network, [0, 1, 2], "dice", Augmentation(LIGHT), frozen_steps, dropout
    )


def test_a_frozen_encoder_learns_from_the_first_step_after(store, task):
    item = task.data(store, store.cases, CROP, 0)[0]
    batch = {name: torch.stack([value, value]) for name, value in item.items()}
    trained = objective(frozen_steps=2)
    encoder = trained.network.encoder
    statistics = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    for step, is_frozen in ((0, True), (1, True), (2, False)):
        trained.zero_grad()
        trained(batch, step, torch.Generator().manual_seed(0)).loss.backward()
        gradients = [parameter.grad is not None for parameter in encoder.parameters()]
        assert any(gradients) != is_frozen
        assert all(parameter.grad is not None for parameter in trained.network.decoder.parameters())
        is_same = [
            torch.equal(buffer, statistics[name]) for name, buffer in encoder.named_buffers()
        ]
        assert all(is_same) == is_frozen


@pytest.mark.parametrize("train_on", ["classes", "regions"])
def test_ignored_voxels_teach_nothing(store, tmp_path, train_on):
    settings = selfvox.finetune.settings(
        labelled=store.path,
        out=tmp_path,
        encoder="none",
        augment="none",
        loss="dice+ce",
        regions="both=1,2;second=2",
        train_on=train_on,
    )
    ignored = 3
    task = Segmentation(store, settings, ignored)
    spec = plan_encoder({"channels": (4, 8)}, CROP, (1, 1, 1))
    torch.manual_seed(0)
    network = task.network(build_encoder(spec, 3, 1), spec)
    trained = task.objective(network, store.cases, 0)
    item = task.data(store, store.cases, CROP, 0)[0]
    batch = {name: value[None] for name, value in item.items()}
    rng = torch.Generator().manual_seed(0)
    plain = Segmentation(store, settings).objective(network, store.cases, 0)
    everything = trained(batch, 0, rng).loss.item()
    assert everything == pytest.approx(plain(batch, 0, rng).loss.item())
    label = batch["label"]
    half = label.clone()
    half[:, :, :, 4:] = ignored
    # what is under the ignored voxels does not matter
    logits = network(batch["image"])[..., :4]
    target = trained._target(label[..., :4].long())
    expected = LOSSES["dice+ce", train_on == "regions"](logits, target)
    actual = trained({**batch, "label": half}, 0, rng).loss
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["dice", "dice+ce"])
def test_the_label_of_a_loss_says_that_dice_counts_negatively(loss):
    network = Segmenter(build_encoder(plan_encoder("plain", CROP, (1, 1, 1)), 3, 1), 2, "instance")
    dropout = TrainingDropout(network.encoder, network.decoder, None)
    label = SegmentationObjective(network, [0, 1], loss, Augmentation(LIGHT), 0, dropout).loss_label
    assert "-Dice" in label.replace(" ", "")
    logits = torch.zeros(1, 2, 4, 4, 4)
    logits[:, 1] = 100.0
    perfect = LOSSES[loss, False](logits, torch.ones(1, 4, 4, 4, dtype=torch.long))
    assert perfect < 0


def test_validation_sees_the_network_in_evaluation_mode_and_leaves_it_in_training(task):
    network = nn.Dropout(0.5).train()
    modes = []

    def validate(network, *_):
        modes.append(network.training)
        return Validation(0.5, {"dice_mean": 0.5})

    task.validate = validate
    validator = Validator(
        task=task, network=network, fabric=None, store=None, cases=["case"], crop=CROP
    )
    assert validator.measure() == Validation(0.5, {"dice_mean": 0.5})
    assert modes == [False]
    assert network.training


def test_each_validation_scan_has_its_own_dice_and_the_mean_is_of_them(store, task, monkeypatch):
    """The prediction is the truth shifted by a voxel, so that each class has another Dice."""
    cases = store.cases[:2]
    truths = {case.id: store.label_crop(case, (0, 0, 0), case.shape) for case in cases}
    predictions = iter([np.roll(truth, 1, 0) for truth in truths.values()])
    monkeypatch.setattr(task, "_predict", lambda *_: next(predictions))
    validation = task.validate(None, None, store, cases, CROP)
    assert [row["case"] for row in validation.cases] == [case.id for case in cases]
    for row in validation.cases:
        truth = truths[row["case"]]
        shifted = np.roll(truth, 1, 0)
        for value, name in ((1, "dark"), (2, "bright")):
            both = ((truth == value) & (shifted == value)).sum()
            dice = 2 * both / ((truth == value).sum() + (shifted == value).sum())
            assert row[f"dice_{name}"] == pytest.approx(dice)
    for name in ("dark", "bright"):
        mean = np.mean([row[f"dice_{name}"] for row in validation.cases])
        assert validation.metrics[f"dice_{name}"] == pytest.approx(mean)
