"""DICOM series: stacked as by a second reader, checked, and without a trace of the patient."""

import copy
import csv
import io
import os
import re
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

import selfvox
from selfvox.data import sources
from selfvox.data.formats import dicom_header, dicom_pixels, dicom_slice
from selfvox.data.formats import image as images
from selfvox.data.preparation import split
from selfvox.data.preparation.geometry import canonical_orientation, canonical_spacing
from selfvox.data.preparation.normalise import Intensity
from selfvox.data.preparation.prepare_case import CaseJob, prepare_case, read_case
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError, UsageError
from selfvox.prediction.case_files import CaseFiles
from selfvox.prediction.class_table import write_class_table
from selfvox.prediction.output_folder import OutputFolder

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
needs_scans = pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans are not here")

CT = "1.2.840.10008.5.1.4.1.1.2"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
STRAIGHT = (1.0, 0, 0, 0, 1, 0)
NAME = "DOE^JANE"
NUMBER = "MRN4711"
BORN = "19530217"


def turned(degrees_x, degrees_z):
    """Directions of a row and of a column after two turns."""
    x, z = np.radians([degrees_x, degrees_z])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return tuple((about_z @ about_x)[:, :2].T.ravel())


def series(count=6, directions=STRAIGHT, gap=2.5, shape=(9, 8), number=3, patient=NUMBER, **tags):
    """Slices with their file meta, in order along the normal.

    Rows are 0.7 mm apart, columns 0.9 mm; `tags` override those written here.
    """
    rng = np.random.default_rng(number)
    normal = np.cross(directions[:3], directions[3:])
    common = {
        "SOPClassUID": CT,
        "PatientName": NAME,
        "PatientID": patient,
        "PatientBirthDate": BORN,
        "StudyDate": "20010413",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "StudyInstanceUID": uid.generate_uid(),
        "SeriesInstanceUID": uid.generate_uid(),
        "SeriesNumber": number,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": shape[0],
        "Columns": shape[1],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "RescaleSlope": "1",
        "RescaleIntercept": "-1024",
        "PixelSpacing": [0.7, 0.9],
        "ImageOrientationPatient": [round(float(d), 9) for d in directions],
    }
    slices = []
    for place in range(count):
        position = np.array([10, -20, 30]) + place * gap * normal
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = CT
        slice_.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
        own_tags = {
            "SOPInstanceUID": slice_.file_meta.MediaStorageSOPInstanceUID,
            "InstanceNumber": count - place,
            "ImagePositionPatient": [round(float(p), 4) for p in position],
            "PixelData": rng.integers(0, 4096, shape).astype("<u2").tobytes(),
        }
        for tag, value in (common | own_tags | tags).items():
            setattr(slice_, tag, value)
        slices.append(slice_)
    return slices


def save(folder, slices):
    """Write slices under names in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, slice_ in enumerate(slices):
        slice_.save_as(folder / f"IM{(number * 7) % 100:04d}.dcm", enforce_file_format=True)
    return folder


def read(folder):
    dataset = sources.find_dataset(folder)
    assert dataset.source == "dicom"
    return read_case(dataset.cases[0], 1)


def refusal(folder):
    with pytest.raises(DataError) as caught:
        read(folder)
    message = str(caught.value)
    assert message.isprintable()
    assert not any(secret in message for secret in (NAME, NUMBER, BORN, "JANE"))
    return message


@pytest.mark.parametrize(
    "directions", [STRAIGHT, turned(20, 0), turned(-35, 50), (0, 1.0, 0, 0, 0, -1)]
)
@pytest.mark.parametrize("backwards", [False, True])
def test_voxels_lie_where_a_second_reader_puts_them(tmp_path, directions, backwards):
    slices = series(directions=directions)
    save(tmp_path, slices[::-1] if backwards else slices)
    image = read(tmp_path)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    volume = reader.Execute()
    values = SimpleITK.GetArrayFromImage(volume).transpose(2, 1, 0)
    assert np.array_equal(image.data[0], values)
    for index in ((0, 0, 0), (7, 8, 5), (3, 0, 2)):
        left_posterior_superior = np.array(volume.TransformIndexToPhysicalPoint(index))
        assert np.allclose(
            (image.affine @ [*index, 1])[:3], left_posterior_superior * [-1, -1, 1], atol=1e-3
        )


def test_the_affine_is_the_standards_equation(tmp_path):
    """DICOM PS3.3 C.7.6.2.1.1, pixel by pixel, for slices in any order."""
    slices = series(directions=turned(12, -7))
    image = read(save(tmp_path, slices))
    for k, slice_ in enumerate(slices):
        pixels = np.frombuffer(slice_.PixelData, "<u2").reshape(9, 8).astype(float) - 1024
        row = np.array(slice_.ImageOrientationPatient[:3], float)
        column = np.array(slice_.ImageOrientationPatient[3:], float)
        for r in range(9):
            for c in range(8):
                place = (
                    np.array(slice_.ImagePositionPatient, float) + row * 0.9 * c + column * 0.7 * r
                )
                assert image.data[0, c, r, k] == pixels[r, c]
                assert np.allclose(
                    (image.affine @ [c, r, k, 1])[:3], place * [-1, -1, 1], atol=1e-3
                )


@pytest.mark.fault("D6", "slopes that differ among slices", "each slice by its own")
def test_slope_and_intercept_are_those_of_each_slice(tmp_path):
    slices = series()
    for number, slice_ in enumerate(slices):
        slice_.RescaleSlope = str(0.5 + number)
        slice_.RescaleIntercept = str(-10 * number)
    image = read(save(tmp_path, slices))
    for number, slice_ in enumerate(slices):
        stored = np.frombuffer(slice_.PixelData, "<u2").reshape(9, 8).T
        assert np.allclose(image.data[0, ..., number], stored * (0.5 + number) - 10 * number)


@pytest.mark.fault("D10 D11", "12 bits, overlays, signs, MONOCHROME1", "the values that are meant")
@pytest.mark.parametrize(
    ("tags", "dtype", "stored", "expected"),
    [
        ({}, "<u2", [0xF001, 4095], [1, 4095]),  # an overlay in the upper bits
        ({"PixelRepresentation": 1}, "<u2", [0x0FFF, 0x0800, 0x07FF], [-1, -2048, 2047]),
        ({"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15}, "<i2", [-5, 300], [-5, 300]),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "u1", [0, 255], [0, 255]),
        (
            {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31, "PixelRepresentation": 1},
            "<i4",
            [-70000],
            [-70000],
        ),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "<u2", [0, 4095, 10], [4095, 0, 4085]),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": 1},
            "<i2",
            [-2048, 5],
            [2047, -6],
        ),
    ],
)
def test_stored_bits_become_the_values_they_mean(tmp_path, tags, dtype, stored, expected):
    slices = series(RescaleIntercept="0", **tags)
    for slice_ in slices:
        slice_.PixelData = np.resize(np.array(stored, dtype), (9, 8)).tobytes()
        slice_.PixelData += b"\0" * (len(slice_.PixelData) % 2)
    if len(set(expected)) == 1:  # a constant scan would be refused
        slices[0].PixelData = np.zeros((9, 8), dtype).tobytes()
    (case,) = sources.find_dataset(save(tmp_path, slices)).cases
    # so few values look like a label map: read as they are
    image = images.read_slices(case.images, case.id)
    assert np.array_equal(image.data[0, ..., -1], np.resize(expected, (9, 8)).T)


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless]
)
def test_uncompressed_and_run_length_coded_files_hold_the_same(tmp_path, syntax):
    slices = series()
    expected = read(save(tmp_path / "plain", slices)).data
    folder = tmp_path / "other"
    folder.mkdir()
    for number, slice_ in enumerate(slices):
        if syntax == uid.RLELossless:
            slice_.compress(uid.RLELossless, generate_instance_uid=False)
        else:
            slice_.file_meta.TransferSyntaxUID = syntax
            if syntax == uid.ExplicitVRBigEndian:
                slice_.PixelData = np.frombuffer(slice_.PixelData, "<u2").astype(">u2").tobytes()
        little = syntax != uid.ExplicitVRBigEndian
        implicit = syntax == uid.ImplicitVRLittleEndian
        pydicom.dcmwrite(folder / f"{number}", slice_, little_endian=little, implicit_vr=implicit)
    assert np.array_equal(read(folder).data, expected)


@pytest.mark.parametrize("signed", [False, True])
def test_jpeg_2000_holds_the_same(tmp_path, signed):
    slices = series(PixelRepresentation=0, BitsStored=16, HighBit=15)
    if signed:
        for slice_ in slices:
            slice_.PixelRepresentation = 1
    expected = read(save(tmp_path / "plain", slices)).data
    for slice_ in slices:
        stored = np.frombuffer(slice_.PixelData, "<u2").reshape(9, 8)
        code = io.BytesIO()
        Image.fromarray(stored).save(
            code, format="jpeg2000", irreversible=False, no_jp2=True, num_resolutions=1
        )
        slice_.PixelData = pydicom.encaps.encapsulate([code.getvalue()])
        slice_["PixelData"].VR = "OB"
        slice_.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    assert np.array_equal(read(save(tmp_path / "coded", slices)).data, expected)


@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"]
)
def test_what_another_program_compressed_holds_the_same(tmp_path, syntax):
    gdcm = pytest.importorskip("gdcm", reason="needs python-gdcm")
    expected = read(save(tmp_path / "plain", series(PixelRepresentation=1))).data
    (tmp_path / "coded").mkdir()
    for path in (tmp_path / "plain").iterdir():
        reader = gdcm.ImageReader()
        change = gdcm.ImageChangeTransferSyntax()
        writer = gdcm.ImageWriter()
        reader.SetFileName(os.fspath(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(os.fspath(tmp_path / "coded" / path.name))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    assert np.array_equal(read(tmp_path / "coded").data, expected)


@pytest.mark.fault("D1", "a DICOM series without one slice", "refused with its place")
def test_a_missing_slice_is_refused_by_its_place(tmp_path):
    slices = series(count=8)
    del slices[3]  # at 30 + 3 * 2.5 mm
    assert (
        "a slice is missing between 35.00 and 40.00 mm, 5.00 mm apart where others are 2.50"
        in refusal(save(tmp_path, slices))
    )


def filled(folder):
    return read_case(sources.find_dataset(folder, "dicom:allow-gap").cases[0], 1)


def test_a_missing_slice_that_is_allowed_becomes_the_mean_of_its_neighbours_and_the_rest_stays(
    tmp_path,
):
    slices = series(count=8)
    complete = read(save(tmp_path / "whole", slices))
    image = filled(save(tmp_path / "gap", slices[:3] + slices[4:]))
    assert image.data.dtype == np.int16
    assert np.array_equal(image.affine, complete.affine)
    expected = complete.data.copy()
    expected[..., 3] = np.rint(
        (complete.data[..., 2].astype(np.float32) + complete.data[..., 4]) / 2
    )
    assert np.array_equal(image.data, expected)
    assert image.notes == (
        "a slice is missing between 35.00 and 40.00 mm, 5.00 mm apart where others are 2.50: "
        "1 of 8 slices are interpolated between their neighbours, not measured",
    )
    assert np.array_equal(filled(tmp_path / "whole").data, complete.data)
    assert filled(tmp_path / "whole").notes == ()


def test_uneven_slices_that_are_allowed_are_interpolated_as_numpy_does(tmp_path):
    slices = series(count=12)
    at = np.sort(np.random.default_rng(1).permutation(20)[:12] * 1.1)  # mm
    for slice_, height in zip(slices, at, strict=True):
        slice_.ImagePositionPatient = [10, -20, round(30 + float(height), 4)]
        slice_.RescaleSlope = "0.5"  # not whole, so that nothing is rounded
    image = filled(save(tmp_path, slices))
    values = [
        np.frombuffer(slice_.PixelData, "<u2").reshape(9, 8).T * 0.5 - 1024 for slice_ in slices
    ]
    step = (at[-1] - at[0]) / (image.shape[2] - 1)
    assert np.isclose(np.linalg.norm(image.affine[:3, 2]), step)
    assert np.isclose(step, np.median(np.diff(at)), rtol=0.1)
    for x, y in np.ndindex(8, 9):
        for place in range(image.shape[2]):
            height = at[0] + place * step
            near = np.abs(at - height) <= 0.05 * step
            height = at[near][0] if near.any() else height
            expected = np.interp(height, at, [value[x, y] for value in values])
            assert np.isclose(image.data[0, x, y, place], expected, atol=1e-2)


def test_more_missing_slices_than_there_are_stay_refused(tmp_path):
    slices = series(count=6)
    slices[-1].ImagePositionPatient = [10, -20, 1e12]
    save(tmp_path, slices)
    with pytest.raises(
        DataError, match="slices would have to be interpolated from 6; leave it out"
    ):
        filled(tmp_path)


def test_the_store_notes_what_was_filled_and_is_built_again_without_the_choice(tmp_path):
    slices = series(count=8)
    save(tmp_path / "scans" / "gap", slices[:3] + slices[4:])
    save(tmp_path / "scans" / "whole", series(number=4))
    settings = {"out": tmp_path / "store", "workers": 1}
    selfvox.prepare(tmp_path / "scans", source="dicom:allow-gap", **settings)
    notes = [note for case in open_store(tmp_path / "store").cases for note in case.notes]
    assert [note for note in notes if "1 of 8 slices are interpolated" in note] == notes
    assert len(notes) == 1
    with pytest.raises(UsageError, match="unknown choice 'gaps' of dicom; known: allow-gap"):
        selfvox.prepare(tmp_path / "scans", source="dicom:gaps", **settings)
    selfvox.prepare(tmp_path / "scans", source="dicom", **settings)
    assert len(open_store(tmp_path / "store").cases) == 1
    assert "have the gap filled by interpolation with --source dicom:allow-gap" in (
        tmp_path / "store" / "rejected.csv"
    ).read_text(encoding="utf-8")


def test_slices_half_a_millimetre_off_are_uneven_and_rounding_is_not(tmp_path):
    slices = series(count=8)
    slices[4].ImagePositionPatient = [10, -20, 40.1]
    assert read(save(tmp_path / "rounded", slices)).shape == (8, 9, 8)
    slices[4].ImagePositionPatient = [10, -20, 40.5]
    assert "unevenly spaced between" in refusal(save(tmp_path / "uneven", slices))


@pytest.mark.fault("D2", "two slices at one place", "refused, unless they are copies")
def test_two_slices_at_one_place_are_refused_unless_they_are_copies(tmp_path):
    slices = series()
    twin = copy.deepcopy(slices[2])
    image = read(save(tmp_path / "copy", [*slices, twin]))
    assert image.shape == (8, 9, 6)
    assert image.notes == ("1 identical copies of slices left out",)
    twin.PixelData = bytes(len(twin.PixelData))
    assert "two different slices at 35.00 mm" in refusal(save(tmp_path / "echo", [*slices, twin]))


@pytest.mark.fault("D3 D4", "several series and orientations in one folder", "separated")
def test_series_in_one_folder_are_separated_and_so_are_their_orientations(tmp_path):
    first = series(number=1)
    second = series(number=2, count=4)
    sagittal = series(number=1, count=5, directions=(0, 1.0, 0, 0, 0, -1))
    for slice_ in sagittal:
        slice_.SeriesInstanceUID = first[0].SeriesInstanceUID
    dataset = sources.find_dataset(save(tmp_path, [*first, *second, *sagittal]))
    assert sorted(len(case.images) for case in dataset.cases) == [4, 5, 6]
    assert [case.id.count("-") for case in dataset.cases] == [3, 3, 2]
    assert {read_case(case, 1).shape for case in dataset.cases} == {
        (8, 9, 6),
        (8, 9, 4),
        (8, 9, 5),
    }
    assert (
        "2 cases come from series with slices of several orientations or patients" in dataset.notes
    )


@pytest.mark.parametrize("blank", ["", " "])
def test_where_the_number_is_blank_the_name_separates_patients(tmp_path, blank):
    for number, name in enumerate(("DOE^JANE", "DOE^JANE", "ROE^RICHARD")):  # three studies
        save(tmp_path / str(number), series(number=number, patient=blank, PatientName=name))
    subjects = {
        case.id.split("-")[1]: case.subject for case in sources.find_dataset(tmp_path).cases
    }
    assert subjects["0"] == subjects["1"] != subjects["2"]


def test_two_patients_with_one_series_number_are_never_one_volume(tmp_path):
    """Both on one grid, one above the other: by their places alone they are a whole series."""
    below = series(count=5, patient="A")
    above = series(count=5, patient="B", SeriesInstanceUID=below[0].SeriesInstanceUID)
    for place, slice_ in enumerate(above):
        slice_.ImagePositionPatient = [10, -20, 30 + 2.5 * (5 + place)]
    save(tmp_path / "a", below)
    dataset = sources.find_dataset(save(tmp_path / "b", above).parent)
    assert sorted(read_case(case, 1).affine[2, 3] for case in dataset.cases) == [30, 42.5]
    assert any("several orientations or patients" in note for note in dataset.notes)


@pytest.mark.parametrize("content", [b"", b"\0" * 400])
def test_an_empty_last_slice_which_leaves_no_gap_is_noted(tmp_path, content):
    save(tmp_path, series())
    (tmp_path / "IM0035.dcm").write_bytes(content)
    (tmp_path / "README").write_text("not a slice")
    assert sources.find_dataset(tmp_path).notes == ("1 file not readable as DICOM, left out",)


def test_each_patient_is_a_subject(tmp_path):
    slices = [
        *series(number=1, patient="A"),
        *series(number=2, patient="B"),
        *series(number=3, patient="A"),
    ]
    subjects = {
        case.id.split("-")[1]: case.subject
        for case in sources.find_dataset(save(tmp_path, slices)).cases
    }
    assert subjects["1"] == subjects["3"] != subjects["2"]


def test_a_test_patient_stays_one_when_another_series_renames_the_patient(tmp_path):
    scans = tmp_path / "scans"
    store = tmp_path / "store"
    slices = [
        slice_ for number in range(3) for slice_ in series(patient=str(number), number=number)
    ]
    save(scans, slices)
    selfvox.prepare(scans, out=store, test=1, workers=1)
    (old_name,) = split.read_split(store / "split.json").test
    cases = sources.find_dataset(scans).cases
    (case_id,) = [case.id for case in cases if case.subject == old_name]
    patient = case_id.split("-")[1]
    # the patient is called after the least of its series
    least = min(slice_.SeriesInstanceUID for slice_ in slices)
    new_series = series(patient=patient, number=9)
    while new_series[0].SeriesInstanceUID > least:
        new_series = series(patient=patient, number=9)
    save(scans / "more", new_series)
    assert old_name not in {case.subject for case in sources.find_dataset(scans).cases}
    selfvox.prepare(scans, out=store, workers=1)
    (new_name,) = split.read_split(store / "split.json").test
    assert new_name != old_name
    numbers = {
        case.id.split("-")[1] for case in open_store(store).cases if case.subject == new_name
    }
    assert numbers == {patient, "9"}
    assert len(split.read_split(store / "split.json").train) == 2


@pytest.mark.fault(
    "D3 D15 D16",
    "localizer, segmentation, DICOMDIR and other files among the slices",
    "left out and counted",
)
def test_what_is_no_slice_of_a_scan_is_left_out_and_counted(tmp_path):
    slices = series()
    slices += series(number=8, count=3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    slices += series(number=9, count=1, Modality="SEG", SOPClassUID=SEG)
    slices += series(number=10, count=1, SOPClassUID=uid.SecondaryCaptureImageStorage)
    slices += series(number=11, count=1)
    save(tmp_path, slices)
    for name in ("DICOMDIR", "Thumbs.db", ".DS_Store", "notes.txt", "picture.png"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    (tmp_path / "IM9999").write_bytes(bytes(128) + b"DICM" + b"\xff" * 90)
    dataset = sources.find_dataset(tmp_path)
    assert [len(case.images) for case in dataset.cases] == [6]
    assert dataset.notes == (
        # the text file has the magic word of DICOM
        "2 files not readable as DICOM, left out",
        "1 picture next to the series left out; if they are labels of slices, convert each series "
        "and its labels to NIfTI volumes",
        "left out: 3 localiser images",
        "left out: 1 screenshots (secondary captures)",
        "left out: 1 single images, no volumes",
        "left out: 1 without an image of their own (such as SEG, RTSTRUCT, SR)",
    )


@pytest.mark.fault("D21", "a series that declares burned-in text", "a note")
def test_burned_in_text_is_noted(tmp_path):
    dataset = sources.find_dataset(save(tmp_path, series(BurnedInAnnotation="YES")))
    assert "series with text burned into their pixels, which may name people: 1" in dataset.notes


@pytest.mark.fault(
    "D7",
    "a declared distance that differs from the positions",
    "the positions, with a note",
)
def test_positions_win_over_spacing_between_slices(tmp_path):
    image = read(save(tmp_path, series(SpacingBetweenSlices="5.0")))
    assert image.spacing_mm == pytest.approx((0.9, 0.7, 2.5))
    assert image.notes == (
        "SpacingBetweenSlices says 5 mm, the positions 2.5 mm: the positions are used",
    )


@pytest.mark.parametrize("directions", [STRAIGHT, turned(20, 0), turned(90, 10), turned(-90, 90)])
def test_the_spacing_of_the_list_is_that_of_the_read_volume(tmp_path, directions):
    folder = save(tmp_path / "scan", series(count=7, directions=directions, gap=1.3))
    (case,) = sources.find_dataset(folder).cases
    image = read_case(case, 1)
    spacing_mm = canonical_spacing(image, canonical_orientation(image))
    assert case.spacing_mm == pytest.approx(spacing_mm, abs=1e-3)


def test_a_missing_or_doubled_slice_leaves_the_spacing_of_the_list_as_it_is(tmp_path):
    slices = series(count=7, gap=1.3)
    folder = save(tmp_path / "scan", [*slices[:2], *slices[3:], copy.deepcopy(slices[0])])
    (case,) = sources.find_dataset(folder).cases
    assert case.spacing_mm == pytest.approx((0.9, 0.7, 1.3))


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelSpacing": None},
        {"PixelSpacing": [0, 0.9]},
        {"PixelSpacing": [1e300, 0.9]},
        {"ImagePositionPatient": None},
        {"ImagePositionPatient": [1e200, 1e200, 1e200]},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"ImageOrientationPatient": [1e200, 0, 0, 0, 1e200, 0]},
    ],
)
def test_slices_without_a_usable_geometry_have_no_spacing_in_the_list(tmp_path, tags):
    folder = save(tmp_path / "scan", series(**tags))
    (case,) = sources.find_dataset(folder).cases
    assert case.spacing_mm is None


def test_the_median_spacing_is_that_of_all_series(tmp_path, capsys):
    # the samples are the first, the third and the fifth series
    for number, gap in enumerate([3.0, 1.0, 3.0, 1.0, 1.0, 1.0]):
        scan = series(gap=gap, number=number, patient=f"P{number}", shape=(16, 16), count=16)
        save(tmp_path / "scans" / str(number), scan)
    selfvox.prepare(tmp_path / "scans", out=tmp_path / "store", workers=1)
    text = "spacing: 2 of 6 scans differ by more than a fifth from the median, 0.9 x 0.7 x 1 mm"
    assert text in capsys.readouterr().err


def without(tag):
    def drop(slices):
        del slices[2][tag]

    return drop


def with_(**tags):
    def change(slices):
        for tag, value in tags.items():
            setattr(slices[2], tag, value)

    return change


def tilted(slices):
    for number, slice_ in enumerate(slices):
        slice_.ImagePositionPatient = [10, -20 + 0.4 * number, 30 + 2.5 * number]


def compressed(syntax):
    def change(slices):
        slices[2].file_meta.TransferSyntaxUID = syntax
        slices[2].PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        slices[2]["PixelData"].VR = "OB"

    return change


def enhanced(slices):
    del slices[1:]
    slices[0].NumberOfFrames = 6
    slices[0].PixelData *= 6


@pytest.mark.fault(
    "D4 D5 D8-D10 D12 D14",
    "fields missing or wrong: positions, spacings, bits, pixels, colours, frames",
    "refused with the reason",
)
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without("ImagePositionPatient"), "no usable ImagePositionPatient"),
        (without("PixelSpacing"), "no usable PixelSpacing"),
        (with_(PixelSpacing=[0, 0.9]), "is not positive"),
        (with_(PixelSpacing=[0.7, 0.8]), "different pixel spacings"),
        (with_(Rows=8, Columns=9), "different shapes"),
        (
            with_(PixelData=b"\0" * 142),
            "at 35.00 mm has 142 bytes of pixels, its header asks for 144",
        ),
        (with_(PixelData=b"\0" * 200), "has 200 bytes"),
        (with_(PixelData=None), "has 0 bytes of pixels"),
        (without("PixelData"), "no whole-number pixels"),
        (with_(NumberOfFrames=1, PixelData=b"\0" * 6 * 144), "has 864 bytes"),
        (with_(NumberOfFrames=6), "several frames in one file"),
        (with_(BitsAllocated=1, BitsStored=1, HighBit=0), "1 bits in 1"),
        (with_(BitsAllocated=12), "12 bits in 12|has 12 bits in 12"),
        (with_(HighBit=15), "12 bits in 16 .highest 15"),
        (with_(PhotometricInterpretation="RGB", SamplesPerPixel=3), "is in colour"),
        (with_(PhotometricInterpretation="PALETTE COLOR"), "is in colour"),
        (with_(PhotometricInterpretation="YBR_FULL", SamplesPerPixel=3), "is in colour"),
        (with_(PixelRepresentation=2), "a PixelRepresentation other than 0 and 1"),
        (with_(RescaleSlope="0"), "a slice has RescaleSlope 0; export it again"),
        (
            with_(RescaleSlope=None),
            "a slice has an empty or impossible RescaleSlope; export it again",
        ),
        (with_(RescaleIntercept=None), "a slice has an empty or impossible RescaleIntercept"),
        (with_(ModalityLUTSequence=Sequence([Dataset()])), "values behind a lookup table"),
        (
            compressed(uid.JPEG2000Lossless),
            r"damaged pixels \(JPEG 2000 Image Compression \(Lossless Only\)\)",
        ),
        (
            compressed(uid.HTJ2KLossless),
            r"is compressed \(High-Throughput JPEG 2000.*convert it with dcm2niix",
        ),
        (
            compressed(uid.MPEG2MPML),
            r"is compressed \(MPEG2.*, which cannot be read; convert it with dcm2niix",
        ),
        (tilted, r"tilted by 9\.1° \(gantry tilt\)"),
        (with_(ImagePositionPatient=[13, -20, 35]), "is shifted sideways by 3.0 mm"),
        (enhanced, "several frames in one file"),
    ],
)
def test_what_does_not_make_a_volume_is_refused_with_the_reason(tmp_path, spoil, reason):
    slices = series()
    spoil(slices)
    assert re.search(reason, refusal(save(tmp_path, slices)))


@pytest.mark.fault("D9", "a DICOM file cut within its pixels", "refused")
def test_a_file_cut_within_its_pixels_is_refused(tmp_path):
    save(tmp_path, series())
    content = (tmp_path / "IM0014.dcm").read_bytes()
    (tmp_path / "IM0014.dcm").write_bytes(content[:-51])
    assert "at 35.00 mm has 93 bytes of pixels, its header asks for 144; copy it again" in refusal(
        tmp_path
    )


@pytest.mark.parametrize("tag", [b"\x28\x00\x11\x00US", b"\x28\x00\x00\x01US"])
def test_a_value_of_no_known_kind_is_a_damaged_slice(tmp_path, tag):
    """Columns and BitsAllocated: decoded late, they ended a prediction with an error of pydicom."""
    save(tmp_path, series())
    path = tmp_path / "IM0014.dcm"
    path.write_bytes(path.read_bytes().replace(tag, tag[:4] + b"LS"))
    assert "a slice cannot be read as DICOM; copy the series again" in refusal(tmp_path)


def test_an_odd_number_of_bytes_is_padded_and_read(tmp_path):
    slices = series(shape=(9, 7), BitsAllocated=8, BitsStored=8, HighBit=7)
    for number, slice_ in enumerate(slices):
        slice_.PixelData = bytes(range(number, 63 + number)) + b"\0"
    assert np.array_equal(
        read(save(tmp_path, slices)).data[0, ..., 2] + 1024, np.arange(2, 65).reshape(9, 7).T
    )


@pytest.mark.fault("D13", "compressed files without a decoder", "refused with syntax and package")
def test_a_decoder_that_is_absent_is_named_with_the_syntax(tmp_path, monkeypatch):
    slices = series()
    compressed(uid.JPEGLosslessSV1)(slices)
    monkeypatch.setattr(dicom_pixels, "get_decoder", lambda syntax: NoDecoder())
    assert re.search(
        r"is compressed \(JPEG Lossless.*pip install 'selfvox\[jpeg\]'",
        refusal(save(tmp_path, slices)),
    )


class NoDecoder:
    is_available = False
    missing_dependencies = ("gdcm - requires gdcm>=3.0.10", "pylibjpeg - requires ...")


def test_negative_values_not_marked_as_such_are_refused_and_a_full_range_is_not(tmp_path):
    for name, values, refused in (
        ("wrapped", (-1000, 3000), True),
        ("full", (0, 2**16), False),
        ("low", (0, 9), False),
    ):
        slices = series(count=3, BitsStored=16, HighBit=15)
        for slice_ in slices:
            stored = np.random.default_rng(0).integers(*values, (9, 8))
            slice_.PixelData = stored.astype("<i4").astype("<u2").tobytes()
        save(tmp_path / name, slices)
        if refused:
            assert "negative ones not marked as such (PixelRepresentation)" in refusal(
                tmp_path / name
            )
        else:
            assert read(tmp_path / name).shape == (8, 9, 3)


def test_more_pixels_than_any_slice_has_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    slices = series()
    for slice_ in slices:
        slice_.compress(uid.RLELossless, generate_instance_uid=False)
        slice_.Rows = slice_.Columns = 65535
    decoded = []
    monkeypatch.setattr(dicom_pixels, "get_decoder", decoded.append)
    assert "asks for 65535 x 65535 pixels" in refusal(save(tmp_path, slices))
    assert decoded == []


def test_all_slices_without_directions_are_refused_for_that(tmp_path):
    slices = series()
    for slice_ in slices:
        del slice_.ImageOrientationPatient
    assert "no usable ImageOrientationPatient" in refusal(save(tmp_path, slices))


def test_one_slice_by_itself_names_the_folder_as_remedy(tmp_path):
    save(tmp_path, series())
    with pytest.raises(DataError, match="is one slice of a DICOM series; name the folder"):
        sources.find_dataset(next(tmp_path.iterdir()))


@pytest.mark.fault("D17", "no preamble, and one with a program", "read; never copied")
def test_no_preamble_is_needed_and_a_foreign_one_does_no_harm(tmp_path):
    expected = read(save(tmp_path, series())).data
    for path in tmp_path.iterdir():
        raw = path.read_bytes()
        path.write_bytes(raw[132:] if "0" in path.stem[-1] else b"MZ" + raw[2:])
    assert np.array_equal(read(tmp_path).data, expected)


@pytest.mark.fault(
    "D18",
    "sequences nested 5000 deep, lengths of 4 GB, deflated bombs",
    "left out after 4 MiB at most",
)
def test_hostile_files_are_left_out_after_at_most_4_mib_of_each(tmp_path, record_reads):
    save(tmp_path, series())
    head = bytes(128) + b"DICM"
    nested = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    explicit = (tmp_path / "IM0000.dcm").read_bytes()
    meta_end = 132 + 12 + struct.unpack("<I", explicit[140:144])[0]
    name = explicit.index(b"\x10\x00\x10\x00PN")
    texts = {
        "a": explicit[:meta_end] + nested * 5000,
        "b": head + b"\x08\x00\x60\x00UN\0\0\xff\xff\xff\xff" + b"x" * 1000,
        "c": explicit[:meta_end] + b"\x08\x00\x08\x00OB\0\0\xfe\xff\xff\xff",
        "d": explicit.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"),
        "e": explicit[:name]
        + b"\x10\x00\x10\x00UN\0\0"
        + struct.pack("<I", 2**20)
        + b"\xff" * 2**20
        + explicit[name:],
    }
    for stem, raw in texts.items():
        (tmp_path / stem).write_bytes(raw)
    with (tmp_path / "f").open("wb") as file:
        file.write(explicit)
        file.truncate(2**28)  # one value of zeros after the slice
    sizes = record_reads(dicom_header)
    slices = record_reads(dicom_slice)
    dataset = sources.find_dataset(tmp_path)
    assert max(sizes) <= 4 * 2**20
    assert slices == []
    assert len(dataset.cases) == 1
    assert not any("\ufffd" in note or len(note) > 500 for note in dataset.notes)


@pytest.mark.fault("D20", "a UID `../../x`", "never part of a path")
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # of writing it
def test_a_uid_never_becomes_a_path(tmp_path):
    dataset = sources.find_dataset(
        save(tmp_path, series(SeriesInstanceUID="../../../tmp/x", StudyInstanceUID="../y"))
    )
    assert dataset.cases[0].id.replace("-", "").isalnum()


def test_volumes_in_a_folder_are_read_before_the_dicom_they_came_from(tmp_path):
    save(tmp_path / "dicom", series())
    nib.save(
        nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)),
        tmp_path / "a.nii.gz",
    )
    assert sources.find_dataset(tmp_path).source == "folder"
    assert sources.find_dataset(tmp_path, "dicom").source == "dicom"


@pytest.mark.fault(
    "X11",
    "a patient's name in names of DICOM files and folders",
    "in no byte of any output",
)
def test_names_of_files_and_folders_reach_no_output(tmp_path, capfd):
    folder = tmp_path / "in" / NAME / NUMBER
    for number in range(2):
        slices = series(number=number, count=16, shape=(18, 17), PixelSpacing=[0.7, 0.9 * number])
        for place, slice_ in enumerate(slices):
            (folder / str(number)).mkdir(parents=True, exist_ok=True)
            slice_.save_as(folder / str(number) / f"JANE_DOE_{place}.dcm", enforce_file_format=True)
    (folder / "JANE_DOE").write_bytes(bytes(128) + b"DICM" + b"\xff" * 90)
    selfvox.prepare(tmp_path / "in", out=tmp_path / "store", workers=1)
    output = "".join(capfd.readouterr())
    written = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert "1 file not readable as DICOM, left out" in output
    assert "is not positive" in (tmp_path / "store" / "rejected.csv").read_text()
    for secret in ("DOE", "JANE", NUMBER):
        assert secret not in output
        assert not any(
            secret in str(path) or secret.encode() in path.read_bytes() for path in written
        )


def test_one_series_exported_twice_under_other_names_is_known_by_its_contents(tmp_path):
    slices = series()
    save(tmp_path / "first", slices)
    save(tmp_path / "second", slices[::-1])
    (tmp_path / "second" / "copy.dcm").write_bytes(
        (tmp_path / "second" / "IM0000.dcm").read_bytes()
    )
    recipe = Recipe(spatial_dims=3, channel_names=("CT",), intensity=(Intensity(kind="mri"),))
    hashes = []
    for export in ("first", "second"):
        case = sources.find_dataset(tmp_path / export).cases[0]
        hashes.append(
            prepare_case(
                CaseJob(tmp_path / "store" / export, case, recipe, None, "")
            ).case.image_hash
        )
    assert hashes[0] == hashes[1]


def test_a_table_of_classes_has_no_names_of_slices(tmp_path):
    save(tmp_path / "in", series())
    for path in (tmp_path / "in").iterdir():
        path.rename(path.with_stem(f"{NAME}_{path.stem}"))
    (case,) = sources.find_dataset(tmp_path / "in").cases
    folder = OutputFolder(CaseFiles(tmp_path, answers_only=True))
    folder.record(case, {}, answer={"class": "0", "probabilities": [1.0]})
    write_class_table(
        tmp_path / "predictions.csv", [case], folder.answers(), ["0"], with_votes=False
    )
    assert (
        tmp_path / "predictions.csv"
    ).read_text() == f"id,file,class,probability_0\n{case.id},{case.id},0,1\n"


@pytest.mark.fault("F26 X11", "a slice that vanishes while it is read", "refused without its name")
def test_a_slice_that_vanishes_or_is_forbidden_is_not_named(tmp_path):
    save(tmp_path, series())
    (tmp_path / "IM0014.dcm").rename(tmp_path / f"{NAME}.dcm")
    case = sources.find_dataset(tmp_path).cases[0]
    (tmp_path / f"{NAME}.dcm").unlink()
    recipe = Recipe(spatial_dims=3, channel_names=("CT",), intensity=(Intensity(kind="mri"),))
    refused = prepare_case(CaseJob(tmp_path / "store", case, recipe, None, ""))
    with pytest.raises(DataError) as caught:
        read_case(case, 1)
    for message in (refused.reason, str(caught.value)):
        assert "a slice: no such file or directory" in message
        assert "JANE" not in message


@pytest.mark.fault(
    "D19 X11",
    "a patient's name and number in DICOM fields",
    "in no byte of any output",
)
def test_nothing_of_the_patient_reaches_any_output(tmp_path, capfd):
    """From scans to predictions, with a refused series; all bytes and file names are searched."""
    scans = tmp_path / "scans"
    rng = np.random.default_rng(0)
    for number in range(3):
        slices = series(number=number, count=16, shape=(18, 17), patient=f"{NUMBER}{number}")
        for slice_ in slices:
            slice_.PixelData = (1000 + rng.integers(0, 90, (18, 17))).astype("<u2").tobytes()
            slice_.StudyDescription = f"{NAME} brain"
            slice_.ReferringPhysicianName = "WHO^DOCTOR"
        save(scans / str(number), slices)
    broken = series(number=7, count=6, PixelSpacing=[-1, 1])
    save(scans / "7", broken)
    selfvox.prepare(scans, out=tmp_path / "out" / "store", workers=1)
    labelled = tmp_path / "labelled"
    for number in range(2):
        values = rng.normal(size=(16, 16, 16)).astype(np.float32)
        for name, data in (
            (f"a{number}", values),
            (f"a{number}_seg", (values > 1).astype(np.uint8)),
        ):
            labelled.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(data, np.eye(4)), labelled / f"{name}.nii.gz")
    network = {"channels": [4, 8], "blocks": 1}
    settings = {
        "network": network,
        "steps": 1,
        "crop": (16, 16, 16),
        "device": "cpu",
        "intensity": "mri",
    }
    selfvox.finetune(labelled, out=tmp_path / "out" / "seg", encoder="none", **settings)
    with pytest.raises(DataError):  # one series is refused
        selfvox.predict(
            tmp_path / "out" / "seg",
            scans,
            out=tmp_path / "out" / "predictions",
            device="cpu",
            # they are not like those of the training
            force=True,
        )
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    output = "".join(capfd.readouterr())
    with (tmp_path / "out" / "store" / "rejected.csv").open(newline="") as table:
        assert ["is not positive" in row["reason"] for row in csv.DictReader(table)] == [True]
    predicted = [path for path in written if path.name.endswith(".nii.gz")]
    assert len(predicted) == 3
    dataset = sources.find_dataset(scans)
    for case in dataset.cases[:3]:
        image = read_case(case, 1)
        label = nib.load(tmp_path / "out" / "predictions" / f"{case.id}.nii.gz")
        assert label.shape == image.shape
        assert np.allclose(label.affine, image.affine, atol=1e-4)
    unpacked = [nib.load(path).header.binaryblock for path in predicted]
    for secret in (
        "DOE",
        "JANE",
        NUMBER,
        BORN,
        "20010413",
        "DOCTOR",
        *(s.SeriesInstanceUID for s in broken),
    ):
        assert secret not in output
        for path in written:
            assert secret not in str(path.relative_to(tmp_path))
            assert secret.encode() not in path.read_bytes(), path
        assert not any(secret.encode() in header for header in unpacked)


@needs_scans
def test_a_real_series_is_stacked_as_simpleitk_stacks_it():
    dataset = sources.find_dataset(SHARED / "dicom_brain")
    assert (dataset.source, len(dataset.cases), dataset.channel_names) == ("dicom", 1, ("MR",))
    image = read_case(dataset.cases[0], 1)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(os.fspath(SHARED / "dicom_brain")))
    volume = reader.Execute()  # says that the positions are rounded
    assert np.array_equal(image.data[0], SimpleITK.GetArrayFromImage(volume).transpose(2, 1, 0))
    assert np.allclose(image.spacing_mm, volume.GetSpacing(), atol=1e-3)
    place = volume.TransformIndexToPhysicalPoint((255, 255, 0))
    assert np.allclose(
        (image.affine @ [255, 255, 0, 1])[:3], np.array(place) * [-1, -1, 1], atol=0.1
    )
    assert dicom_header.is_dicom(dataset.cases[0].images[0])


@pytest.mark.fault("H14", "DICOM files of other endings", "recognised by content")
@pytest.mark.parametrize("ending", [".img", ".mr", ".dicm", ".x y"])
def test_files_with_the_magic_word_are_dicom_whatever_their_ending(tmp_path, ending):
    for path in save(tmp_path / "in", series()).iterdir():
        path.rename(path.with_suffix(ending))
    (tmp_path / "in" / "notes.json").write_text("{}" + " " * 200)
    assert read(tmp_path / "in").shape == (8, 9, 6)


def test_pictures_next_to_series_are_counted_without_their_names(tmp_path):
    """As the labels of CHAOS, one PNG per slice."""
    save(tmp_path / "1" / "DICOM_anon", series())
    (tmp_path / "1" / "Ground").mkdir()
    for number in range(6):
        Image.new("L", (9, 8)).save(tmp_path / "1" / "Ground" / f"DOE_{number}.png")
    dataset = sources.find_dataset(tmp_path)
    assert (dataset.source, len(dataset.cases)) == ("dicom", 1)
    (note,) = dataset.notes
    assert note.startswith("6 pictures next to the series left out; if they are labels")
    assert "DOE" not in note


def test_labels_in_volumes_next_to_dicom_scans_say_how_to_read_the_scans(tmp_path):
    """As the pancreas CTs of the NIH."""
    save(tmp_path / "PANCREAS_0001", series())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "label0001.nii.gz").touch()
    with pytest.raises(DataError, match="named like labels") as refusal:
        sources.find_dataset(tmp_path)
    assert "6 DICOM files among them: --source dicom reads their series" in str(refusal.value)
