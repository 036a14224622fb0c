"""Checkpoints survive kills, damage and full disks."""

import errno
import os
import subprocess
import sys

import pytest
import torch

from selfvox.errors import NumericalError, ResourceError, WeightsError
from selfvox.runs import atomic_files
from selfvox.runs.checkpoints import Checkpoint
from selfvox.runs.run_folder import Run, open_run
from selfvox.settings.verbs import Pretrain


def settings(tmp_path, **changed):
    return Pretrain(scans=tmp_path / "scans", out=tmp_path / "run", **changed)


def checkpoint(step):
    return Checkpoint(step, {"weights.a": torch.full((3,), float(step))}, {"skipped": 0})


@pytest.fixture
def opened(tmp_path):
    with open_run(tmp_path / "run", settings(tmp_path), resume=False) as opened:
        yield opened


def test_a_checkpoint_is_read_back_as_it_was_written(opened):
    opened.save_checkpoint(
        Checkpoint(7, {"weights.a": torch.randn(3), "b": torch.tensor(2)}, {"skipped": 1})
    )
    back = opened.last_checkpoint()
    assert back.step == 7
    assert back.state == {"skipped": 1}
    assert back.tensors["b"].item() == 2


def test_the_last_two_checkpoints_are_kept(opened):
    for step in (1, 2, 3):
        opened.save_checkpoint(checkpoint(step))
    assert sorted(path.stem for path in opened.path.glob("checkpoints/*.json")) == [
        "step-00000002",
        "step-00000003",
    ]
    assert opened.last_checkpoint().step == 3


@pytest.mark.fault(
    "F10 F11 F34",
    "the newest checkpoint cut, empty, changed by a bit, gone",
    "the one before is used",
)
@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "gone", "last byte"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(opened, damage):
    for step in (1, 2):
        opened.save_checkpoint(checkpoint(step))
    file = opened.path / "checkpoints" / "step-00000002.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[-3] ^= 1
        file.write_bytes(
            {"cut": content[: len(content) // 2], "empty": b"", "flip": content}.get(
                damage, content[:-1]
            )
        )
    assert opened.last_checkpoint().step == 1


@pytest.mark.fault(
    "F34 K1",
    "the record of the newest checkpoint damaged",
    "the one before is used",
)
@pytest.mark.parametrize(
    "change", [('"step": 2', '"step": 3'), ('"skipped": 0', '"skipped": 7'), ("{", "[")]
)
def test_a_damaged_record_gives_way_to_the_one_before(opened, change):
    for step in (1, 2):
        opened.save_checkpoint(checkpoint(step))
    record = opened.path / "checkpoints" / "step-00000002.json"
    record.write_text(record.read_text().replace(*change))
    assert opened.last_checkpoint().step == 1


@pytest.mark.fault("K1", "pipe, folder and link in place of a record", "the one before is used")
def test_a_record_of_another_kind_gives_way_to_the_one_before(opened):
    for step in (1, 2):
        opened.save_checkpoint(checkpoint(step))
    (opened.path / "checkpoints" / "step-00000002.json").write_text("[]")
    assert opened.last_checkpoint().step == 1


@pytest.mark.fault("F12 K7", "a checkpoint of a newer version", "refused as such")
def test_a_checkpoint_of_a_newer_version_is_not_called_damaged(opened):
    opened.save_checkpoint(checkpoint(1))
    record = opened.path / "checkpoints" / "step-00000001.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(WeightsError, match="format 2 is not known to this version; update"):
        opened.last_checkpoint()


def test_two_intact_checkpoints_are_kept_where_a_later_one_is_damaged(opened):
    for step in (1, 3):
        opened.save_checkpoint(checkpoint(step))
    (opened.path / "checkpoints" / "step-00000003.safetensors").write_bytes(b"")
    assert opened.last_checkpoint().step == 1
    opened.save_checkpoint(checkpoint(2))
    assert sorted(path.name for path in opened.path.glob("checkpoints/*")) == [
        f"step-0000000{step}.{kind}" for step in (1, 2) for kind in ("json", "safetensors")
    ]


@pytest.mark.fault("F10", "only damaged checkpoints", "exit code 4")
def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(opened):
    opened.save_checkpoint(checkpoint(1))
    (opened.path / "checkpoints" / "step-00000001.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="every checkpoint is damaged"):
        opened.last_checkpoint()


@pytest.mark.fault(
    "F2",
    "killed while a checkpoint is written",
    "the one before is used, temporary files go",
)
def test_a_kill_while_writing_keeps_the_checkpoint_before(tmp_path):
    with open_run(tmp_path / "run", settings(tmp_path), resume=False) as opened:
        opened.save_checkpoint(checkpoint(1))
    folder = opened.path / "checkpoints"
    # killed in the midst of the weights, and killed between weights and record
    (folder / ".99.part.step-00000002.safetensors").write_bytes(b"half")
    (folder / "step-00000003.safetensors").write_bytes(
        (folder / "step-00000001.safetensors").read_bytes()
    )
    with open_run(tmp_path / "run", settings(tmp_path), resume=True) as opened:
        assert opened.last_checkpoint().step == 1
        assert not list(folder.glob(".*.part.*"))
        opened.save_checkpoint(checkpoint(4))
        assert sorted(path.stem for path in folder.glob("*.safetensors")) == [
            "step-00000001",
            "step-00000004",
        ]


@pytest.mark.fault("F7", "a full disk while a checkpoint is written", "the one before stays")
def test_a_full_disk_keeps_the_checkpoint_before_and_no_temporary_files(opened, monkeypatch):
    opened.save_checkpoint(checkpoint(1))

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files.os, "fsync", full)
        with pytest.raises(ResourceError, match="disk is full"):
            opened.save_checkpoint(checkpoint(2))
    assert opened.last_checkpoint().step == 1
    assert not list((opened.path / "checkpoints").glob(".*"))


@pytest.mark.fault("F7", "a limit on the size of files", "exit code 5, the one before stays")
def test_a_file_over_the_size_limit_is_reported_as_a_full_disk_and_the_old_one_stays(tmp_path):
    code = """
import pathlib, resource, sys, torch
from selfvox.errors import ResourceError
from selfvox.runs.weights import load_tensors, save_tensors

path = pathlib.Path(sys.argv[1])
save_tensors(path, {"a": torch.ones(4)})
resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))
try:
    save_tensors(path, {"a": torch.zeros(5000)})
except ResourceError as error:
    print(error, len(load_tensors(path)["a"]), len(list(path.parent.iterdir())))
"""
    finished = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "a: the disk is full; free some space" in finished.stdout
    assert finished.stdout.endswith(" 4 1\n")


def test_a_folder_without_checkpoints_has_no_last_one(tmp_path):
    assert Run(tmp_path, {}).last_checkpoint() is None


@pytest.mark.fault("F21 K5", "NaN in weights", "never written")
def test_values_that_are_not_finite_are_never_written(opened):
    with pytest.raises(NumericalError, match="not finite"):
        opened.save_checkpoint(Checkpoint(1, {"weights.a": torch.tensor([1.0, float("nan")])}, {}))
    assert not list(opened.path.glob("checkpoints/step*"))
