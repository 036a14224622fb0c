"""When a fine-tuning validates, and which weights it keeps."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from selfvox.runs.card import SegmenterCard
from selfvox.runs.weights import read_network
from selfvox.training.downstream import Validation
from selfvox.training.kept_weights import KeptWeights, validation_steps


@pytest.mark.parametrize(
    ("validate_every", "steps", "expected"),
    [
        # of 400 epochs, three of the first 20
        (None, 400, [5, 10, 20, 40, 80, 160, 240, 320, 400]),
        (None, 23, [1, 2, 4, 8, 12, 16, 20, 23]),
        (None, 3, [1, 2, 3]),
        (7, 30, [7, 14, 21, 28, 30]),
        (50, 30, [30]),
    ],
)
def test_validations_follow_early_steps_regular_ones_and_the_last(validate_every, steps, expected):
    assert validation_steps(validate_every, steps) == expected


CARD = SegmenterCard(
    network={"name": "plain"}, spatial_dims=3, in_channels=1, recipe={}, encoder="", seed=0,
    crop=(8, 8, 8), slices=None, head="full", classes={0: "background"}, regions=None,
    trained_on="classes", seen={"subjects": [], "image_hashes": []},
)  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    """Makes a `KeptWeights`; its network has one weight, which is the step."""
    network = nn.Linear(1, 1, bias=False)
    scores = {}

    class Measured:
        task = SimpleNamespace(score="dice")
        cases = ("one",)

        def __init__(self):
            self.network = network

        def measure(self):
            step = network.weight.item()
            rows = ({"case": "one", "dice_organ": scores[step]},)
            return Validation(scores[step], {}, cases=rows)

    class Kept(KeptWeights):
        def take(self, step, score):
            nn.init.constant_(network.weight, step)
            scores[float(step)] = score
            self.after_step(step)

    def make(*, resume):
        lost = SimpleNamespace(keep=lambda _: None, check=lambda *_: None)
        return Kept(
            tmp_path / "network", Measured(), CARD, lost,
            validations=range(100), keep="best", resume=resume,
        )  # fmt: skip

    make.saved = lambda: read_network(tmp_path / "network")
    return make


def test_a_resumed_run_knows_step_and_score_of_the_weights_that_it_has(checkpoint):
    checkpoint(resume=False).take(40, 0.8)
    resumed = checkpoint(resume=True)
    assert resumed.caption == "best by validation: step 40, dice 0.800"
    resumed.take(50, 0.7)
    tensors, card = checkpoint.saved()
    assert (card.step, card.score) == (40, 0.8)
    assert torch.equal(tensors["weight"], torch.tensor([[40.0]]))
    # of equal scores the later step
    resumed.take(60, 0.8)
    assert checkpoint.saved()[1].step == 60


def test_the_table_of_scans_is_that_of_the_saved_weights(checkpoint, tmp_path):
    run = checkpoint(resume=False)
    run.take(40, 0.8)
    run.take(50, 0.7)
    table = (tmp_path / "network" / "validation.csv").read_text()
    assert table == "step,case,dice_organ\n40,one,0.8\n"


def test_a_run_that_starts_again_does_not_compare_with_what_the_folder_has(checkpoint):
    checkpoint(resume=False).take(40, 0.8)
    again = checkpoint(resume=False)
    assert again.caption == "best by validation: step 0"
    again.take(5, 0.1)
    assert checkpoint.saved()[1].step == 5
