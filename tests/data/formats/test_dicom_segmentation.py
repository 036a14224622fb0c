"""DICOM segmentations, read back by highdicom and pydicom."""

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.sr.codedict import codes

from selfvox.data import sources
from selfvox.data.formats.dicom_map import write_parametric_map
from selfvox.data.formats.dicom_segmentation import _codes, write_segmentation
from selfvox.data.preparation.prepare_case import read_case
from selfvox.errors import DataError

from ..sources.test_dicom import save, series, turned

CLASSES = {0: "background", 2: "left kidney", 5: "tumour"}


@pytest.fixture(params=[(1.0, 0, 0, 0, 1, 0), turned(20, 30)], ids=["straight", "oblique"])
def scan(request, tmp_path):
    """A series, as it was written and as it is read."""
    slices = series(directions=request.param, FrameOfReferenceUID=uid.generate_uid())
    folder = save(tmp_path / "scan", slices)
    case = sources.find_dataset(folder).cases[0]
    return slices, case, read_case(case, 1)


def written(path, label, scan):
    _, case, image = scan
    write_segmentation(path, label, image, case.images, CLASSES)
    return highdicom.seg.segread(path)


def test_every_frame_is_the_label_on_its_slice(tmp_path, scan):
    slices, _, image = scan
    label = np.random.default_rng(0).choice([0, 2, 5], image.shape).astype(np.uint16)
    object_ = written(tmp_path / "label.dcm", label, scan)
    by_slice = {slice_.SOPInstanceUID: slice_ for slice_ in slices}
    assert object_.number_of_segments == 2
    frames = object_.get_pixels_by_source_instance(
        [slice_.SOPInstanceUID for slice_ in slices], ignore_spatial_locations=True
    )
    for number, slice_ in enumerate(slices):
        # where the slice is in the scan, by its own position
        position = np.array(slice_.ImagePositionPatient, float)
        at = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ image.affine) @ [*position, 1]
        plane = round(float(at[2]))
        for segment, value in enumerate((2, 5)):
            expected = (label[:, :, plane] == value).T
            np.testing.assert_array_equal(frames[number, :, :, segment], expected)
    for frame in object_.PerFrameFunctionalGroupsSequence:
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        source = by_slice[reference.ReferencedSOPInstanceUID]
        np.testing.assert_allclose(
            frame.PlanePositionSequence[0].ImagePositionPatient,
            source.ImagePositionPatient,
            atol=1e-3,
        )
    shared = object_.SharedFunctionalGroupsSequence[0]
    np.testing.assert_allclose(
        shared.PlaneOrientationSequence[0].ImageOrientationPatient,
        slices[0].ImageOrientationPatient,
        atol=1e-6,
    )


def test_it_belongs_to_the_study_and_not_to_the_series(tmp_path, scan):
    slices, _, image = scan
    written(tmp_path / "label.dcm", np.full(image.shape, 2), scan)
    plain = pydicom.dcmread(tmp_path / "label.dcm")
    assert plain.StudyInstanceUID == slices[0].StudyInstanceUID
    assert plain.PatientID == slices[0].PatientID
    assert plain.SeriesInstanceUID != slices[0].SeriesInstanceUID
    assert plain.Modality == "SEG"
    labels = [segment.SegmentLabel for segment in plain.SegmentSequence]
    assert labels == ["left kidney", "tumour"]
    kidney, tumour = (part.SegmentedPropertyTypeCodeSequence[0] for part in plain.SegmentSequence)
    (side,) = kidney.SegmentedPropertyTypeModifierCodeSequence
    assert (kidney.CodeMeaning, side.CodeValue, side.CodeMeaning) == ("Kidney", "7771000", "Left")
    assert "SegmentedPropertyTypeModifierCodeSequence" not in tumour


def test_an_empty_label_is_written(tmp_path, scan):
    _, _, image = scan
    object_ = written(tmp_path / "label.dcm", np.zeros(image.shape, np.uint8), scan)
    assert not object_.pixel_array.any()


def test_interpolated_slices_cannot_be_referred_to(tmp_path):
    slices = series(count=12)
    del slices[5]
    folder = save(tmp_path / "scan", slices)
    case = sources.find_dataset(folder, "dicom:allow-gap").cases[0]
    image = read_case(case, 1)
    with pytest.raises(DataError, match="interpolated, and have no DICOM file to refer to"):
        write_segmentation(
            tmp_path / "label.dcm", np.zeros(image.shape), image, case.images, CLASSES
        )
    assert not (tmp_path / "label.dcm").exists()


def world_values(read, pixels):
    """(LPS position in mm, value) of all voxels of a multi-frame object, by its headers alone."""
    shared = read.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    along_row, along_column = orientation[:3], orientation[3:]
    down, right = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    rows, columns = np.indices(pixels.shape[1:])
    places = []
    for frame in read.PerFrameFunctionalGroupsSequence:
        first = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        offset = columns[..., None] * right * along_row + rows[..., None] * down * along_column
        places.append(first + offset)
    return np.stack(places), pixels


def check_places(read, pixels, values, image):
    """Each voxel of the object is where that of the scan is, and has its value."""
    places, stored = world_values(read, pixels)
    to_voxel = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ image.affine)
    at = places @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    index = np.rint(at).astype(int)
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    np.testing.assert_allclose(at * spacing, index * spacing, atol=1e-3)  # mm
    assert len({tuple(voxel) for voxel in index.reshape(-1, 3)}) == values.size
    np.testing.assert_allclose(stored, values[tuple(np.moveaxis(index, -1, 0))], rtol=1e-6)


def test_a_labelmap_has_the_class_of_each_voxel_in_its_place(tmp_path, scan):
    _, case, image = scan
    label = np.random.default_rng(0).choice([0, 2, 5], image.shape).astype(np.uint16)
    path = tmp_path / "label.dcm"
    write_segmentation(path, label, image, case.images, CLASSES, is_labelmap=True)
    read = pydicom.dcmread(path)
    assert read.SegmentationType == "LABELMAP"
    check_places(read, read.pixel_array, label, image)
    named = {segment.SegmentNumber: segment.SegmentLabel for segment in read.SegmentSequence}
    assert named == {0: "Background", 2: "left kidney", 5: "tumour"}
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True, relabel=False)
    assert sorted(volume.array.ravel()) == sorted(label.ravel())


def test_a_parametric_map_has_the_number_of_each_voxel_in_its_place(tmp_path, scan):
    slices, case, image = scan
    values = np.random.default_rng(0).random(image.shape, np.float32)
    path = tmp_path / "entropy.dcm"
    write_parametric_map(path, values, image, case.images, "entropy", ())
    read = pydicom.dcmread(path)
    pixels = np.frombuffer(read.FloatPixelData, np.float32)
    check_places(read, pixels.reshape(-1, read.Rows, read.Columns), values, image)
    volume = highdicom.imread(path).get_volume()
    corner = volume.map_indices_to_reference(np.array([[0, 0, 0]]))[0]
    to_lps = np.diag([-1, -1, 1, 1]) @ image.affine
    voxel = (np.linalg.inv(to_lps) @ [*corner, 1])[:3]
    assert values[tuple(np.rint(voxel).astype(int))] == volume.array[0, 0, 0]
    assert read.StudyInstanceUID == slices[0].StudyInstanceUID
    assert read.PatientID == slices[0].PatientID


def test_a_map_of_nothing_is_written(tmp_path, scan):
    _, case, image = scan
    empty = np.zeros((2, *image.shape), np.float32)
    path = tmp_path / "variance.dcm"
    write_parametric_map(path, empty, image, case.images, "variance", ["kidney", "tumour"])
    read = pydicom.dcmread(path)
    assert int(read.NumberOfFrames) == 2 * image.shape[2]
    assert not np.frombuffer(read.FloatPixelData, np.float32).any()


@pytest.mark.parametrize(
    ("name", "category", "kind"),
    [
        ("liver", "AnatomicalStructure", "Liver"),
        ("caudate nucleus", "AnatomicalStructure", "CaudateNucleus"),
        ("enhancing tumor", "MorphologicallyAbnormalStructure", "Neoplasm"),
        ("WM_lesion", "MorphologicallyAbnormalStructure", "Lesion"),
        ("class 7", "AnatomicalStructure", "AnatomicalStructure"),
    ],
)
def test_codes_follow_the_name(name, category, kind):
    assert _codes(name)[:2] == (getattr(codes.SCT, category), getattr(codes.SCT, kind))


@pytest.mark.parametrize(
    ("name", "kind", "side"),
    [
        ("left kidney", "Kidney", "Left"),
        ("Left-Hippocampus", "Hippocampus", "Left"),
        ("kidney_right", "Kidney", "Right"),
        ("liver", "Liver", None),
        ("bright spot", "AnatomicalStructure", None),
        ("left and right kidney", "AnatomicalStructure", None),
    ],
)
def test_a_side_is_a_modifier_of_the_structure(name, kind, side):
    expected = None if side is None else getattr(codes.SCT, side)
    assert _codes(name)[1:] == (getattr(codes.SCT, kind), expected)


def test_a_header_that_cannot_be_referred_to_is_refused_without_its_values(tmp_path, recwarn):
    slices = series(FrameOfReferenceUID=uid.generate_uid())
    for slice_ in slices:
        slice_.add(pydicom.DataElement(0x00100030, "LO", "31.12.1955"))
        slice_[0x00100030].VR = "DA"
    folder = save(tmp_path / "scan", slices)
    case = sources.find_dataset(folder).cases[0]
    image = read_case(case, 1)
    label = np.zeros(image.shape, np.uint8)
    with pytest.raises(DataError, match="cannot be referred to") as refused:
        write_segmentation(tmp_path / "label.dcm", label, image, case.images, CLASSES)
    warned = [str(warning.message) for warning in recwarn]
    assert not any("1955" in text for text in (str(refused.value), *warned))
    assert not (tmp_path / "label.dcm").exists()


def test_slices_without_the_preamble_of_dicom_get_a_segmentation_too(tmp_path):
    folder = save(tmp_path / "scan", series(FrameOfReferenceUID=uid.generate_uid()))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    case = sources.find_dataset(folder).cases[0]
    image = read_case(case, 1)
    label = np.full(image.shape, 2, np.uint8)
    object_ = written(tmp_path / "label.dcm", label, (None, case, image))
    frames = object_.get_pixels_by_source_instance(
        [source[2] for source in object_.get_source_image_uids()],
        ignore_spatial_locations=True,
    )
    assert frames.sum() == label.size
