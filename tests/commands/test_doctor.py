"""`doctor` prints a line for each check of the machine, and its exit code is that of the worst."""

from __future__ import annotations

import importlib.metadata

import pytest

import selfvox
from selfvox.cli import main
from selfvox.data import phantom
from selfvox.machine import convolutions, file_system, limits, versions


@pytest.fixture(autouse=True)
def one_small_layer(monkeypatch):
    monkeypatch.setattr(convolutions, "LAYERS", convolutions.LAYERS[-1:])


def test_every_check_has_a_line_and_what_is_not_ok_has_a_remedy(tmp_path, capsys):
    lines = selfvox.doctor(out=tmp_path / "not" / "yet")
    about = {line["about"] for line in lines}
    assert about >= {"versions", "GPU", "threads", "memory", "shared memory", "open files"}
    assert about >= {"cache", "file system", "locks", "fsync", "rename", "mapped files"}
    assert about >= {"disk", "convolutions"}
    assert all(line["remedy"] for line in lines if line["outcome"] != "ok")
    assert all(line["outcome"] != "fail" for line in lines)
    printed = capsys.readouterr().out
    assert all(name in printed for name in about)
    assert list(tmp_path.iterdir()) == []


def test_a_warning_ends_with_0_and_a_failure_with_5(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(limits, "private_folder", lambda name: None)
    command = ["doctor", "--out", str(tmp_path), "--device", "cpu"]
    assert main(command) == 0
    assert "XDG_CACHE_HOME" in capsys.readouterr().out
    version = importlib.metadata.version
    old_monai = lambda name: "1.5.0" if name == "monai" else version(name)  # noqa: E731
    monkeypatch.setattr(versions.check_versions, "__defaults__", (old_monai,))
    assert main(command) == 5
    printed = capsys.readouterr()
    assert "pip install 'monai>=1.6'" in " ".join(printed.out.split())
    assert "versions: " in printed.err


def test_scans_give_the_estimates_and_a_store_needs_none(tmp_path, monkeypatch, capsys):
    phantom.write(tmp_path / "scans", "shapes", count=8)
    lines = {line["about"]: line for line in selfvox.doctor(tmp_path / "scans", out=tmp_path)}
    assert "a store of 8 scans" in lines["disk"]["text"]
    assert "to prepare with" in lines["memory"]["text"]
    selfvox.prepare(tmp_path / "scans", out=tmp_path / "store", workers=1)
    lines = {line["about"]: line for line in selfvox.doctor(tmp_path / "store", out=tmp_path)}
    assert "a store of" not in lines["disk"]["text"]
    assert main(["doctor", str(tmp_path / "absent")]) == 3
    assert "no such file or folder" in capsys.readouterr().err


def test_a_device_that_is_missing_fails_in_one_line(tmp_path, capsys):
    assert main(["doctor", "--out", str(tmp_path), "--device", "mps"]) == 5
    assert "GPU: " in capsys.readouterr().err


def test_the_folder_above_is_tried_where_out_does_not_exist(tmp_path):
    assert file_system.existing_parent(tmp_path / "a" / "b") == tmp_path
