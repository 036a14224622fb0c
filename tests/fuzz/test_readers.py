"""Damaged files of every format: a reader refuses them in one line, or reads them."""

import gzip
import io
import struct

import nibabel as nib
import numpy as np
import PIL.Image
import pydicom
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset

from selfvox.data.formats import image as images
from selfvox.errors import DataError

SHAPE = (9, 8, 7)
# of headers: sizes, types and offsets are most often wrong in these ways
NUMBERS = (0, 1, -1, 2, 255, 256, 2**15 - 1, -(2**15), 2**31 - 1, -(2**31), 2**40)
FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e-40, 1e30)


def nifti_bytes():
    data = np.random.default_rng(0).integers(0, 500, SHAPE).astype(np.int16)
    scan = nib.Nifti1Image(data, np.diag([1.0, 1.5, 2.0, 1.0]))
    scan.header["descrip"] = b"a scan"
    return scan.to_bytes()


def itk_bytes(folder, ending):
    data = np.random.default_rng(1).integers(0, 500, SHAPE).astype(np.int16)
    file = folder / f"scan{ending}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(data), str(file))
    return file.read_bytes()


def picture_bytes(kind, mode="L"):
    values = np.random.default_rng(2).integers(0, 255, (24, 20, 3)).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(values).convert(mode).save(file, kind)
    return file.getvalue()


def dicom_bytes(number):
    slice_ = Dataset()
    slice_.SOPClassUID = pydicom.uid.CTImageStorage
    slice_.SOPInstanceUID = f"1.2.3.{number + 1}"
    slice_.SeriesInstanceUID = "1.2.3"
    slice_.Modality = "CT"
    slice_.PatientID = "4711"
    slice_.ImagePositionPatient = [0, 0, 2.0 * number]
    slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    slice_.PixelSpacing = [0.7, 0.7]
    slice_.RescaleSlope = 1
    slice_.RescaleIntercept = -1024
    slice_.Rows, slice_.Columns = 8, 9
    slice_.SamplesPerPixel = 1
    slice_.PhotometricInterpretation = "MONOCHROME2"
    slice_.BitsAllocated = slice_.BitsStored = 16
    slice_.HighBit = 15
    slice_.PixelRepresentation = 0
    rng = np.random.default_rng(number)
    slice_.PixelData = rng.integers(0, 2000, (8, 9)).astype("<u2").tobytes()
    slice_.file_meta = FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = io.BytesIO()
    pydicom.dcmwrite(file, slice_, enforce_file_format=True)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def originals(folder):
    """A whole file of each format, by its ending."""
    return {
        ".nii": nifti_bytes(),
        ".nii.gz": nifti_bytes(),  # compressed after the damage, or before it
        ".nrrd": itk_bytes(folder, ".nrrd"),
        ".mha": itk_bytes(folder, ".mha"),
        ".png": picture_bytes("PNG"),
        ".jpg": picture_bytes("JPEG", "RGB"),
        ".tif": picture_bytes("TIFF"),
        ".dcm": dicom_bytes(0),
    }


@st.composite
def damages(draw):
    """What is done to a file: a list of (kind, place, value)."""
    place = st.one_of(st.floats(0, 1, exclude_max=True), st.floats(0, 0.1))
    single = st.one_of(
        st.tuples(st.just("bit"), place, st.integers(0, 7)),
        st.tuples(st.just("byte"), place, st.integers(0, 255)),
        st.tuples(st.sampled_from("bhiq"), place, st.sampled_from(NUMBERS)),
        st.tuples(st.sampled_from("fd"), place, st.sampled_from(FLOATS)),
        st.tuples(st.just("cut"), place, st.integers(1, 100)),
        st.tuples(st.just("double"), place, st.integers(1, 100)),
        st.tuples(st.just("end"), place, st.just(0)),
        st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=8)),
    )
    return draw(st.lists(single, min_size=1, max_size=4))


def damage(content, changes):
    """The content after these changes."""
    data = bytearray(content)
    for kind, place, value in changes:
        at = int(place * len(data))
        if kind == "bit" and data:
            data[at] ^= 1 << value
        elif kind == "byte" and data:
            data[at] = value
        elif kind == "cut":
            del data[at : at + value]
        elif kind == "double":
            data[at:at] = data[at : at + value]
        elif kind == "end":
            del data[at:]
        elif kind == "insert":
            data[at:at] = value
        elif data:
            size = struct.calcsize(kind)
            if isinstance(value, int):
                value = (value + (1 << 8 * size - 1)) % (1 << 8 * size) - (1 << 8 * size - 1)
            at -= at % size if size > 1 else 0
            data[at : at + size] = struct.pack(f"<{kind}", value)
    return bytes(data)


def outcome(read):
    """`read` or `refused`; any other error fails the test."""
    try:
        read()
    except DataError as error:
        message = str(error)
    else:
        return "read"
    assert "\n" not in message
    assert ";" in message, "no remedy"
    return "refused"


@pytest.mark.fault("X19", "random damage to NIfTI", "read or refused")
@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha", ".png", ".jpg", ".tif"])
@given(changes=damages())
def test_a_damaged_scan_is_read_or_refused(folder, originals, count, ending, changes):
    file = folder / f"damaged{ending}"
    file.write_bytes(damage(originals[ending], changes))
    count(ending, outcome(lambda: images.read_image(file)))


@pytest.mark.fault("X19", "random damage to packed NIfTI", "read or refused")
@given(changes=damages(), before=st.booleans())
def test_a_damaged_compressed_scan_is_read_or_refused(folder, originals, count, changes, before):
    file = folder / "damaged.nii.gz"
    content = originals[".nii.gz"]
    if before:
        content = gzip.compress(damage(content, changes), 1, mtime=0)
    else:
        content = damage(gzip.compress(content, 1, mtime=0), changes)
    file.write_bytes(content)
    count(".nii.gz", outcome(lambda: images.read_image(file)))


@pytest.mark.fault("X19", "random damage to DICOM", "read or refused")
@given(changes=damages(), number=st.integers(0, 2))
def test_a_damaged_slice_of_a_series_is_read_or_refused(folder, count, changes, number):
    series = folder / "series"
    series.mkdir(exist_ok=True)
    files = [series / f"{slice_}.dcm" for slice_ in range(3)]
    for slice_, file in enumerate(files):
        content = dicom_bytes(slice_)
        file.write_bytes(damage(content, changes) if slice_ == number else content)
    count(".dcm", outcome(lambda: images.read_slices(files, "series")))


@pytest.mark.fault("X19", "random damage to labels", "read or refused")
@given(changes=damages())
def test_a_damaged_label_is_read_or_refused(folder, originals, count, changes):
    whole = folder / "whole.nii"
    whole.write_bytes(originals[".nii"])
    file = folder / "label.nii"
    file.write_bytes(damage(originals[".nii"], changes))
    like = images.read_image(whole)
    count("label", outcome(lambda: images.read_label(file, like)))
