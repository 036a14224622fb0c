"""A run folder survives kills and failures, says how its run ended, and never mixes two runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from selfvox.errors import DataError, UsageError
from selfvox.runs import run_folder
from selfvox.runs.checkpoints import Checkpoint
from selfvox.runs.log_file import forget_earlier_lines, log_to
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import open_run
from selfvox.settings.verbs import Pretrain


def settings(tmp_path, **changed):
    return Pretrain(scans=tmp_path / "scans", out=tmp_path / "run", **changed)


def checkpoint(step):
    return Checkpoint(step, {"weights.a": torch.full((3,), float(step))}, {"skipped": 0})


def started(tmp_path):
    return open_run(tmp_path / "run", settings(tmp_path), resume=False)


@pytest.fixture
def opened(tmp_path):
    with open_run(tmp_path / "run", settings(tmp_path), resume=False) as opened:
        yield opened


@pytest.mark.parametrize("folder", ["", "checkpoints", "encoder", "network"])
def test_half_written_files_are_removed_when_a_run_is_continued(tmp_path, folder):
    with started(tmp_path) as opened:
        (opened.path / folder).mkdir(exist_ok=True)
        half = opened.path / folder / ".99.part.weights.safetensors"
        half.write_bytes(b"half")
    with open_run(tmp_path / "run", settings(tmp_path), resume=True):
        assert not half.exists()


def test_an_existing_run_is_only_written_into_when_resumed(tmp_path):
    with open_run(tmp_path / "run", settings(tmp_path), resume=False):
        pass
    with (
        pytest.raises(UsageError, match="already contains a run"),
        open_run(tmp_path / "run", settings(tmp_path), resume=False),
    ):
        pass
    with open_run(tmp_path / "run", settings(tmp_path), resume=True):
        pass


def test_the_log_of_a_run_has_every_line_and_the_error_that_ended_it(tmp_path):
    forget_earlier_lines()
    echo("reading scans")

    def fail():
        with started(tmp_path):
            echo("step 1")
            raise DataError("scan_1: damaged")

    with pytest.raises(DataError):
        fail()
    with started(tmp_path):
        echo("again")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == [
        "reading scans",
        "step 1",
        "DataError: scan_1: damaged",
        "again",
    ]


@pytest.mark.fault("F8", "a full disk while a log is written", "the work goes on without the line")
def test_a_full_disk_does_not_end_the_work_that_is_logged():
    with log_to(Path("/dev/full")):
        echo("lost")
        echo("lost too")


@pytest.mark.parametrize("changed", [{"batch": 8}, {"seed": 1}, {"accumulate": 3}])
def test_a_run_is_not_resumed_with_other_settings(tmp_path, changed):
    first = {"batch": 4, "seed": 0, "accumulate": 1}
    with open_run(tmp_path / "run", settings(tmp_path, **first), resume=False):
        pass
    ((name, value),) = changed.items()
    with (
        pytest.raises(UsageError, match=f"{name}={first[name]}, not {value}"),
        open_run(tmp_path / "run", settings(tmp_path, **first | changed), resume=True),
    ):
        pass


@pytest.mark.fault("F24", "two processes at one run", "the second is refused")
def test_a_second_process_is_kept_out_until_the_first_is_gone(tmp_path):
    (tmp_path / "run").mkdir()
    code = "import sys, time, pathlib; from selfvox.runs.folder_lock import folder_lock\n"
    code += "with folder_lock(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE
    )
    assert first.stdout.readline() == b"in\n"
    with pytest.raises(UsageError, match=f"process {first.pid} is writing here"), started(tmp_path):
        pass
    first.kill()
    first.communicate()
    with started(tmp_path):
        pass


@pytest.mark.fault("F9", "--out that cannot be made", "refused before training")
def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "run").write_text("a file in the way")
    with (
        pytest.raises(UsageError, match="run"),
        open_run(tmp_path / "run", settings(tmp_path), resume=False),
    ):
        pass


def test_the_record_says_how_a_run_ended(tmp_path):
    with open_run(tmp_path / "run", settings(tmp_path), resume=False):
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    with (
        pytest.raises(ZeroDivisionError),
        open_run(tmp_path / "run", settings(tmp_path), resume=True),
    ):
        raise ZeroDivisionError
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["reason"]) == ("failed", "ZeroDivisionError: ")


def test_a_run_that_failed_before_its_first_checkpoint_is_started_again(tmp_path):
    with pytest.raises(ZeroDivisionError), started(tmp_path):
        raise ZeroDivisionError
    with open_run(tmp_path / "run", settings(tmp_path, batch=3), resume=False) as opened:
        assert "batch: 3 " in (tmp_path / "run" / "settings.yaml").read_text()
        opened.save_checkpoint(checkpoint(1))
    with pytest.raises(UsageError, match="already contains a run"), started(tmp_path):
        pass


@pytest.mark.fault("X12", "paths in the record of a failed run", "no folders above the given ones")
def test_a_reason_names_no_folders_above_those_that_were_given(tmp_path):
    with pytest.raises(ValueError), started(tmp_path):
        raise ValueError(
            f"{tmp_path}/scans/sub/a.nii and {tmp_path / 'run'} and {os.path.expanduser('~')}/x"
        )
    reason = json.loads((tmp_path / "run" / "run.json").read_text())["reason"]
    assert reason == "ValueError: scans/sub/a.nii and run and x"


def test_facts_that_changed_since_a_run_began_are_reported(tmp_path, capsys, monkeypatch):
    with started(tmp_path) as opened:
        opened.depends_on(data={"subjects": ("a", "b"), "image_hashes": ()})
    with open_run(tmp_path / "run", settings(tmp_path), resume=True) as opened:
        opened.depends_on(data={"subjects": ("a", "b"), "image_hashes": ()})
    assert "changed since the run began" not in capsys.readouterr().err
    monkeypatch.setattr(run_folder.torch, "get_num_threads", lambda: 99)
    with open_run(tmp_path / "run", settings(tmp_path), resume=True) as opened:
        assert "threads: changed since the run began" in capsys.readouterr().err
        opened.depends_on(data={"subjects": ("a",), "image_hashes": ()})
        assert "data: changed since the run began" in capsys.readouterr().err


def test_metrics_of_steps_that_a_resumed_run_repeats_are_dropped(opened):
    for step in (10, 20, 30):
        opened.log(step, {"loss": 1.0})
    with (opened.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    opened.forget_metrics_after(20)
    assert [line["step"] for line in run_folder.read_metrics(opened.path)] == [10, 20]
