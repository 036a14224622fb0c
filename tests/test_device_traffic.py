"""Copies to a GPU and waits for it, in a step of every task: counted with a stand-in for one.

Each copy takes as long as a small operation, and at each wait the GPU runs empty.
"""

import numpy as np
import pytest
import torch

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.segmenter import Segmenter
from selfvox.models.sliding_window import segment_scan
from selfvox.tasks import task_from_setting, task_names
from selfvox.training.augment import STRENGTHS, Augmentation, augment
from selfvox.training.dropout import TrainingDropout
from selfvox.training.segmentation_objective import LOSSES, SegmentationObjective

from .marked_device import counted, move_module, to_gpu

MOST_COPIES = 3
EDGE = 48
SETTINGS = [
    *task_names(),
    {"name": "simclr", "grid": 2, "mask_same_scan": True},
    {"name": "exemplar", "bank": 8},
    {"name": "exemplar", "objective": "contrastive"},
    {"name": "cpc", "objective": "pairwise", "negatives": "batch"},
    {"name": "rotation", "answers": "group", "versions": 2},
]


def encoder_of(spatial_dims):
    torch.manual_seed(0)
    crop = (EDGE,) * spatial_dims
    spec = plan_encoder({"name": "plain", "channels": [4, 8]}, crop, (1.0,) * spatial_dims)
    return build_encoder(spec, spatial_dims, 1)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_step_of_a_task_copies_little_waits_for_nothing_and_has_the_batch_of_the_cpu(setting):
    # volumes where the number of copies depended on the number of rotations or operations
    spatial_dims = 3 if "rotation" in str(setting) else 2
    crop = (EDGE,) * spatial_dims
    encoder = encoder_of(spatial_dims)
    task = task_from_setting(setting).configure(crop, (1.0,) * spatial_dims)
    head = task.head(encoder)
    images = torch.randn(4, 1, *crop, generator=torch.Generator().manual_seed(0))
    scan = torch.arange(4)
    expected = task.make_batch(images, torch.Generator().manual_seed(1), scan)
    move_module(torch.nn.ModuleList([encoder, head]))
    images, scan = to_gpu(images), to_gpu(scan)
    with counted() as traffic:
        batch = task.make_batch(images, torch.Generator().manual_seed(1), scan)
        task.loss(encoder, head, batch).loss.backward()
    assert not traffic.mixed
    assert not traffic.waits
    assert sum(traffic.copies.values()) <= MOST_COPIES
    for key, value in expected.items():
        torch.testing.assert_close(batch[key].inner, value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("loss", "is_regions"), [("log-dice", False), ("dice+ce", True)])
def test_a_step_of_a_fine_tuning_copies_little_and_waits_for_nothing(strength, loss, is_regions):
    assert (loss, is_regions) in LOSSES
    encoder = encoder_of(3)
    network = Segmenter(encoder, 3, "instance", linear=False)
    objective = SegmentationObjective(
        network,
        [0, 1, 2],
        loss,
        Augmentation(STRENGTHS[strength], (0,)),
        0,
        TrainingDropout(encoder, network.decoder, None),
        np.eye(3, dtype=bool) if is_regions else None,
        class_weights=(1.0, 2.0, 3.0),
    )
    move_module(objective)
    batch = {
        "image": to_gpu(torch.randn(2, 1, 16, 16, 16)),
        "label": to_gpu(torch.randint(3, (2, 16, 16, 16), dtype=torch.uint8)),
        "spacing": torch.ones(2, 3),
    }
    with counted():
        # constants are copied in the first step
        objective(batch, 0, torch.Generator().manual_seed(0))
    for seed in range(5):
        with counted() as traffic:
            objective(batch, 0, torch.Generator().manual_seed(seed)).loss.backward()
        assert not traffic.mixed
        assert not traffic.waits
        assert sum(traffic.copies.values()) <= MOST_COPIES


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_batch_is_varied_on_a_gpu_as_on_the_cpu(strength):
    image = torch.randn(4, 2, 12, 10, 8)
    label = torch.randint(3, (4, 12, 10, 8), dtype=torch.uint8)
    spacing = torch.tensor([[1.0, 1.0, 2.0]]).expand(4, 3)
    augmentation = Augmentation(STRENGTHS[strength], (0,))
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        expected, _ = augment(image, label, spacing, augmentation, rng)
        rng = torch.Generator().manual_seed(seed)
        with counted() as traffic:
            actual, _ = augment(to_gpu(image), to_gpu(label), spacing, augmentation, rng)
        # the numbers of all changes together, and a field of noise
        assert sum(traffic.copies.values()) <= 2
        torch.testing.assert_close(actual.inner, expected, rtol=1e-3, atol=2e-3)


def test_a_prediction_copies_nothing_and_waits_once_a_scan():
    network = Segmenter(encoder_of(3), 3, "instance", linear=False).eval()
    image = torch.randn(1, 24, 24, 40)
    with torch.no_grad():
        expected = segment_scan(network, image, (16, 16, 16), 0.25)
        move_module(network)
        with counted() as traffic:
            probabilities = segment_scan(network, to_gpu(image), (16, 16, 16), 0.25)
    torch.testing.assert_close(probabilities.inner, expected)
    assert not traffic.mixed
    assert not traffic.copies
    assert sum(traffic.waits.values()) == 1


def test_the_stand_in_sees_copies_waits_and_mixed_tensors():
    x = to_gpu(torch.randn(3))
    with counted() as traffic:
        assert torch.equal((x.to("cpu") + 1).to(x.device).inner, x.inner + 1)
        _ = float(x.sum()), x[x > 0]
        _ = x + torch.ones(3)
    assert traffic.copies == {"to the CPU": 1, "to the GPU": 1}
    assert sum(traffic.waits.values()) >= 3
    assert traffic.mixed == ["aten.add.Tensor"]
