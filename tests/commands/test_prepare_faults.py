"""Scans with odd names, and scans that vanished since their store was made."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import selfvox
from selfvox.data import phantom
from selfvox.data.preparation.store import open_store
from selfvox.errors import UsageError


@pytest.mark.fault(
    "F26c",
    "scans or labels of a store that are gone, as with a disk half unmounted",
    "few are named; more than half are refused",
)
@pytest.mark.parametrize(("kind", "folder"), [("scans", "images"), ("labels", "labels")])
def test_scans_and_labels_that_vanished_are_named_and_many_of_them_refused(
    kind: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phantom.write(tmp_path / "scans", "shapes", count=4)
    (tmp_path / "scans" / "dataset.json").unlink()
    selfvox.prepare(tmp_path / "scans", out=tmp_path / "store", workers=1)
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.*")}
    first, second, third, _ = sorted((tmp_path / "scans" / folder).iterdir())
    for path in (first, second, third):
        path.rename(tmp_path / path.name)
    with pytest.raises(UsageError, match=f"3 of the 4 {kind} in this store are gone, such as"):
        selfvox.prepare(tmp_path / "scans", out=tmp_path / "store", workers=1)
    assert {path: path.read_bytes() for path in before} == before
    for path in (second, third):
        (tmp_path / path.name).rename(path)
    selfvox.prepare(tmp_path / "scans", out=tmp_path / "store", workers=1)
    assert f"1 of the 4 {kind} in this store are gone, such as sub-001" in capsys.readouterr().err


@pytest.mark.fault(
    "C15",
    "names that begin with - or a space, 240 bytes, line break, escape, not UTF-8",
    "escaped and used",
)
@pytest.mark.parametrize(
    "name",
    ["-g", " h ", "b\nc", "d\x1b[31m", "é" * 120, "<img>", os.fsdecode(b"e\xff\xfe")],
    ids=["dash", "spaces", "line break", "escape", "long", "markup", "not UTF-8"],
)
def test_a_scan_with_an_odd_name_is_prepared(name: str, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for seed, stem in enumerate((name, "plain")):
        values = np.random.default_rng(seed).normal(100, 30, (8, 8, 8))
        # nibabel refuses some of these names
        content = nib.Nifti1Image(values.astype(np.float32), np.eye(4)).to_bytes()
        (tmp_path / "scans" / f"{stem}.nii").write_bytes(content)
    selfvox.prepare(tmp_path / "scans", out=tmp_path / "store", workers=1)
    cases = open_store(tmp_path / "store").cases
    assert len(cases) == 2
    assert all(case.id.isprintable() for case in cases)
