"""The checks for plug-ins: a flawed task or encoder is refused, with a word on what to mend."""

from dataclasses import dataclass, replace
from typing import Annotated

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfvox import testing
from selfvox.ops.outcome import Outcome
from selfvox.pretext import Panel
from selfvox.tasks.rotation import Rotation
from selfvox.tasks.simclr import SimCLR
from selfvox.testing.task_setup import changed_options


@dataclass(frozen=True, kw_only=True)
class LargeWeights(Rotation):
    def head(self, encoder):
        return nn.Linear(encoder.width, len(self.table(encoder.spatial_dims)))


@dataclass(frozen=True, kw_only=True)
class UnusedLayer(Rotation):
    def head(self, encoder):
        head = super().head(encoder)
        head.spare = nn.Linear(2, 2)
        head.forward = lambda x: nn.Sequential(*head[:3])(x)
        return head


@dataclass(frozen=True, kw_only=True)
class Attached(Rotation):
    def loss(self, encoder, head, batch):
        outcome = super().loss(encoder, head, batch)
        return Outcome(outcome.loss, {**outcome.metrics, "extra": 2 * outcome.loss})


@dataclass(frozen=True, kw_only=True)
class WithoutChance(Rotation):
    def loss(self, encoder, head, batch):
        outcome = super().loss(encoder, head, batch)
        return Outcome(outcome.loss, {"accuracy": outcome.metrics["accuracy"]})


@dataclass(frozen=True, kw_only=True)
class GlobalDraw(Rotation):
    def make_batch(self, images, rng, scan=None):
        batch = super().make_batch(images, rng, scan)
        return {**batch, "images": batch["images"] + torch.rand(())}


@dataclass(frozen=True, kw_only=True)
class OwnSeed(Rotation):
    def make_batch(self, images, rng, scan=None):
        batch = super().make_batch(images, rng, scan)
        noise = torch.rand((), generator=torch.Generator().manual_seed(0))
        return {**batch, "images": batch["images"] + noise}


@dataclass(frozen=True, kw_only=True)
class InPlace(Rotation):
    def make_batch(self, images, rng, scan=None):
        return super().make_batch(images.add_(1), rng, scan)


@dataclass(frozen=True, kw_only=True)
class BatchMean(Rotation):
    def make_batch(self, images, rng, scan=None):
        return super().make_batch(images - images.mean(), rng, scan)


@dataclass(frozen=True, kw_only=True)
class FirstImageOnly(Rotation):
    def loss(self, encoder, head, batch):
        return super().loss(encoder, head, {key: value[:1] for key, value in batch.items()})


@dataclass(frozen=True, kw_only=True)
class Rounded(Rotation):
    def make_batch(self, images, rng, scan=None):
        batch = super().make_batch(images, rng, scan)
        edge = batch["images"].shape[-1]
        identity = torch.eye(edge)
        return {**batch, "images": (batch["images"] @ identity).float()}


@dataclass(frozen=True, kw_only=True)
class OtherSize(Rotation):
    def input_size(self, crop):
        return tuple(edge - 1 for edge in super().input_size(crop))

    def make_batch(self, images, rng, scan=None):
        return Rotation(planes=self.planes).make_batch(images, rng, scan)


@dataclass(frozen=True, kw_only=True)
class Unchecked(SimCLR):
    def check_batch(self, images):
        pass


@dataclass(frozen=True, kw_only=True)
class Idle(SimCLR):
    depth: Annotated[int, "changes nothing"] = 3


@dataclass(frozen=True, kw_only=True)
class Helpless(Rotation):
    depth: int = 3


@dataclass(frozen=True, kw_only=True)
class Tolerant(Rotation):
    planes: Annotated[str, "planes to rotate in, or anything else"] = "all"

    def configure(self, crop, *spacings_mm):
        return self


@dataclass(frozen=True, kw_only=True)
class Captionless(Rotation):
    def preview_panels(self, images, batch):
        rows = super().preview_panels(images, batch)
        return [[row[0], Panel("", row[1].image)] for row in rows]


@dataclass(frozen=True, kw_only=True)
class OneRow(Rotation):
    def preview_panels(self, images, batch):
        return super().preview_panels(images, batch)[:1]


FLAWS = [
    (LargeWeights, "untrained_answers_are_at_chance", "give the last layer small weights"),
    (UnusedLayer, "gradients_reach_every_weight", "spare.weight has no gradient"),
    (Attached, "metrics_are_detached_numbers", "the metric extra has a gradient; detach it"),
    (WithoutChance, "metrics_are_detached_numbers", "accuracy and chance go together"),
    (GlobalDraw, "the_generator_alone_decides", "the same seed gives another batch: images"),
    (OwnSeed, "every_draw_is_from_the_generator", "draws from another generator"),
    (
        InPlace,
        "the_generator_alone_decides",
        "the same seed gives another batch|changes the images",
    ),
    (BatchMean, "images_do_not_depend_on_their_neighbours", "changes 4 rows of images, not 1"),
    (FirstImageOnly, "the_order_of_the_batch_does_not_matter", "not close"),
    (Rounded, "mixed_precision_makes_the_same_batch", "mixed precision changes the batch: images"),
    (OtherSize, "images_have_the_input_size", "and input_size says"),
    (Unchecked, "the_smallest_batch_has_a_loss", "a batch of 1 images is not refused"),
    (Idle, "every_option_matters", "the option depth makes no difference"),
    (Helpless, "a_task_is_frozen_settings", "depth has no help text"),
    (Tolerant, "bad_options_are_refused_by_name", "planes = nonsense is not refused by name: acc"),
    (Captionless, "panels_show_every_image", "a panel has no caption"),
    (OneRow, "panels_show_every_image", "a preview of 4 images has 1 rows"),
]


@pytest.mark.parametrize(
    ("task", "check", "message"), FLAWS, ids=[flaw[0].__name__ for flaw in FLAWS]
)
def test_a_flawed_task_is_refused_with_a_word_on_what_to_mend(task, check, message):
    checks = {function.__name__: function for function in testing.TASK_CHECKS}
    with pytest.raises(AssertionError, match=message):
        checks[check](task(), 2)


def test_a_task_that_is_not_frozen_is_refused():
    @dataclass(kw_only=True)
    class Thawed:
        pass

    with pytest.raises(AssertionError, match="a task is frozen"):
        testing.a_task_is_frozen_settings(Thawed(), 2)


def test_check_task_makes_every_check_in_every_dimension(monkeypatch):
    calls = []
    checks = [lambda task, d, name=name: calls.append((name, task, d)) for name in "ab"]
    monkeypatch.setattr(testing, "TASK_CHECKS", checks)
    monkeypatch.setattr(testing, "ENCODER_CHECKS", checks)
    task = Rotation()
    testing.check_task(task)
    testing.check_encoder(task, dimensions=(3,))
    expected = [("a", 2), ("a", 3), ("b", 2), ("b", 3), ("a", 3), ("b", 3)]
    assert calls == [(name, task, d) for name, d in expected]


def test_options_of_the_task_given_are_what_is_checked():
    assert {"versions": 6} in list(changed_options(replace(Rotation(), versions=5)))


class Averaged(nn.Module):
    """An instance norm last, so that the mean over space is the same for all images."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.InstanceNorm2d(4))

    def forward(self, x):
        maps = self.layers(x)
        return [maps, 1 + F.adaptive_avg_pool2d(maps, 1).expand(-1, -1, 2, 2)]


class Unused(Averaged):
    def __init__(self, channels):
        super().__init__(channels)
        self.spare = nn.Conv2d(channels, 4, 1)

    def forward(self, x):
        return [self.layers[0](x)]


@pytest.mark.parametrize(
    ("network", "check", "message"),
    [
        (Averaged, "different_images_have_different_embeddings", "a mean after an instance norm"),
        (Unused, "the_embedding_trains_every_weight", "no gradient from the embedding: net.spare"),
    ],
)
def test_a_flawed_encoder_is_refused(network, check, message):
    checks = {function.__name__: function for function in testing.ENCODER_CHECKS}
    with pytest.raises(AssertionError, match=message):
        checks[check](lambda d, channels: network(channels), 2)
