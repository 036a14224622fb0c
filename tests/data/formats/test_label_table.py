"""Names of classes in the header of a label: other libraries find them, and the same voxels."""

import xml.etree.ElementTree as ElementTree

import nibabel as nib
import numpy as np
import pytest

from selfvox.data.formats import image
from selfvox.data.formats.label_table import label_table
from selfvox.plotting import class_colour

from ...conftest import affine, blob, write_scan

CLASSES = {0: "background", 2: "grey & white <matter>", 300: "Läsion"}


@pytest.mark.parametrize("name", ["label.nii", "label.nii.gz"])
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_nibabel_finds_names_and_colours_and_the_same_voxels(tmp_path, name, version):
    data = blob((9, 8, 7))
    scan = tmp_path / "scan.nii.gz"
    nib.save(version(data, affine(turn=0.3)), scan)
    like = image.read_image(scan)
    label = np.where(data > np.median(data), 300, 2)
    for classes in (CLASSES, dict(list(CLASSES.items())[:2]), {0: "background"}):
        image.write_label(tmp_path / name, label, like, classes)
        written = nib.load(tmp_path / name)
        assert written.header["vox_offset"] % 16 == 0
        np.testing.assert_array_equal(np.asarray(written.dataobj), label)
        np.testing.assert_allclose(written.affine, like.affine, atol=1e-5)
        (extension,) = written.header.extensions
        assert extension.get_code() == nib.nifti1.extension_codes["caret"]
        (table,) = ElementTree.fromstring(extension.content).iter("LabelTable")
        assert {int(entry.get("Key")): entry.text for entry in table} == classes
        for entry in table:
            parts = [float(entry.get(part)) * 255 for part in ("Red", "Green", "Blue")]
            value = int(entry.get("Key"))
            expected = bytes.fromhex(class_colour(value)[1:]) if value else bytes(3)
            np.testing.assert_allclose(parts, list(expected), atol=0.5)
            assert float(entry.get("Alpha")) == bool(value)
        np.testing.assert_array_equal(image.read_label(tmp_path / name, like), label)
        nib.save(written, tmp_path / f"again-{name}")
        again = nib.load(tmp_path / f"again-{name}").header.extensions[0]
        assert again.content.rstrip() == extension.content.rstrip()


def test_itk_reads_the_voxels_of_a_label_with_names(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    scan = write_scan(tmp_path / "scan.nii.gz", blob((9, 8, 7)))
    like = image.read_image(scan)
    label = np.arange(9 * 8 * 7).reshape(9, 8, 7) % 3
    image.write_label(tmp_path / "label.nii.gz", label, like, CLASSES)
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "label.nii.gz")))
    np.testing.assert_array_equal(read.transpose(2, 1, 0), label)


def test_a_label_written_like_one_with_names_has_none(tmp_path):
    scan = write_scan(tmp_path / "scan.nii.gz", blob((9, 8, 7)))
    first = tmp_path / "first.nii.gz"
    label = np.arange(9 * 8 * 7).reshape(9, 8, 7) % 3
    image.write_label(first, label, image.read_image(scan), CLASSES)
    image.write_label(tmp_path / "second.nii.gz", label, image.read_image(first))
    second = nib.load(tmp_path / "second.nii.gz")
    assert not second.header.extensions
    np.testing.assert_array_equal(np.asarray(second.dataobj), label)


def test_characters_that_xml_cannot_have_are_replaced():
    name = "a\x01\ud800\tb\U0001f9e0"
    (label,) = ElementTree.fromstring(label_table({1: name})[12:]).iter("Label")
    assert label.text == "a\ufffd\ufffd\tb\U0001f9e0"
