"""A fine-tuning with unlabelled scans that is killed in any stage goes on to the same weights."""

import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import selfvox
from selfvox.commands import finetune
from selfvox.data import phantom
from selfvox.registration import copies, register, registered_pairs, transfer
from selfvox.registration.register import Registration
from selfvox.runs.atomic_files import sha256
from selfvox.training import network_teacher, pseudo_labels, segmentation_objective, unlabelled

OPTIONS = {"encoder": "none", "labels": 2, "steps": 4, "workers": 1, "validate_every": 2}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Draw no curves: they take longer than the training."""
    monkeypatch.setattr(finetune, "draw_curve", lambda *_: None)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabelled") / "scans"
    phantom.write(folder, "shapes", count=2, labelled=0, seed=9)
    for path in (folder / "images").iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    (folder / "dataset.json").unlink()
    return folder / "images"


def weights(run):
    return sha256(run / "network" / "weights.safetensors")


def killed_at(function, number):
    """The function, which ends the process at one of its calls."""
    calls = count(1)

    def counting(*arguments):
        if next(calls) == number:
            raise KeyboardInterrupt
        return function(*arguments)

    return counting


def test_a_run_taught_by_a_network_resumes_to_the_same_weights(
    shapes_store, tmp_path, small, scans, monkeypatch
):
    monkeypatch.setattr(network_teacher, "LEAST_DICE", 0.0)
    monkeypatch.setattr(pseudo_labels, "LEAST_TRUST", 0.0)
    monkeypatch.setattr(pseudo_labels, "PASSES", 2)
    options = {**small, **OPTIONS, "unlabelled": scans, "teacher": "network"}
    options["rounds"] = 2
    selfvox.finetune(shapes_store, out=tmp_path / "alone", **options)
    out = tmp_path / "resumed"
    objective = segmentation_objective.SegmentationObjective
    forward, label_scan = objective.forward, pseudo_labels.label_scan
    kills = [
        (objective, "forward", killed_at(forward, 4)),  # the last step of the first teacher
        (pseudo_labels, "label_scan", killed_at(label_scan, 2)),
        (objective, "forward", killed_at(forward, 4 + 3)),  # the third step of the last training
    ]
    for number, (owner, name, killed) in enumerate(kills):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, killed)
            with pytest.raises(KeyboardInterrupt):
                selfvox.finetune(shapes_store, out=out, resume=number > 0, **options)
    assert (out / "network").exists()  # of the first validation
    selfvox.finetune(shapes_store, out=out, resume=True, **options)
    for folder in ("teacher-1", "teacher-2", "."):
        assert weights(out / folder) == weights(tmp_path / "alone" / folder)


def quick_register(moving, fixed, moving_spacing_mm, fixed_spacing_mm):
    """In place of greedy: waves of a voxel that follow from both scans."""
    size = fixed.shape[1:]
    phase = float(moving.mean() + 2 * fixed.mean())
    waves = np.sin(np.indices(size, dtype=np.float32) / 4 + phase)
    return Registration(np.eye(len(size) + 1), waves.astype(np.float32))


def registers_quickly(patched, calls):
    """Replace the registration; `calls` gets the shapes of each."""

    def counted(*arguments):
        calls.append(None)
        return quick_register(*arguments)

    patched.setattr(register, "register", counted)
    patched.setattr(register, "check_installed", lambda: None)
    patched.setattr(unlabelled, "check_installed", lambda: None)
    # waves do not make the scans more alike, nor carry labels
    patched.setattr(registered_pairs, "TOLERANCE", 2.0)
    patched.setattr(transfer, "LEAST_DICE", 0.0)


def atlas_options(small, scans):
    return {**small, **OPTIONS, "labels": 1, "unlabelled": scans, "teacher": "atlas"}


@pytest.fixture
def alone(shapes_store, tmp_path, small, scans, monkeypatch):
    """The weights of a run taught by the atlas that nothing interrupts, and its registrations."""
    calls = []
    with monkeypatch.context() as patched:
        registers_quickly(patched, calls)
        out = selfvox.finetune(shapes_store, out=tmp_path / "alone", **atlas_options(small, scans))
    return weights(out), len(calls)


def test_a_run_taught_by_the_atlas_resumes_to_the_same_weights_from_every_stage(
    shapes_store, tmp_path, small, scans, monkeypatch, alone
):
    expected, registrations = alone
    assert registrations == 4  # two to check, two to make copies
    out = tmp_path / "resumed"
    calls = []
    registers_quickly(monkeypatch, calls)
    quick = register.register
    objective = segmentation_objective.SegmentationObjective
    kills = [
        # during the last registration: one pair has its copies
        (register, "register", killed_at(quick, 4)),
        # the registration is done, and no copy of it
        (registered_pairs, "_write_copy", killed_at(registered_pairs._write_copy, 1)),
        # between two copies
        (registered_pairs, "_write_copy", killed_at(registered_pairs._write_copy, 2)),
        # the arrays of a copy are written, and not what says that they are complete
        (registered_pairs.store, "write_entry", killed_at(registered_pairs.store.write_entry, 3)),
        # all copies, and not the record of the pair
        (registered_pairs, "write_checked", killed_at(registered_pairs.write_checked, 1)),
        # all pairs, and no picture
        (copies, "draw_pairs", killed_at(copies.draw_pairs, 1)),
        # before the first validation, and after it
        (objective, "forward", killed_at(objective.forward, 2)),
        (objective, "forward", killed_at(objective.forward, 4)),
    ]
    for number, (owner, name, killed) in enumerate(kills):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, killed)
            with pytest.raises(KeyboardInterrupt):
                selfvox.finetune(
                    shapes_store, out=out, resume=number > 0, **atlas_options(small, scans)
                )
    # three were done before the first kill; the fourth again after each kill before its record
    assert len(calls) == 3 + 5
    selfvox.finetune(shapes_store, out=out, resume=True, **atlas_options(small, scans))
    assert len(calls) == 3 + 5
    assert weights(out) == expected
    assert (out / "copies" / "copies.png").exists()


KILLED_IN_A_COPY = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import pytest, selfvox
from selfvox.runs import atomic_files
from tests.commands.test_finetune_unlabelled_resume import atlas_options, registers_quickly
from tests.conftest import SMALL

store, scans, out = sys.argv[2:]
fsync = os.fsync

def killed(handle):
    # the second array of a copy is in a temporary file
    if "/copies/labels/" in os.readlink(f"/proc/self/fd/{handle}"):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(handle)

os.fsync = killed
with pytest.MonkeyPatch.context() as patched:
    registers_quickly(patched, [])
    selfvox.finetune(store, out=out, **atlas_options(SMALL, scans))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to find the file")
def test_a_process_killed_while_it_writes_a_copy_goes_on_to_the_same_weights(
    shapes_store, tmp_path, small, scans, monkeypatch, alone
):
    expected, _ = alone
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED_IN_A_COPY, ROOT, shapes_store, scans, out]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (written,) = (out / "copies" / "labels").iterdir()
    assert ".part." in written.name
    registers_quickly(monkeypatch, [])
    selfvox.finetune(shapes_store, out=out, resume=True, **atlas_options(small, scans))
    assert weights(out) == expected
    assert not list((out / "copies").rglob(".*.part.*"))
