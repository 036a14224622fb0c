"""The estimate of what scans need is that of all scans, from a sample of them."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from selfvox.data.sources import find_dataset
from selfvox.errors import DataError
from selfvox.machine import estimate


def write(folder, count, edge, name="p"):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for number in range(count):
        values = rng.normal(100, 30, (edge,) * 3).astype(np.float32)
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"{name}{number:02}.nii")


def test_the_store_of_a_sample_is_that_of_all_scans(tmp_path):
    write(tmp_path / "scans", count=40, edge=8)
    needs = estimate.estimate_needs(find_dataset(tmp_path / "scans"))
    assert needs.scans == 40
    assert needs.read == 16
    assert needs.store_bytes == pytest.approx(40 * 8**3 * 2)


def test_the_largest_scan_decides_about_memory(tmp_path):
    write(tmp_path / "scans", count=40, edge=8)
    write(tmp_path / "scans", count=1, edge=24, name="large")
    needs = estimate.estimate_needs(find_dataset(tmp_path / "scans"))
    base = estimate.estimate_needs(find_dataset(tmp_path / "scans" / "p00.nii")).worker_bytes
    assert needs.worker_bytes - base == pytest.approx((24**3 - 8**3) * 44)


def test_time_bounds_the_sample_and_one_scan_is_read_in_any_case(tmp_path):
    write(tmp_path / "scans", count=40, edge=8)
    hours = iter(range(0, 10**9, 3600))
    needs = estimate.estimate_needs(find_dataset(tmp_path / "scans"), lambda: next(hours))
    assert needs.read == 1
    assert needs.store_bytes == pytest.approx(40 * 8**3 * 2)


def test_damaged_scans_are_left_out_and_only_such_are_refused(tmp_path):
    write(tmp_path / "scans", count=4, edge=8)
    (tmp_path / "scans" / "p00.nii").write_bytes(b"damaged" * 10_000)
    assert estimate.estimate_needs(find_dataset(tmp_path / "scans")).read == 3
    for path in (tmp_path / "scans").iterdir():
        path.write_bytes(b"damaged" * 1000)
    with pytest.raises(DataError, match="p0"):
        estimate.estimate_needs(find_dataset(tmp_path / "scans"))
