"""The progress line says what the metrics are, with what random guesses reach."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.ops.outcome import Outcome
from selfvox.tasks import task_from_setting
from selfvox.training.training_log import TrainingLog, caption, mean_metrics

SPEED = {"images_per_s": 12.34, "waiting": 0.014}


def test_a_mean_weighs_every_batch_equally_and_a_metric_by_the_batches_that_have_it():
    outcomes = [
        Outcome(torch.tensor(1.0), {"accuracy": torch.tensor(0.5)}),
        Outcome(torch.tensor(4.0), {"accuracy": torch.tensor(0.0), "rare": torch.tensor(3.0)}),
        Outcome(torch.tensor(4.0), {"accuracy": torch.tensor(1.0)}),
    ]
    assert mean_metrics(outcomes) == {"loss": 3.0, "accuracy": 0.5, "rare": 3.0}


def test_the_chance_of_loss_and_accuracy_is_shown_where_it_is_defined():
    line = {"loss": 1.2345, "loss_chance": 2.3026, "accuracy": 0.451, "chance": 0.1, **SPEED}
    assert caption(line) == (
        "loss 1.234 (chance 2.303)  accuracy 0.45 (chance 0.10)  12.3 images/s  1 % waiting"
    )
    assert caption({"loss": 1.2345, **SPEED}) == "loss 1.234  12.3 images/s  1 % waiting"


def test_the_memory_is_that_of_the_process():
    log = TrainingLog(1)
    log.add([Outcome(torch.tensor(2.0), {})])
    log.flush({}, 0)
    assert re.fullmatch(r".* 0 % waiting  \d+\.\d GB", log.caption)
    held = np.ones(10**8)
    log.add([Outcome(torch.tensor(2.0), {})])
    peak_gb = log.flush({}, 0)["peak_memory_gb"]
    status = Path("/proc/self/status").read_text()
    resident_gb = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024 / 1e9
    assert held.nbytes / 1e9 < resident_gb <= peak_gb + 0.01 < 50
    line = {"loss": 1.0, **SPEED, "peak_memory_gb": 2.14, "peak_gpu_memory_gb": 9.96}
    assert caption(line).endswith("1 % waiting  10.0 GB of the GPU  2.1 GB")


def test_a_negative_loss_is_explained_by_its_name():
    assert caption({"loss": -0.5, **SPEED}, "loss (-Dice)").startswith("loss (-Dice) -0.500  ")


def test_a_line_without_batches_counts_the_skipped_steps_only():
    log = TrainingLog(1)
    assert log.flush({"learning_rate": 0.1}, 3) == {"skipped": 3.0}
    log.add([Outcome(torch.tensor(2.0), {})])
    assert log.flush({"learning_rate": 0.1}, 3)["loss"] == pytest.approx(2.0)
    # the last caption stays until there is a new one
    assert log.flush({"learning_rate": 0.1}, 4) == {"skipped": 4.0}
    assert log.caption.startswith("loss 2.000")


TASKS_WITH_A_CHANCE = ["cpc", "jigsaw", "relative_location", "rotation", "simclr"]


@pytest.mark.parametrize("name", TASKS_WITH_A_CHANCE)
def test_the_chance_of_a_loss_is_the_loss_of_equal_features(name):
    """With all weights 0, every candidate is equally likely."""
    crop = (32, 32)
    task = task_from_setting(name).configure(crop, (1.0, 1.0))
    spec = plan_encoder({"channels": [4, 8]}, task.input_size(crop), (1.0, 1.0))
    encoder = build_encoder(spec, 2, 1)
    head = task.head(encoder)
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *head.parameters()):
            parameter.zero_()
    images = torch.randn(3, 1, *crop, generator=torch.Generator().manual_seed(0))
    outcome = task.loss(encoder, head, task.make_batch(images, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(outcome.metrics["loss_chance"], outcome.loss.detach())
