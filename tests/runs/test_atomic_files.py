"""Files are complete or missing, never half-written; tables are safe in a spreadsheet."""

import csv
import errno
import math
import os
import stat

import numpy as np
import pytest
import torch

from selfvox.errors import ResourceError
from selfvox.runs import atomic_files, weights
from selfvox.runs.progress import echo_once


def test_a_file_appears_complete_and_the_temporary_one_is_gone(tmp_path):
    path = tmp_path / "a.json"
    with atomic_files.atomic_write(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.suffix == ".json"
        assert temporary.name.startswith(".")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "half"


@pytest.mark.fault("F2", "an error while a file is written", "the old file stays")
def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    atomic_files.write_text(tmp_path / "a", "before")
    with pytest.raises(UnicodeEncodeError):
        atomic_files.write_text(tmp_path / "a", "half \udcff")
    assert (tmp_path / "a").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.fault("F8", "a full disk while a file is written", "the old file stays; reported")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_is_reported(tmp_path, monkeypatch, call, number):
    atomic_files.write_text(tmp_path / "a", "before")

    def full(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(
            *(atomic_files.os, "fsync", full)
            if call == "fsync"
            else (atomic_files.Path, "replace", full)
        )
        with pytest.raises(ResourceError, match=r"a: the disk is full; free some space") as error:
            atomic_files.write_text(tmp_path / "a", "after")
    assert error.value.exit_code == 5
    assert (tmp_path / "a").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_other_system_errors_are_passed_on(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_files.write_text(tmp_path / "nowhere" / "a", "x")


@pytest.mark.fault("F29", "order of fsync and rename", "content, rename, folder")
def test_the_content_is_fsynced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    order = []
    fsync = os.fsync
    replace = atomic_files.Path.replace
    monkeypatch.setattr(
        atomic_files.os, "fsync", lambda number: order.append("fsync") or fsync(number)
    )
    monkeypatch.setattr(
        atomic_files.Path,
        "replace",
        lambda source, target: order.append("rename") or replace(source, target),
    )
    atomic_files.write_text(tmp_path / "a", "x")
    assert order == ["fsync", "rename", "fsync"]


def test_temporary_files_of_killed_writers_are_removed_and_others_stay(tmp_path):
    (tmp_path / ".99.part.a.json").write_text("half")
    (tmp_path / ".hidden").write_text("mine")
    atomic_files.write_text(tmp_path / "a.json", "complete")
    atomic_files.remove_temporary_files(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".hidden", "a.json"]


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError):
        atomic_files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("X8", "formulas in tables", "quoted")
def test_no_cell_is_a_formula_and_numbers_stay_numbers(tmp_path):
    cells = [
        "=cmd()",
        "+1",
        "-x",
        "@a",
        "\tb",
        "plain",
        -1.5,
        "a,b\n",
        1 / 3,
        math.nan,
        None,
        True,
        np.float64(-0.25),
    ]
    atomic_files.write_csv(tmp_path / "a.csv", ["name"], [[cell] for cell in cells])
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = [row[0] for row in csv.reader(file)]
    assert rows == [
        "name",
        "'=cmd()",
        "'+1",
        "'-x",
        "'@a",
        "'\tb",
        "plain",
        "-1.5",
        "a,b\n",
        "0.333333",
        "",
        "",
        "yes",
        "-0.25",
    ]


def test_a_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, example B.1
    assert (
        atomic_files.sha256(tmp_path / "a")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.fault(
    "E32 F29",
    "fsync of a folder fails with EINVAL, EACCES and others",
    "goes on; printed once",
)
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES])
def test_a_file_system_that_cannot_fsync_a_folder_is_used_and_this_is_printed_once(
    tmp_path, monkeypatch, capsys, number
):
    echo_once.cache_clear()
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    for name in ("a", "b"):
        atomic_files.write_text(tmp_path / name, "x")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["x", "x"]
    assert capsys.readouterr().err.count("cannot fsync a folder") == 1


def failing_fsync(monkeypatch, number: int, times: int) -> list[float]:
    """Let fsync of files fail so often; returns the seconds that were waited, filled later."""
    fsync = os.fsync
    failures = iter([number] * times)
    waited: list[float] = []

    def fail(descriptor):
        failure = next(failures, None)
        if failure is not None:
            # as the kernel does, which forgets the pages that it could not write
            os.ftruncate(os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY), 0)
            raise OSError(failure, os.strerror(failure))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(atomic_files.time, "sleep", waited.append)
    return waited


@pytest.mark.fault(
    "F29",
    "fsync of a file fails with EIO",
    "tried three times, then an error; the old file stays",
)
def test_a_file_is_written_again_after_an_input_output_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "a").write_text("old")
    waited = failing_fsync(monkeypatch, errno.EIO, times=3)
    with pytest.raises(OSError, match="Input/output"):
        atomic_files.write_text(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    assert waited == list(atomic_files.RETRY_IO_ERROR_AFTER_S)
    failing_fsync(monkeypatch, errno.EIO, times=2)
    atomic_files.write_text(tmp_path / "a", "new")
    # a second fsync of the same file would have left it empty
    assert (tmp_path / "a").read_text() == "new"
    assert f"{tmp_path / 'a'}: Input/output error; writing again" in capsys.readouterr().err


def test_weights_are_written_again_and_other_errors_end_at_once(tmp_path, monkeypatch):
    failing_fsync(monkeypatch, errno.EIO, times=1)
    weights.save_tensors(tmp_path / "w.safetensors", {"a": torch.arange(3.0)})
    assert weights.load_tensors(tmp_path / "w.safetensors")["a"].tolist() == [0, 1, 2]
    waited = failing_fsync(monkeypatch, errno.EROFS, times=1)
    with pytest.raises(OSError, match="Read-only"):
        atomic_files.write_text(tmp_path / "a", "x")
    assert waited == []


@pytest.mark.fault("X2l", "a link in place of a temporary file", "not followed")
def test_the_temporary_file_is_no_link_to_a_file_that_would_be_overwritten(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".{os.getpid()}.part.a").symlink_to(victim)
    atomic_files.write_text(tmp_path / "a", "x")
    assert victim.read_text() == "precious"
    assert (tmp_path / "a").read_text() == "x"
