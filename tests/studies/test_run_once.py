"""Work that is done once: what counts as done, as the same settings, and as unfinished."""

import json
from pathlib import Path

import pytest

from selfvox.errors import BusyError, UsageError
from selfvox.studies.run_once import failure_of, is_done, note_failure, run_once, study_lock

CELL = Path("cells/scratch/2-labels-seed-0")


@pytest.fixture
def work(tmp_path):
    """Do the work with these settings; returns how often it was done so far."""
    times = []

    def do(settings, facts=None, **options):
        run_once(tmp_path, CELL, settings, lambda: times.append(1) or facts or {}, **options)
        return len(times)

    return do


def test_work_is_done_once(work):
    assert work({"steps": 3}) == 1
    assert work({"steps": 3}) == 1


def test_the_order_of_settings_does_not_matter(work):
    assert work({"steps": 3, "network": {"name": "plain", "channels": [4]}}) == 1
    assert work({"network": {"channels": [4], "name": "plain"}, "steps": 3}) == 1


@pytest.mark.parametrize("settings", [{"steps": 4}, {"steps": 3, "batch": 1}, {}])
def test_work_that_was_done_with_other_settings_is_refused(settings, work):
    work({"steps": 3})
    with pytest.raises(UsageError, match="was made with settings other than the plan's"):
        work(settings)


def test_work_that_failed_is_not_done(work, tmp_path):
    def fail():
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        run_once(tmp_path, CELL, {}, fail)
    assert not is_done(tmp_path / CELL)
    assert work({}) == 1


def test_the_cost_of_executions_that_did_not_end_counts(work, tmp_path, monkeypatch):
    readings = iter([(2.0, 50), (3.0, 40)])

    class Meter:
        def read(self):
            cpu_s, peak = next(readings)
            return {"seconds": 1.0, "cpu_s": cpu_s, "peak_memory_mib": peak}

    def stops():
        raise KeyboardInterrupt

    monkeypatch.setattr("selfvox.studies.run_once.Meter", Meter)
    with pytest.raises(KeyboardInterrupt):
        run_once(tmp_path, CELL, {}, stops)
    note_failure(tmp_path / CELL, "stopped")
    assert failure_of(tmp_path / CELL) == "stopped"
    work({})
    record = json.loads((tmp_path / CELL / "done.json").read_text())
    assert (record["seconds"], record["cpu_s"], record["peak_memory_mib"]) == (2.0, 5.0, 50)
    assert failure_of(tmp_path / CELL) is None


def test_facts_are_recorded_and_checkpoints_removed(work, tmp_path):
    (tmp_path / CELL / "checkpoints").mkdir(parents=True)
    work({"steps": 3}, facts={"method": "scratch", "labels": 2})
    record = json.loads((tmp_path / CELL / "done.json").read_text())
    names = ["method", "labels", "seconds", "cpu_s", "peak_memory_mib", "settings_sha256"]
    assert list(record) == ["format", *names, "checksum"]
    assert (record["method"], record["labels"]) == ("scratch", 2)
    assert not (tmp_path / CELL / "checkpoints").exists()


def test_output_of_the_work_goes_to_its_log(tmp_path, capsys):
    run_once(tmp_path, CELL, {}, lambda: print("training") or {})
    assert (tmp_path / CELL / "log.txt").read_text() == "training\n"
    assert capsys.readouterr().out == ""


def test_work_of_another_process_is_left_to_it(work, tmp_path):
    with study_lock(tmp_path, str(CELL)), pytest.raises(BusyError):
        work({})
    assert work({}) == 1


def test_work_that_another_process_finished_meanwhile_is_not_done_again(
    work, tmp_path, monkeypatch
):
    """The lock is free and the work is done: it was not when this process looked first."""
    work({})
    looks = []

    def not_yet_at_first(*arguments):
        looks.append(arguments)
        return len(looks) > 1 and is_done(*arguments)

    monkeypatch.setattr("selfvox.studies.run_once.is_done", not_yet_at_first)
    assert work({}) == 1
    assert len(looks) == 2
