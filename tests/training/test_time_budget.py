"""Minutes instead of steps: how many fit, and that the timing leaves no trace in the weights."""

import itertools
import json

import pytest
import torch

import selfvox
from selfvox.commands import finetune, pretrain
from selfvox.data import phantom
from selfvox.errors import UsageError
from selfvox.runs.device import make_fabric
from selfvox.runs.run_folder import Run, read_metrics
from selfvox.runs.weights import read_encoder, read_network
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Finetune, Pretrain
from selfvox.studies.read_plan import read_plan
from selfvox.training.segmentation_objective import SegmentationObjective
from selfvox.training.time_budget import TimeBudget, same_generators

NETWORK = {"name": "plain", "channels": [4, 8], "norm": "batch"}
TICK_S = 0.5


def ticking():
    """A clock that goes on by a tick whenever it is read."""
    return map(lambda number: number * TICK_S, itertools.count()).__next__


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """Draw no curves: they take longer than the training."""
    with pytest.MonkeyPatch.context() as patched:
        for command in (pretrain, finetune):
            patched.setattr(command, "draw_curve", lambda *_: None)
        yield


def finetuned(store, out, clock=None, **settings):
    defaults = {
        "encoder": "none",
        "network": NETWORK,
        "crop": (16, 16, 16),
        "decoder_dropout": 0.2,
        "keep": "last",
        "device": "cpu",
    }
    values = {"labelled": store, "out": out, **defaults, **settings}
    return finetune.finetune(
        resolve(Finetune, values), **({} if clock is None else {"clock": clock})
    )


def test_the_steps_fill_the_minutes_that_are_left():
    times = iter([100.0, 100.0, 110.0, 120.0])
    budget = TimeBudget(minutes=2, clock=lambda: next(times))
    assert budget.time(lambda: None) == 10
    # 120 s, of which 20 s have passed and 30 s are for other things
    assert budget.count_steps(step_s=2, once_s=30) == 35


@pytest.mark.parametrize("step_s", [0.0, 500.0])
def test_there_is_at_least_one_step(step_s):
    assert TimeBudget(minutes=0.1, clock=lambda: 0.0).count_steps(step_s, once_s=10) == 1


def test_what_is_timed_leaves_the_generators_as_they_were():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with same_generators(make_fabric("cpu", 1, "fp32")):
        torch.manual_seed(1)
    assert torch.equal(torch.rand(3), expected)


def test_minutes_give_the_weights_of_as_many_steps(shapes_store, tmp_path, capsys):
    """Also with batch norm, which has statistics, and dropout, which draws from torch."""
    run = finetuned(shapes_store, tmp_path / "minutes", ticking(), minutes=0.301)
    # 18.06 s: after seven readings 14.56 s are left. A step takes a fifth of a tick; of the nine
    # validations, each takes a tick for a checkpoint and one for each of two scans
    steps = int((18.06 - 7 * TICK_S - 9 * 3 * TICK_S) / (TICK_S / 5))
    assert f"0.301 minutes: a step takes 0.1 s, all else 14 s: {steps} steps in about 14 s" in (
        capsys.readouterr().err
    )
    assert json.loads((run / "run.json").read_text())["steps"] == steps == 10
    assert not (run / "trial").exists()
    same = finetuned(shapes_store, tmp_path / "steps", steps=steps)
    tensors, card = read_network(run / "network")
    expected, same_card = read_network(same / "network")
    assert card.sha256 == same_card.sha256
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_looks_at_training_scans_take_their_part_of_the_minutes(tmp_path, capsys):
    phantom.write(tmp_path / "scans", "shapes", count=4)
    finetuned(tmp_path / "scans", tmp_path / "run", ticking(), minutes=0.301, workers=1)
    # nine checkpoints of a tick; two looks of three in thirds of the run, each a tick for a scan
    else_s = (9 + 9 * 2 / 3 * 3) * TICK_S
    steps = int((18.06 - 7 * TICK_S - else_s) / (TICK_S / 5))
    assert f"all else {else_s:.0f} s: {steps} steps" in capsys.readouterr().err


def test_pre_training_for_minutes_gives_the_weights_of_as_many_steps(
    shapes_store, tmp_path, capsys
):
    settings = {
        "scans": shapes_store,
        "task": "rotation",
        "batch": 2,
        "crop": (16, 16, 16),
        "network": NETWORK,
        "device": "cpu",
    }
    minutes = resolve(Pretrain, {**settings, "out": tmp_path / "minutes", "minutes": 0.051})
    run = pretrain.pretrain(minutes, clock=ticking())
    # 3.06 s, less five readings; a step takes .1 s, and with its share of a checkpoint .105 s
    steps = int((3.06 - 5 * TICK_S) / (TICK_S / 5 + TICK_S / 100))
    assert f"0.051 minutes: a step takes 0.105 s, all else 0 s: {steps} steps" in (
        capsys.readouterr().err
    )
    same = selfvox.pretrain(**settings, out=tmp_path / "steps", steps=steps)
    assert read_encoder(run)[1].steps == steps == 5
    assert read_encoder(run)[1].sha256 == read_encoder(same)[1].sha256


def test_a_killed_run_of_minutes_resumes_to_its_recorded_steps(shapes_store, tmp_path, monkeypatch):
    """By no clock: it would count other steps on another day."""
    settings = {"minutes": 0.121, "validate_every": 2}
    forward = SegmentationObjective.forward
    number = itertools.count()

    def killed(self, batch, step, rng):
        # eight batches are timed
        if next(number) == 8 + 3:
            raise KeyboardInterrupt
        return forward(self, batch, step, rng)

    with monkeypatch.context() as patched:
        patched.setattr(SegmentationObjective, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            finetuned(shapes_store, tmp_path / "run", ticking(), **settings)
    run = finetuned(shapes_store, tmp_path / "run", clock=None, resume=True, **settings)
    steps = json.loads((run / "run.json").read_text())["steps"]
    assert read_metrics(run)[-1]["step"] == steps == 4
    alone = finetuned(shapes_store, tmp_path / "alone", steps=steps, validate_every=2)
    first, second = (Run(folder, {}).last_checkpoint().tensors for folder in (run, alone))
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize("other", [{"steps": 3}, {"epochs": 2.0}])
def test_a_length_is_given_in_one_way(shapes_store, tmp_path, other):
    with pytest.raises(UsageError, match="and minutes: give one of them, not both"):
        finetuned(shapes_store, tmp_path / "run", minutes=1, **other)


def test_a_study_compares_equal_steps_not_equal_minutes(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "data: scans\nfinetune: {minutes: 5}\nlabels: [2]\nseeds: [0]\n"
        "methods: {scratch: scratch}\ntest: 1\nvalidation: 1\n"
    )
    with pytest.raises(UsageError, match=r"finetune\.minutes: is decided by the study"):
        read_plan(str(plan))
