"""`predict --dicom` writes segmentations of DICOM series, and refuses others."""

import builtins

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import uid

import selfvox
from selfvox.errors import UsageError

from ..data.sources.test_dicom import save, series


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_series_gets_a_segmentation_next_to_its_label(run, tmp_path, kind):
    save(tmp_path / "scan", series(FrameOfReferenceUID=uid.generate_uid()))
    for _ in range(2):  # the second time both are kept
        (path,) = selfvox.predict(
            run, tmp_path / "scan", out=tmp_path / "out", dicom=kind, device="cpu"
        )
    label = np.asarray(nib.load(path).dataobj)
    segmentation = highdicom.seg.segread(path.with_name(path.name.replace(".nii.gz", ".dcm")))
    combined = segmentation.get_volume(combine_segments=True, skip_overlap_checks=True).array
    assert sorted(np.bincount(combined.ravel(), minlength=3)) == sorted(
        np.bincount(label.ravel(), minlength=3)
    )


def test_maps_become_parametric_maps_with_a_part_for_each_class(run, tmp_path):
    save(tmp_path / "scan", series(FrameOfReferenceUID=uid.generate_uid()))
    maps = ("entropy", "variance")
    (path,) = selfvox.predict(
        run, tmp_path / "scan", out=tmp_path / "out", dicom="binary", passes=3, maps=maps
    )
    name = path.name.removesuffix(".nii.gz")
    for kind in maps:
        values = nib.load(tmp_path / "out" / "maps" / f"{name}_{kind}.nii.gz").get_fdata()
        read = pydicom.dcmread(tmp_path / "out" / "maps" / f"{name}_{kind}.dcm")
        assert read.SOPClassUID == uid.ParametricMapStorage
        stored = np.frombuffer(read.FloatPixelData, np.float32)
        # of every voxel and class, whatever the order of the frames
        np.testing.assert_allclose(np.sort(stored), np.sort(values.ravel()), atol=1e-5)
        # of a single part for all frames, else for each
        groups = [*read.SharedFunctionalGroupsSequence, *read.PerFrameFunctionalGroupsSequence]
        labels = {
            group.RealWorldValueMappingSequence[0].LUTExplanation
            for group in groups
            if "RealWorldValueMappingSequence" in group
        }
        expected = {"entropy": {"entropy"}}.get(
            kind, {f"{part}: variance" for part in ("background", "organ", "lesion")}
        )
        assert labels == expected
    # the same again, and another type of segmentation is refused
    settings = {"out": tmp_path / "out", "passes": 3, "maps": maps}
    selfvox.predict(run, tmp_path / "scan", dicom="binary", **settings)
    with pytest.raises(UsageError, match="dicom"):
        selfvox.predict(run, tmp_path / "scan", dicom="labelmap", **settings)


def test_other_scans_and_a_missing_library_are_refused(run, scans, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="none of the scans is a DICOM series"):
        selfvox.predict(run, scans, out=tmp_path / "out", dicom="binary")
    assert not (tmp_path / "out").exists()
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "highdicom":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"needs highdicom; .*selfvox\[dicom-seg\]"):
        selfvox.predict(run, scans, out=tmp_path / "out", dicom="binary")
