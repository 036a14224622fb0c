"""`predict --dicom` writes segmentations of DICOM series, and refuses others."""

import builtins

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import uid

import selfvox
from selfvox.errors import DataError, UsageError

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


def test_codes_of_a_table_are_those_of_the_segments(run, tmp_path):
    save(tmp_path / "scan", series(FrameOfReferenceUID=uid.generate_uid()))
    table = tmp_path / "codes.csv"
    table.write_text("name,code,scheme,meaning\norgan,10200004,SCT,Liver\n")
    settings = {"out": tmp_path / "out", "dicom": "binary", "device": "cpu"}
    (path,) = selfvox.predict(run, tmp_path / "scan", codes=table, **settings)
    segmentation = highdicom.seg.segread(path.with_name(path.name.replace(".nii.gz", ".dcm")))
    found = {
        description.segment_label: description.segmented_property_type
        for description in map(segmentation.get_segment_description, (1, 2))
    }
    assert found["organ"] == highdicom.sr.CodedConcept("10200004", "SCT", "Liver")
    assert found["organ"].meaning == "Liver"
    assert found["lesion"].value == "52988006"  # by its name
    # other codes would be another prediction
    table.write_text("name,code,scheme,meaning\norgan,64033007,SCT,Kidney\n")
    with pytest.raises(UsageError, match="codes"):
        selfvox.predict(run, tmp_path / "scan", codes=table, **settings)
    with pytest.raises(UsageError, match="codes: are those of DICOM segmentations"):
        selfvox.predict(run, tmp_path / "scan", out=tmp_path / "other", codes=table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,code\norgan,1\n", r"codes.csv: has no column scheme, meaning; write the columns"),
        (
            "name,code,scheme,meaning\norgn,1,SCT,a\n",
            r"line 2: 'orgn' is no class of the run; did you mean 'organ'\?",
        ),
        (
            "name,code,scheme,meaning\norgan,1,SCT,a\norgan,2,SCT,b\n",
            "line 3: organ is there twice",
        ),
        ("name,code,scheme,meaning\norgan,,SCT,a\n", "line 2: code needs 1 to 16 characters"),
    ],
)
def test_a_table_of_codes_that_does_not_fit_is_refused(run, tmp_path, text, message):
    save(tmp_path / "scan", series(FrameOfReferenceUID=uid.generate_uid()))
    (tmp_path / "codes.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        selfvox.predict(
            run,
            tmp_path / "scan",
            out=tmp_path / "out",
            dicom="binary",
            codes=tmp_path / "codes.csv",
        )
    assert not (tmp_path / "out").exists()
