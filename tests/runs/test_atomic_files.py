"""Files are complete or missing, never half-written; tables are safe in a spreadsheet."""

import csv
import errno
import math
import os
import threading

import numpy as np
import pytest

from selfvox.errors import BusyError, ResourceError
from selfvox.runs import atomic_files


def test_a_file_appears_complete_and_the_temporary_one_is_gone(tmp_path):
    path = tmp_path / "a.json"
    with atomic_files.atomic_write(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.suffix == ".json"
        assert temporary.name.startswith(".")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "half"


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    atomic_files.write_text(tmp_path / "a", "before")
    with pytest.raises(UnicodeEncodeError):
        atomic_files.write_text(tmp_path / "a", "half \udcff")
    assert (tmp_path / "a").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


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


def test_a_lock_leaves_no_file_behind_and_the_folder_can_be_locked_again(tmp_path):
    for _ in range(2):
        with atomic_files.folder_lock(tmp_path):
            assert (tmp_path / ".lock").read_text() == str(os.getpid())
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), atomic_files.folder_lock(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_lock_a_folder_in_turns_never_two_have_it_at_once(tmp_path):
    inside = []
    most = []

    def lock_often():
        for _ in range(100):
            try:
                with atomic_files.folder_lock(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except BusyError:
                pass

    threads = [threading.Thread(target=lock_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) > 50
    assert max(most) == 1


def test_a_lock_file_that_was_removed_between_opening_and_locking_is_no_lock(tmp_path, monkeypatch):
    real = atomic_files.fcntl.flock
    removed = []

    def remove_first(file, how):
        if not removed:
            (tmp_path / ".lock").unlink()
            removed.append(1)
        real(file, how)

    monkeypatch.setattr(atomic_files.fcntl, "flock", remove_first)
    with (
        atomic_files.folder_lock(tmp_path),
        # of the file that others open too
        pytest.raises(BusyError),
        atomic_files.folder_lock(tmp_path),
    ):
        pass
