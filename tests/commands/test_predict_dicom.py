"""`predict --dicom` writes segmentations of DICOM series, and refuses others."""

import builtins

import highdicom
import nibabel as nib
import numpy as np
import pytest
from pydicom import uid

import selfvox
from selfvox.errors import UsageError

from ..data.sources.test_dicom import save, series


def test_a_series_gets_a_segmentation_next_to_its_label(run, tmp_path):
    save(tmp_path / "scan", series(FrameOfReferenceUID=uid.generate_uid()))
    for _ in range(2):  # the second time both are kept
        (path,) = selfvox.predict(
            run, tmp_path / "scan", out=tmp_path / "out", dicom=True, device="cpu"
        )
    label = np.asarray(nib.load(path).dataobj)
    segmentation = highdicom.seg.segread(path.with_name(path.name.replace(".nii.gz", ".dcm")))
    combined = segmentation.get_volume(combine_segments=True, skip_overlap_checks=True).array
    assert sorted(np.bincount(combined.ravel(), minlength=3)) == sorted(
        np.bincount(label.ravel(), minlength=3)
    )


def test_other_scans_and_a_missing_library_are_refused(run, scans, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="none of the scans is a DICOM series"):
        selfvox.predict(run, scans, out=tmp_path / "out", dicom=True)
    assert not (tmp_path / "out").exists()
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "highdicom":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"needs highdicom; .*selfvox\[dicom-seg\]"):
        selfvox.predict(run, scans, out=tmp_path / "out", dicom=True)
