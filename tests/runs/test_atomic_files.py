import csv
import errno
import math
import os

import numpy as np
import pytest

from selfvox.errors import ResourceError
from selfvox.runs import atomic_files


def test_a_file_appears_whole_and_the_temporary_one_is_gone(tmp_path):
    path = tmp_path / "a.json"
    with atomic_files.atomic_write(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.suffix == ".json"
        assert temporary.name.startswith(".")
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "half"


def test_an_error_while_writing_leaves_what_was_there(tmp_path):
    atomic_files.write_text(tmp_path / "a", "before")
    with pytest.raises(UnicodeEncodeError):
        atomic_files.write_text(tmp_path / "a", "half \udcff")
    assert (tmp_path / "a").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there_and_says_so(tmp_path, monkeypatch, call, number):
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


def test_other_failures_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_files.write_text(tmp_path / "nowhere" / "a", "x")


def test_content_and_folder_are_on_the_disk_before_and_after_the_renaming(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, atomic_files.Path.replace
    monkeypatch.setattr(
        atomic_files.os, "fsync", lambda number: order.append("fsync") or fsync(number)
    )
    monkeypatch.setattr(
        atomic_files.Path,
        "replace",
        lambda one, other: order.append("rename") or replace(one, other),
    )
    atomic_files.write_text(tmp_path / "a", "x")
    assert order == ["fsync", "rename", "fsync"]


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
