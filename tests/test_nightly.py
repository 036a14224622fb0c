"""The scripts of the page on nightly jobs do what the page says."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from selfvox.cli import main
from selfvox.prediction import scan_loop, scan_segmenter

from .conftest import blob, write_scan
from .test_readme import DOCS, blocks


@pytest.fixture
def scripts(tmp_path):
    """A folder with the two scripts of the page and selfvox."""
    programs = tmp_path / "bin"
    programs.mkdir()
    nightly, array = blocks(DOCS / "how-to" / "nightly.md", "sh")
    contents = {
        "nightly.sh": nightly,
        "array.sh": array,
        "selfvox": f'#!/bin/sh\nexec {sys.executable} -m selfvox "$@"\n',
    }
    for name, content in contents.items():
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    return programs


def environment(scripts, **more):
    """As short as that of cron."""
    source = Path(__file__).parents[1] / "src"
    path = f"{scripts}:/usr/bin:/bin"
    return {"PATH": path, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HOME": "/", **more}


def test_a_night_predicts_what_is_new_and_reports_what_is_bad(scripts, run, scans, tmp_path):
    words = [scripts / "nightly.sh", run, scans, tmp_path / "out"]

    def night():
        return subprocess.run(
            words, env=environment(scripts), cwd="/", capture_output=True, text=True, check=False
        )

    first = night()
    assert (first.returncode, first.stdout) == (0, "all scans are predicted\n")
    assert first.stderr == ""
    write_scan(scans / "scan_3.nii.gz", blob((20, 17, 12), 3))
    write_scan(scans / "scan_0.nii.gz", blob((20, 17, 12), 8))
    (scans / "torn.nii.gz").write_bytes(b"no scan")
    second = night()
    assert second.returncode == 3
    assert second.stdout.endswith(f"see {tmp_path}/out/rejected.csv\n")
    assert "torn" in (tmp_path / "out" / "rejected.csv").read_text()
    records = (tmp_path / "out" / "cases.jsonl").read_text().splitlines()
    names = [json.loads(line)["id"] for line in records]
    assert names[:3] == ["scan_0", "scan_1", "scan_2"]
    assert sorted(name.split("~")[0] for name in names[3:]) == ["scan_0", "scan_3"]
    assert "2 of 5 predictions exist already" in (tmp_path / "out" / "log.txt").read_text()
    no_run = [scripts / "nightly.sh", tmp_path / "none", scans, tmp_path / "other"]
    third = subprocess.run(
        no_run, env=environment(scripts), cwd="/", capture_output=True, text=True, check=False
    )
    assert third.returncode == 4
    assert "stopped with code 4" in third.stdout


@pytest.mark.fault(
    "F31", "SIGTERM at night, under --quiet", "the lost scan and the bad ones are named"
)
def test_a_night_that_is_stopped_names_the_lost_scan_and_lists_the_bad_ones(
    run, scans, tmp_path, monkeypatch, capsys
):
    (scans / "a_torn.nii.gz").write_bytes(b"no scan")
    real = scan_segmenter.segment_parts
    calls = []

    def stopped_in_the_second_scan(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(scan_segmenter, "segment_parts", stopped_in_the_second_scan)
    out = tmp_path / "out"
    words = ["predict", str(run), str(scans), "--out", str(out), "--quiet"]
    assert main(words) == 128 + signal.SIGTERM
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"selfvox: error: {out}: stopped by SIGTERM; scan_1.nii.gz was being worked on and is "
        "lost; 2 of 4 scans are done; run the same command again to continue"
    )
    assert "a_torn.nii.gz" in (out / "rejected.csv").read_text()
    # a night that is stopped before it meets one keeps the table
    monkeypatch.setattr(scan_loop, "_read", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert main(words) == 128 + signal.SIGTERM
    assert "a_torn.nii.gz" in (out / "rejected.csv").read_text()


def test_the_tasks_of_an_array_share_the_scans(scripts, run, scans, tmp_path):
    paths = sorted(scans.iterdir())
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    words = [scripts / "array.sh", run, tmp_path / "list.txt", tmp_path / "out"]
    # in the place of SLURM's own: it runs its arguments
    (scripts / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (scripts / "srun").chmod(0o755)
    for task in (1, 2):
        subprocess.run(
            words,
            env=environment(scripts, SLURM_ARRAY_TASK_ID=str(task)),
            check=True,
            capture_output=True,
        )
    predicted = sorted(path.name for path in tmp_path.glob("out/*/*.nii.gz"))
    assert predicted == ["scan_0.nii.gz", "scan_1.nii.gz"]
