"""What the first steps of a training predict of its time."""

import re

import pytest

import selfvox
from selfvox.commands import finetune
from selfvox.training import time_forecast
from selfvox.training.time_forecast import TIMED_STEPS, WARM_UP_STEPS, TimeForecast


def printed_after(forecast, capsys, seconds, first=0):
    """The first line that is printed, and the step after which it is."""
    for number, step_s in enumerate(seconds, start=1):
        forecast.add(first + number, step_s)
        line = capsys.readouterr().err
        if line:
            return number, line
    return None, ""


def test_slow_first_steps_are_not_part_of_the_forecast(capsys):
    step, line = printed_after(TimeForecast(1000), capsys, [60.0] * WARM_UP_STEPS + [0.5] * 20)
    assert step == WARM_UP_STEPS + TIMED_STEPS == 10
    # 990 steps of half a second
    assert line.startswith("a step takes about 0.5 s: 990 more take about 8:15 min; shorter: --min")
    assert "--minutes 4, or fewer --steps" in line


def test_slow_steps_are_reported_earlier_and_a_resumed_run_counts_what_is_left(capsys):
    forecast = TimeForecast(500, "without the validations")
    step, line = printed_after(forecast, capsys, [20.0] * 20, first=300)
    assert step == WARM_UP_STEPS + 2
    assert "195 more take about 1:05 h, without the validations; shorter" in line
    assert printed_after(forecast, capsys, [20.0] * 20, first=305) == (None, "")


def test_short_trainings_have_no_forecast(capsys):
    assert printed_after(TimeForecast(100), capsys, [0.5] * 100) == (None, "")


@pytest.mark.parametrize("minutes", [None, 0.01])
def test_a_training_forecasts_its_time_unless_it_was_given(
    shapes_store, tmp_path, small, monkeypatch, capsys, minutes
):
    monkeypatch.setattr(finetune, "draw_curve", lambda *_: None)
    monkeypatch.setattr(time_forecast, "SHORT_S", 0.0)
    length = {"steps": 11} if minutes is None else {"minutes": minutes}
    selfvox.finetune(shapes_store, out=tmp_path / "run", encoder="none", **length, **small)
    printed = capsys.readouterr().err
    # how many seconds depends on what else the machine does
    forecasts = re.findall(r" 1 more take about .*, without the validations", printed)
    assert len(forecasts) == (1 if minutes is None else 0)
