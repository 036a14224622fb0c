"""Fine-tuning for segmentation: what it draws, when its encoder learns, and how it validates."""

import numpy as np
import pytest
import torch
from torch import nn

import selfvox
from selfvox.data.preparation.store import open_store
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.segmenter import Segmenter
from selfvox.training.best_checkpoint import Validator
from selfvox.training.segmentation import LOSSES, Segmentation, SegmentationObjective

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


def objective(frozen_steps, norm="batch"):
    torch.manual_seed(0)
    spec = plan_encoder({"channels": (4, 8), "norm": norm}, CROP, (1, 1, 1))
    network = Segmenter(build_encoder(spec, 3, 1), 3, norm)
    return SegmentationObjective(network, [0, 1, 2], "dice", [], frozen_steps)


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


@pytest.mark.parametrize("loss", ["dice", "dice+ce"])
def test_the_label_of_a_loss_says_that_dice_counts_negatively(loss):
    network = Segmenter(build_encoder(plan_encoder("plain", CROP, (1, 1, 1)), 3, 1), 2, "instance")
    label = SegmentationObjective(network, [0, 1], loss, [], 0).loss_label
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
        return 0.5, {"dice_mean": 0.5}

    task.validate = validate
    validator = Validator(
        task=task, network=network, fabric=None, store=None, cases=["case"], crop=CROP
    )
    assert validator.measure() == (0.5, {"dice_mean": 0.5})
    assert modes == [False]
    assert network.training
