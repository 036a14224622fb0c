"""The training loop: schedule, batches, skipped steps and what is logged of them."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

import selfvox
from selfvox.errors import NumericalError, WeightsError
from selfvox.models.build import build_encoder
from selfvox.ops.outcome import Outcome
from selfvox.runs.run_folder import read_metrics
from selfvox.runs.typed_json import write_checked
from selfvox.runs.weights import load_strictly, load_tensors, read_encoder
from selfvox.training import monitor, pretext_objective, training_log
from selfvox.training.batches import batch_generator, training_batches
from selfvox.training.schedule import TrainingPlan
from selfvox.training.skipped_steps import (
    MAX_SKIPPED_IN_A_ROW,
    STEPS_PER_SKIPPED,
    SkippedSteps,
)
from selfvox.training.training_log import TrainingLog


def plan(**changed):
    return TrainingPlan(
        **{
            "steps": 100,
            "batch": 2,
            "learning_rate": 1.0,
            "weight_decay": 0.0,
            "save_every": 10,
            "seed": 0,
            **changed,
        }
    )


def test_the_learning_rate_rises_in_a_line_and_falls_as_half_a_cosine():
    rates = [plan(warmup=0.1).learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == pytest.approx(
        [(1 + math.cos(math.pi * step / 90)) / 2 for step in range(90)]
    )


def test_the_stream_of_a_batch_depends_on_seed_device_step_and_part_alone():
    drawn = {
        key: torch.rand(4, generator=batch_generator(*key)).tolist()
        for key in [
            (0, 0, 0, 0),
            (1, 0, 0, 0),
            (0, 1, 0, 0),
            (0, 0, 1, 0),
            (0, 0, 0, 1),
            (1, 1, 0, 0),
        ]
    }
    assert len({tuple(values) for values in drawn.values()}) == len(drawn)
    assert torch.rand(4, generator=batch_generator(0, 0, 1, 0)).tolist() == drawn[0, 0, 1, 0]


class Numbers(Dataset):
    """A sample is its number."""

    def __getitem__(self, number):
        return {"number": torch.tensor(number)}


def poison(monkeypatch, steps):
    """Make the loss of these steps NaN."""
    forward = pretext_objective.PretextObjective.forward

    def poisoned(self, batch, step, rng):
        outcome = forward(self, batch, step, rng)
        return outcome._replace(loss=outcome.loss * float("nan")) if step in steps else outcome

    monkeypatch.setattr(pretext_objective.PretextObjective, "forward", poisoned)


@pytest.mark.fault("F21", "a loss that is not finite", "the step is skipped and counted")
def test_a_step_without_a_finite_loss_is_skipped_and_counted(
    shapes_store, tmp_path, small, monkeypatch
):
    poison(monkeypatch, {4, 5})
    run = selfvox.pretrain(
        shapes_store, out=tmp_path / "run", task="rotation", steps=10, batch=2, **small
    )
    assert read_metrics(run)[-1]["skipped"] == 2
    tensors, _ = read_encoder(run / "encoder")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_what_is_measured_at_a_skipped_step_is_kept(shapes_store, tmp_path, small, monkeypatch):
    """A validation may have chosen the weights; the last line counts the skipped steps."""
    poison(monkeypatch, {3, 9})
    measure = monitor.TrainingMonitor.after_step
    monkeypatch.setattr(
        monitor.TrainingMonitor,
        "after_step",
        lambda self, step: {**measure(self, step), "probe": float(step)},
    )
    run = selfvox.pretrain(
        shapes_store, out=tmp_path / "run", task="rotation", steps=10, batch=2, **small
    )
    lines = {line["step"]: line for line in read_metrics(run)}
    assert [lines[step]["probe"] for step in (3, 4, 5)] == [3, 4, 5]
    assert "loss" not in lines[4]
    assert "loss" in lines[5]
    assert (lines[4]["skipped"], lines[10]["skipped"]) == (1, 2)


def test_batches_of_several_devices_are_apart_and_leave_nothing_out():
    drawn = {}
    for rank in range(3):
        fabric = SimpleNamespace(
            world_size=3,
            global_rank=rank,
            device=torch.device("cpu"),
            to_device=lambda batch: batch,
        )
        drawn[rank] = [
            batch["number"].tolist()
            for batch in training_batches(fabric, Numbers(), plan(steps=4), 1)
        ]
    # batch 1 to 3 of each device, of 2 samples
    assert drawn[0] == [[6, 7], [12, 13], [18, 19]]
    assert sorted(
        number
        for batches_of_rank in drawn.values()
        for batch in batches_of_rank
        for number in batch
    ) == list(range(6, 24))


@pytest.mark.fault(
    "F21 F22",
    "a loss that stays not finite",
    "exit code 6, no bad weight is written",
)
def test_a_loss_that_stays_not_finite_ends_the_run_without_a_bad_weight(
    shapes_store, tmp_path, small, monkeypatch
):
    poison(monkeypatch, set(range(5, 100)))
    with pytest.raises(NumericalError, match="lower `learning_rate`") as error:
        selfvox.pretrain(
            shapes_store,
            out=tmp_path / "run",
            task="rotation",
            steps=100,
            batch=2,
            save_every=2,
            **small,
        )
    assert error.value.exit_code == 6
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    for file in (tmp_path / "run" / "checkpoints").glob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_tensors(file).values())
    assert not (tmp_path / "run" / "encoder").exists()


def test_two_accumulated_batches_weigh_as_one_of_twice_the_size(shapes_store, tmp_path, small):
    settings = {
        **small,
        "network": {"name": "plain", "channels": [4, 8]},
        "precision": "fp32",
        "steps": 1,
    }
    # each half would draw its own rotations, so the loss is one without draws; features are
    # compared, not weights: the bias before a normalisation has no gradient but rounding errors,
    # which Adam turns into steps
    image = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    features = {}
    for name, batch, accumulate in (("whole", 4, 1), ("halves", 2, 2)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(pretext_objective.PretextObjective, "forward", _brightness)
            run = selfvox.pretrain(
                shapes_store,
                out=tmp_path / name,
                task="rotation",
                batch=batch,
                accumulate=accumulate,
                **settings,
            )
        tensors, card = read_encoder(run / "encoder")
        encoder = build_encoder(card.network, 3, 1)
        load_strictly(encoder, tensors, name)
        features[name] = encoder(image)
    torch.testing.assert_close(features["whole"], features["halves"], atol=1e-4, rtol=1e-3)


def _brightness(self, batch, step, rng):
    predicted = self.head(self.encoder.embed(batch["image"])).mean(1)
    truth = batch["image"].flatten(1).std(1)
    return Outcome((predicted - truth).square().mean(), {})


def test_an_encoder_of_another_kind_is_refused_by_its_first_tensor(shapes_store, tmp_path, small):
    run = selfvox.pretrain(
        shapes_store, out=tmp_path / "pre", task="rotation", steps=1, batch=2, **small
    )
    card = json.loads((run / "encoder" / "encoder.json").read_text())
    card["network"]["channels"] = [6, 8]
    write_checked(run / "encoder" / "encoder.json", card)
    with pytest.raises(
        WeightsError, match=r"is \(4, 1, 3, 3, 3\) and the network's is \(6, 1, 3, 3, 3\)"
    ):
        selfvox.finetune(
            shapes_store, out=tmp_path / "seg", encoder=str(run), steps=1, crop=(16, 16, 16)
        )


def test_time_between_steps_does_not_count(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training_log.time, "monotonic", lambda: clock[0])
    log = TrainingLog(4)
    with log.waiting():
        clock[0] += 1
    log.add([Outcome(torch.tensor(0.0), {})])
    clock[0] += 1
    with log.paused():
        clock[0] += 100
    line = log.flush({"learning_rate": 0.1}, 0)
    assert (line["images_per_s"], line["waiting"]) == (2, 0.5)


def test_the_speed_that_a_run_logs_is_that_of_its_steps(shapes_store, tmp_path, small, monkeypatch):
    delay = [0.0]
    real = training_log.time.monotonic
    monkeypatch.setattr(training_log.time, "monotonic", lambda: real() + delay[0])

    def takes_days(self, step):
        delay[0] += 1e6
        return {"measured": 1.0}

    monkeypatch.setattr(monitor.TrainingMonitor, "after_step", takes_days)
    selfvox.pretrain(shapes_store, out=tmp_path / "run", task="rotation", steps=2, batch=2, **small)
    assert all(line["images_per_s"] > 0.01 for line in read_metrics(tmp_path / "run"))


def test_skipped_steps_in_a_row_are_counted_from_the_last_good_step(tmp_path):
    in_total = 4 * MAX_SKIPPED_IN_A_ROW
    skips = SkippedSteps(tmp_path, STEPS_PER_SKIPPED * in_total, 0)
    for step in range(in_total):
        skips.count(step, is_skipped=True)
        if step % MAX_SKIPPED_IN_A_ROW == MAX_SKIPPED_IN_A_ROW - 1:
            skips.count(step, is_skipped=False)
    assert skips.total == in_total
    with pytest.raises(NumericalError):
        skips.count(in_total, is_skipped=True)
