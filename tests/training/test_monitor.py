"""The monitor warns once of each problem, and a healthy run gets no warning."""

import json

import pytest
import torch
from torch import nn

import selfvox
from selfvox.data.preparation.store import open_store
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.encoder import Encoder
from selfvox.ops.outcome import Outcome
from selfvox.runs.device import make_fabric
from selfvox.runs.run_folder import open_run, read_metrics
from selfvox.training.monitor import (
    AT_CHANCE_STEP,
    CROPS,
    PROBES,
    TrainingMonitor,
    overlapping_views,
)

CROP = (16, 16, 16)


class Constant(Encoder):
    """Says the same of every image."""

    spatial_dims = 3
    in_channels = 1
    channels = (4,)
    strides = ((1, 1, 1),)

    def __init__(self):
        super().__init__()
        self.answer = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return [self.answer.view(1, 4, 1, 1, 1).expand(len(x), 4, 4, 4, 4)]


@pytest.fixture(scope="module")
def views(shapes_store):
    store = open_store(shapes_store)
    return overlapping_views(store, store.cases, CROP, 0)


@pytest.fixture
def watched(tmp_path, views):
    """Let a watch see steps of made-up scores, and return what it said to be amiss."""

    def watch(
        encoder,
        steps,
        score=lambda step: 0.5,
        gradient=lambda step: 1.0,
        loss=lambda step: 1.0,
        last=None,
        chance=0.1,
        vectors=lambda step: 0.5,
    ):
        settings = selfvox.pretrain.settings(scans="s", out=tmp_path / "run")
        with open_run(tmp_path / "run", settings, resume=True) as run:
            watching = TrainingMonitor(run, make_fabric("cpu", 1, "fp32"), encoder, views, steps)
            for step in range(1, (last or steps) + 1):
                for parameter in encoder.parameters():
                    parameter.grad = torch.full_like(parameter, gradient(step))
                metrics = {
                    "rotation/accuracy": torch.tensor(score(step)),
                    "rotation/chance": torch.tensor(chance),
                }
                metrics["simclr/embedding_std"] = torch.tensor(vectors(step))
                if chance == 0:
                    metrics = {"masked/explained": torch.tensor(score(step))}
                outcome = Outcome(torch.tensor(loss(step)), metrics)
                watching.before_update(step, outcome)
                watching.learned(outcome)
                watching.after_step(step)
            return run.record.get("warned", [])

    return watch


def fresh():
    torch.manual_seed(0)
    return build_encoder(plan_encoder({"channels": (4, 8)}, CROP, (1, 1, 1)), 3, 1)


def test_a_healthy_run_gets_no_warning(watched, capsys):
    assert watched(fresh(), 400) == []
    assert capsys.readouterr().err == ""


def test_a_constant_encoder_has_collapsed_and_the_warning_comes_once_even_if_resumed(
    watched, capsys
):
    assert watched(Constant(), 100) == ["collapsed"]
    output = capsys.readouterr().err
    assert output.count("features have collapsed") == 1
    assert output.startswith("step 10: ")
    assert "lower --learning-rate" in output
    assert watched(Constant(), 100) == ["collapsed"]
    assert capsys.readouterr().err == ""


def test_an_encoder_that_collapses_on_the_way_is_noticed(watched, capsys):
    encoder = fresh()

    def score(step):
        with torch.no_grad():  # every channel but one fades
            for parameter in list(encoder.parameters())[-2:]:
                parameter[1:] *= 0.8
            list(encoder.parameters())[-1][0] = 1.0
        return 0.5

    assert watched(encoder, 100, score) == ["collapsed"]


def test_vectors_that_collapse_while_features_do_not_are_noticed(watched, capsys):
    assert watched(fresh(), 200, vectors=lambda step: 0.5 if step < 50 or step % 2 else 0.0) == []
    assert watched(fresh(), 200, vectors=lambda step: 0.5 if step < 50 else 0.002) == [
        "collapsed simclr/embedding_std"
    ]
    assert "simclr/embedding_std was 0.0" in (output := capsys.readouterr().err)
    assert output.count("collapsed") == 1


def test_a_task_solved_at_once_is_a_shortcut_and_one_solved_later_is_not(watched, capsys):
    assert watched(fresh(), 100, lambda step: 1.0) == ["solved rotation/accuracy"]
    assert "shortcut" in capsys.readouterr().err


def test_a_task_solved_after_a_while_is_learnt(watched):
    assert watched(fresh(), 100, lambda step: min(1.0, step / 30)) == []


def test_a_score_that_stays_at_chance_is_warned_of_half_way(watched, capsys):
    assert watched(fresh(), 500, lambda step: 0.1, last=240) == []
    assert watched(fresh(), 500, lambda step: 0.1) == ["chance rotation/accuracy"]
    assert f"still at chance after {max(AT_CHANCE_STEP, 250)} steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chance", "value", "stays"),
    [
        *((0.001, 0.0015, True), (0.001, 0.018, False), (0.01, 0.028, False), (0.002, 0.02, False)),
        *((0.1, 0.115, True), (0.1, 0.125, False), (0.5, 0.505, True), (0.5, 0.515, False)),
        *((0.0, -0.01, True), (0.0, 0.015, True), (0.0, 0.025, False)),  # a share of variance
    ],
)
def test_what_is_at_chance_depends_on_the_number_of_answers(watched, chance, value, stays):
    warned = watched(Constant(), AT_CHANCE_STEP, lambda step: value, chance=chance)
    assert any(about.startswith("chance ") for about in warned) == stays


def test_parameters_that_no_gradient_reaches_are_warned_of(watched, capsys):
    assert watched(fresh(), 20, gradient=lambda step: 0.0) == ["unreached"]
    output = capsys.readouterr().err
    assert output.startswith("step 3: 100% of the encoder's parameters get no gradient")


def test_steps_without_a_loss_say_nothing_about_what_the_gradient_reaches(watched, capsys):
    # a triplet task that it has learnt: at step 50 every triplet is beyond the margin
    learnt = {"gradient": lambda step: float(step < 40), "loss": lambda step: float(step < 40)}
    assert watched(fresh(), 100, **learnt) == []
    assert capsys.readouterr().err == ""


def test_a_batch_without_triplets_at_the_first_measurement_is_ignored(watched):
    assert (
        watched(
            fresh(), 20, gradient=lambda step: float(step != 3), loss=lambda step: float(step != 3)
        )
        == []
    )


def test_what_the_gradient_reached_once_is_not_left_random(watched):
    # a batch of nothing but air has a loss, and the filters that see only zeros have no gradient
    assert watched(fresh(), 100, gradient=lambda step: float(step != 50)) == []


def test_the_two_views_overlap_by_seven_eighths_of_every_edge(shapes_store, views):
    first, second = views
    assert first.shape == second.shape == (CROPS, 1, *CROP)
    for view, shifted in zip(first, second, strict=True):
        matches = 0
        for signs in range(8):
            inner = []
            outer = []
            for axis in range(3):
                ahead = bool(signs >> axis & 1)
                inner.append(slice(2, None) if ahead else slice(None, -2))
                outer.append(slice(None, -2) if ahead else slice(2, None))
            matches += torch.equal(view[(0, *inner)], shifted[(0, *outer)])
        assert matches >= 1


def test_a_run_writes_its_health_and_no_alarm(shapes_store, tmp_path, small):
    run = selfvox.pretrain(
        shapes_store, out=tmp_path / "run", task="simclr", steps=20, batch=2, **small
    )
    for line in read_metrics(run):
        assert 0 < line["health/spread"] < 1.5
        assert 1 <= line["health/rank"] <= CROPS
        assert line["health/reached"] == 1
    assert "warned" not in json.loads((run / "run.json").read_text())


@pytest.mark.parametrize("steps", [1, 7, 10, 499, 1003])
def test_the_probe_runs_at_most_as_often_as_its_help_says(views, tmp_path, steps):
    settings = selfvox.pretrain.settings(scans="s", out=tmp_path / "run")
    with open_run(tmp_path / "run", settings, resume=True) as run:
        watching = TrainingMonitor(run, make_fabric("cpu", 1, "fp32"), fresh(), views, steps)
    every = watching.probe_every
    probed = [step for step in range(1, steps + 1) if step % every == 0 or step == steps]
    assert 1 <= len(probed) <= PROBES
    assert probed[-1] == steps
