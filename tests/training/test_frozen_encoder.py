"""While an encoder is frozen, it gets no gradient and keeps its statistics."""

import pytest
import torch

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.classifier import Classifier
from selfvox.models.segmenter import Segmenter
from selfvox.training.augment import Augmentation
from selfvox.training.dropout import TrainingDropout
from selfvox.training.segmentation_objective import SegmentationObjective
from selfvox.training.whole_scan_task import WholeScanObjective

FROZEN_STEPS = 2


def segmentation(encoder):
    network = Segmenter(encoder, 3)
    dropout = TrainingDropout(network.encoder, network.decoder, None)
    return SegmentationObjective(
        network, (0, 1, 2), "log-dice", Augmentation(None), FROZEN_STEPS, dropout
    )


def classification(encoder):
    network = Classifier(encoder, 3, ordinal=False)
    dropout = TrainingDropout(network.encoder, network.head, None)
    return WholeScanObjective(network, Augmentation(None), FROZEN_STEPS, dropout)


@pytest.mark.parametrize("build", [segmentation, classification])
def test_a_frozen_encoder_has_no_gradient_and_keeps_its_statistics(build):
    spec = plan_encoder({"name": "plain", "channels": (4, 8), "norm": "batch"}, (16, 16), (1, 1))
    objective = build(build_encoder(spec, 2, 1)).train()
    encoder = objective.network.encoder
    rng = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randn(2, 1, 16, 16, generator=rng),
        "label": torch.randint(3, (2, 16, 16), generator=rng),
        "spacing": torch.ones(2, 2),
        "answer": torch.tensor([0, 2]),
    }
    of_encoder = {id(parameter) for parameter in encoder.parameters()}
    for step in range(FROZEN_STEPS + 1):
        before = {name: value.clone() for name, value in encoder.named_buffers()}
        objective.zero_grad(set_to_none=True)
        objective(batch, step, rng).loss.backward()
        trained = {id(entry) for entry in objective.parameters() if entry.grad is not None}
        is_unchanged = all(
            torch.equal(before[name], value) for name, value in encoder.named_buffers()
        )
        is_frozen = step < FROZEN_STEPS
        assert trained - of_encoder
        assert trained.isdisjoint(of_encoder) == is_frozen
        assert is_unchanged == is_frozen
