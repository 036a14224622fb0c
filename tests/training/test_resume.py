"""A run that was stopped ends with the very weights of one that was left alone."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import selfvox
from selfvox.cli import main
from selfvox.data import phantom
from selfvox.data.preparation.store import open_store
from selfvox.data.sampling.crops import Crops
from selfvox.errors import ResourceError, Stopped, UsageError, WeightsError
from selfvox.runs.atomic_files import sha256
from selfvox.runs.device import make_fabric
from selfvox.runs.run_folder import Run, read_metrics
from selfvox.training import (
    kept_weights,
    pretext_objective,
    segmentation,
    segmentation_objective,
    training_state,
)
from selfvox.training.batches import training_batches
from selfvox.training.schedule import TrainingPlan


class Crash(Exception):
    """Whatever ends a process between two steps."""


def crash_at(monkeypatch, objective, step):
    forward = objective.forward

    def crashing(self, batch, current, rng):
        if current == step:
            raise Crash
        return forward(self, batch, current, rng)

    monkeypatch.setattr(objective, "forward", crashing)


@pytest.mark.fault("F1", "pre-training stopped and resumed", "bit-identical weights")
@pytest.mark.parametrize("task", ["rotation", "simclr", {"name": "exemplar", "bank": 7}])
@pytest.mark.parametrize("step", [2, 9])
def test_pre_training_resumes_to_the_same_weights(
    shapes_store, tmp_path, small, monkeypatch, task, step
):
    settings = {**small, "task": task, "steps": 11, "batch": 2, "save_every": 4}
    selfvox.pretrain(shapes_store, out=tmp_path / "alone", **settings)
    with monkeypatch.context() as patched:
        crash_at(patched, pretext_objective.PretextObjective, step)
        with pytest.raises(Crash):
            selfvox.pretrain(shapes_store, out=tmp_path / "resumed", **settings)
    assert json.loads((tmp_path / "resumed" / "run.json").read_text())["status"] == "failed"
    selfvox.pretrain(shapes_store, out=tmp_path / "resumed", resume=True, **settings)
    alone, resumed = (
        sha256(tmp_path / name / "encoder" / "weights.safetensors") for name in ("alone", "resumed")
    )
    assert alone == resumed
    # a head may remember what it saw
    last = [Run(tmp_path / name, {}).last_checkpoint().tensors for name in ("alone", "resumed")]
    assert all(
        torch.equal(last[0][name], last[1][name]) for name in last[0].keys() | last[1].keys()
    )
    assert [line["step"] for line in read_metrics(tmp_path / "resumed")] == [10, 11]
    assert json.loads((tmp_path / "resumed" / "run.json").read_text())["status"] == "finished"


@pytest.fixture(scope="module")
def visits(tmp_path_factory):
    """A store of two people with two scans each, and a third one with a single scan."""
    folder = tmp_path_factory.mktemp("visits")
    phantom.write(folder / "scans", "shapes", count=5)
    images = sorted((folder / "scans" / "images").iterdir())
    rows = [f"images/{path.name},{person}" for path, person in zip(images, "abcab", strict=True)]
    table = folder / "scans" / "table.csv"
    table.write_text("\n".join(["image,subject", *rows]) + "\n")
    selfvox.prepare(table, out=folder / "store", workers=1)
    return folder / "store"


@pytest.mark.fault("F1", "pre-training on pairs, ended by an error at any step", "the same weights")
@pytest.mark.parametrize("task", ["simclr", "exemplar"])
def test_pre_training_on_pairs_of_a_person_resumes_to_the_same_weights_from_any_step(
    visits, tmp_path, small, monkeypatch, task
):
    settings = {**small, "task": {"name": task, "positives": "subject"}, "steps": 6, "batch": 2}
    settings["save_every"] = 2
    selfvox.pretrain(visits, out=tmp_path / "alone", **settings)
    out = tmp_path / "resumed"
    # before the first checkpoint, right after one, and before the last
    for number, step in enumerate((1, 2, 5)):
        with monkeypatch.context() as patched:
            crash_at(patched, pretext_objective.PretextObjective, step)
            with pytest.raises(Crash):
                selfvox.pretrain(visits, out=out, resume=number > 0, **settings)
    selfvox.pretrain(visits, out=out, resume=True, **settings)
    weights = [path / "encoder" / "weights.safetensors" for path in (tmp_path / "alone", out)]
    assert sha256(weights[0]) == sha256(weights[1])


@pytest.mark.fault("F1", "fine-tuning stopped and resumed", "bit-identical weights")
@pytest.mark.parametrize(("step", "strength"), [(3, "light"), (7, "strong"), (10, "strong")])
def test_fine_tuning_resumes_to_the_same_best_weights(
    shapes_store, tmp_path, small, monkeypatch, step, strength
):
    settings = {**small, "encoder": "none", "steps": 12, "validate_every": 3, "labels": 2}
    settings |= {"augment": strength, "mirror": ("left-right",)}
    selfvox.finetune(shapes_store, out=tmp_path / "alone", **settings)
    with monkeypatch.context() as patched:
        crash_at(patched, segmentation_objective.SegmentationObjective, step)
        with pytest.raises(Crash):
            selfvox.finetune(shapes_store, out=tmp_path / "resumed", **settings)
    selfvox.finetune(shapes_store, out=tmp_path / "resumed", resume=True, **settings)
    cards = [
        json.loads((tmp_path / name / "network" / "network.json").read_text())
        for name in ("alone", "resumed")
    ]
    assert cards[0] == cards[1]  # the weights' checksum is one of the keys


def test_a_finished_run_is_resumed_to_itself(shapes_store, tmp_path, small):
    settings = {**small, "task": "rotation", "steps": 3, "batch": 2}
    run = selfvox.pretrain(shapes_store, out=tmp_path / "run", **settings)
    digest = sha256(run / "encoder" / "weights.safetensors")
    selfvox.pretrain(shapes_store, out=run, resume=True, **settings)
    assert sha256(run / "encoder" / "weights.safetensors") == digest


def test_a_run_is_resumed_under_its_own_settings_only(shapes_store, tmp_path, small):
    settings = {**small, "task": "rotation", "steps": 3, "batch": 2}
    run = selfvox.pretrain(shapes_store, out=tmp_path / "run", **settings)
    with pytest.raises(UsageError, match="steps=3, not 4"):
        selfvox.pretrain(shapes_store, out=run, resume=True, **{**settings, "steps": 4})
    with pytest.raises(UsageError, match="already contains a run"):
        selfvox.pretrain(shapes_store, out=run, **settings)


@pytest.mark.fault("F10", "all checkpoints damaged", "exit code 4, nothing is changed")
def test_damaged_checkpoints_end_the_run_and_leave_it_as_it_is(shapes_store, tmp_path, small):
    settings = {**small, "task": "rotation", "steps": 3, "batch": 2}
    run = selfvox.pretrain(shapes_store, out=tmp_path / "run", **settings)
    for weights in (run / "checkpoints").glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="damaged"):
        selfvox.pretrain(shapes_store, out=run, resume=True, **settings)


def arguments(store, out, *options):
    return [
        *("pretrain", str(store), "--task", "rotation", "--out", str(out), "--device", "cpu"),
        *("--crop", "16,16,16", "--network.channels", "4,8", "--batch", "2"),
        *("--steps", "8", "--save-every", "3", *options),
    ]


@pytest.fixture(scope="module")
def left_alone(shapes_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    assert main(arguments(shapes_store, out)) == 0
    return sha256(out / "encoder" / "weights.safetensors")


@pytest.fixture
def computed_steps(monkeypatch):
    """The steps that this process computes."""
    steps = []
    forward = pretext_objective.PretextObjective.forward

    def counted(self, batch, step, rng):
        steps.append(step)
        return forward(self, batch, step, rng)

    monkeypatch.setattr(pretext_objective.PretextObjective, "forward", counted)
    return steps


@pytest.mark.fault(
    "F3 F4 F5",
    "SIGTERM, SIGINT, SIGUSR1, SIGHUP, SIGXCPU in a step",
    "saved; exit code 128 + number; no step lost",
)
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGXCPU, 152)],
)
def test_a_signal_costs_no_step(
    shapes_store, tmp_path, left_alone, computed_steps, monkeypatch, capsys, number, code
):
    out = tmp_path / "run"
    forward = pretext_objective.PretextObjective.forward

    def signalled(self, batch, step, rng):
        if step == 5:
            signal.raise_signal(number)
        return forward(self, batch, step, rng)

    with monkeypatch.context() as patched:
        patched.setattr(pretext_objective.PretextObjective, "forward", signalled)
        assert main(arguments(shapes_store, out)) == code
    assert "saved; go on with --resume" in capsys.readouterr().err.splitlines()[-1]
    assert not (out / "encoder").exists()
    assert json.loads((out / "run.json").read_text())["status"] == "stopped"
    assert main(arguments(shapes_store, out, "--resume")) == 0
    assert computed_steps == list(range(8))
    assert sha256(out / "encoder" / "weights.safetensors") == left_alone


KILLED_IN_STEP_5 = """
import os, signal, sys
from selfvox.cli import main
from selfvox.training.pretext_objective import PretextObjective

forward = PretextObjective.forward

def killed(self, batch, step, rng):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, batch, step, rng)

PretextObjective.forward = killed
main(sys.argv[1:])
"""


@pytest.mark.fault("F1", "SIGKILL in a step", "resumes to the same weights")
def test_a_killed_run_repeats_no_more_than_the_steps_since_its_checkpoint(
    shapes_store, tmp_path, left_alone, computed_steps
):
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED_IN_STEP_5, *arguments(shapes_store, out)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not (out / "encoder").exists()
    assert main(arguments(shapes_store, out, "--resume")) == 0
    assert computed_steps == [3, 4, 5, 6, 7]  # the checkpoint is of three steps
    assert sha256(out / "encoder" / "weights.safetensors") == left_alone


@pytest.mark.fault("F5", "SIGINT twice", "ends at once, the last checkpoint is intact")
def test_a_second_interrupt_ends_at_once_and_the_checkpoint_before_is_intact(
    shapes_store, tmp_path, small, monkeypatch
):
    forward = pretext_objective.PretextObjective.forward

    def interrupted(self, batch, step, rng):
        if step == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return forward(self, batch, step, rng)

    settings = {**small, "task": "rotation", "steps": 8, "batch": 2, "save_every": 2}
    with monkeypatch.context() as patched:
        patched.setattr(pretext_objective.PretextObjective, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            selfvox.pretrain(shapes_store, out=tmp_path / "run", **settings)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
    assert (
        sorted(path.stem for path in (tmp_path / "run").glob("checkpoints/*.json"))[-1]
        == "step-00000004"
    )
    selfvox.pretrain(shapes_store, out=tmp_path / "run", resume=True, **settings)


@pytest.mark.fault("F6", "SIGTERM during validation", "saved after the step")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_validating_is_obeyed_after_the_step(
    shapes_store, tmp_path, small, monkeypatch, number
):
    measure = kept_weights.Validator.measure
    monkeypatch.setattr(
        kept_weights.Validator,
        "measure",
        lambda self: signal.raise_signal(number) or measure(self),
    )
    with pytest.raises(Stopped, match="after step 2, saved") as error:
        selfvox.finetune(
            shapes_store, out=tmp_path / "run", encoder="none", steps=6, validate_every=2, **small
        )
    assert error.value.exit_code == 128 + number
    assert (tmp_path / "run" / "network" / "network.json").exists()
    assert (tmp_path / "run" / "checkpoints" / "step-00000002.json").exists()


@pytest.mark.fault("F1", "a run resumed at each step", "the same batches")
def test_batches_are_the_same_wherever_a_run_begins(shapes_store):
    store = open_store(shapes_store)
    fabric = make_fabric("cpu", 1, "fp32")
    data = Crops(store, store.cases, (8, 8, 8), seed=0, labels=True, foreground=0.5)
    plan = TrainingPlan(
        steps=9, batch=3, accumulate=2, learning_rate=1, weight_decay=0, save_every=1, seed=0
    )
    batches = list(training_batches(fabric, data, plan, 0))
    assert len(batches) == 18
    for step in (1, 5, 8):
        rest = list(training_batches(fabric, data, plan, step))
        assert len(rest) == 18 - 2 * step
        for batch, expected in zip(rest, batches[2 * step :], strict=True):
            assert batch.keys() == expected.keys()
            assert all(torch.equal(batch[key], expected[key]) for key in batch)


def full_disk(monkeypatch, times):
    """The second checkpoint finds the disk full so many times; returns the seconds waited."""
    waited = []
    save = Run.save_checkpoint
    fsync = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def second_fails(self, checkpoint):
        is_full = checkpoint.step == 4 and len(waited) < times
        monkeypatch.setattr(os, "fsync", full if is_full else fsync)
        try:
            save(self, checkpoint)
        finally:
            monkeypatch.setattr(os, "fsync", fsync)

    monkeypatch.setattr(Run, "save_checkpoint", second_fails)
    monkeypatch.setattr(training_state.time, "sleep", waited.append)
    return waited


@pytest.mark.fault(
    "F7",
    "a full disk during training",
    "tried again, then exit code 5; resumes later",
)
def test_a_full_disk_is_tried_again_then_ends_with_its_code_and_the_run_goes_on_later(
    shapes_store, tmp_path, small, monkeypatch
):
    settings = {**small, "task": "rotation", "steps": 6, "batch": 2, "save_every": 2}
    selfvox.pretrain(shapes_store, out=tmp_path / "alone", **settings)
    with monkeypatch.context() as patched:
        waited = full_disk(patched, times=9)
        with pytest.raises(ResourceError, match=r"disk is full.*the last is of step 2, go on"):
            selfvox.pretrain(shapes_store, out=tmp_path / "run", **settings)
        assert waited == list(training_state.RETRY_AFTER_S)
    assert [path.stem for path in (tmp_path / "run").glob("checkpoints/*.json")] == [
        "step-00000002"
    ]
    selfvox.pretrain(shapes_store, out=tmp_path / "run", resume=True, **settings)
    with monkeypatch.context() as patched:
        waited = full_disk(patched, times=1)
        selfvox.pretrain(shapes_store, out=tmp_path / "patient", **settings)
        assert len(waited) == 1
    digests = {
        sha256(tmp_path / name / "encoder" / "weights.safetensors")
        for name in ("alone", "run", "patient")
    }
    assert len(digests) == 1


@pytest.mark.fault("E35", "the run's folder removed during training", "exit code 5, one line")
def test_a_run_with_its_folder_removed_ends_in_one_line(
    shapes_store, tmp_path, computed_steps, monkeypatch, capsys
):
    out = tmp_path / "run"
    forward = pretext_objective.PretextObjective.forward

    def removing(self, batch, step, rng):
        if step == 2:
            shutil.rmtree(out)
        return forward(self, batch, step, rng)

    monkeypatch.setattr(pretext_objective.PretextObjective, "forward", removing)
    assert main(arguments(shapes_store, out)) == 5
    assert "No such file or directory" in capsys.readouterr().err.splitlines()[-1]


def test_a_validation_dice_of_zero_is_not_forgotten(shapes_store, tmp_path, small, monkeypatch):
    monkeypatch.setattr(segmentation, "dice_per_class", lambda *_: [0.0, 0.0])
    settings = {**small, "encoder": "none", "steps": 6, "validate_every": 2, "keep": "best"}
    with monkeypatch.context() as patched:
        crash_at(patched, segmentation_objective.SegmentationObjective, 3)
        with pytest.raises(Crash):
            selfvox.finetune(shapes_store, out=tmp_path / "run", **settings)
    monkeypatch.setattr(segmentation, "dice_per_class", lambda *_: [-1.0, -1.0])
    selfvox.finetune(shapes_store, out=tmp_path / "run", resume=True, **settings)
    card = json.loads((tmp_path / "run" / "network" / "network.json").read_text())
    assert (card["step"], card["validation_dice"]) == (2, 0.0)
