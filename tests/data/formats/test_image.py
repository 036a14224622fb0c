"""Labels, and what is written: the grid of the scan, and nothing that names a patient."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from selfvox.data.formats import image
from selfvox.errors import DataError, ResourceError

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.4, 0.3, 0.2) @ np.diag([1.0, 2, -3]), [5, 6, 7]
)
CANARY = b"DOE^JANE"


def scan(folder: Path, affine: np.ndarray = OBLIQUE, **codes: int) -> image.Image:
    nifti_image = nib.Nifti1Image(
        np.random.default_rng(1).integers(0, 900, (7, 6, 5), dtype="i2"), affine
    )
    nifti_image.set_qform(affine, codes.get("qform", 1))
    nifti_image.set_sform(affine, codes.get("sform", 2))
    for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        nifti_image.header[field] = CANARY
    nifti_image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", CANARY))
    nib.save(nifti_image, folder / "scan.nii.gz")
    return image.read_image(folder / "scan.nii.gz")


def some_label(shape: tuple[int, ...], highest: int = 2) -> np.ndarray:
    return np.random.default_rng(2).integers(0, highest, shape, endpoint=True)


def save_label(folder: Path, values: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    nib.Nifti1Image(values, affine).to_filename(folder / "label.nii.gz")
    return folder / "label.nii.gz"


def test_a_written_label_has_the_grid_of_its_scan_for_nibabel_and_simpleitk(tmp_path: Path) -> None:
    like = scan(tmp_path)
    written = tmp_path / "out.nii.gz"
    label = some_label(like.shape)
    image.write_label(written, label, like)
    theirs = nib.load(tmp_path / "scan.nii.gz")
    ours = nib.load(written)
    np.testing.assert_array_equal(np.asanyarray(ours.dataobj), label)
    assert (int(ours.header["qform_code"]), int(ours.header["sform_code"])) == (1, 2)
    np.testing.assert_array_equal(ours.get_qform(), theirs.get_qform())
    np.testing.assert_array_equal(ours.get_sform(), theirs.get_sform())
    assert ours.header.get_zooms() == theirs.header.get_zooms()
    a = SimpleITK.ReadImage(tmp_path / "scan.nii.gz")
    b = SimpleITK.ReadImage(written)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(b), label.T)
    assert (a.GetSize(), a.GetSpacing(), a.GetOrigin()) == (
        b.GetSize(),
        b.GetSpacing(),
        b.GetOrigin(),
    )
    assert a.GetDirection() == b.GetDirection()


@pytest.mark.parametrize(("qform", "sform"), [(0, 0), (1, 0), (0, 3), (4, 1)])
def test_the_geometry_codes_survive(tmp_path: Path, qform: int, sform: int) -> None:
    like = scan(tmp_path, qform=qform, sform=sform)
    image.write_label(tmp_path / "out.nii", some_label(like.shape), like)
    header = nib.load(tmp_path / "out.nii").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (qform, sform)
    np.testing.assert_array_equal(
        image.read_label(tmp_path / "out.nii", like), some_label(like.shape)
    )


def test_a_map_is_written_in_float32_with_its_classes_last(tmp_path: Path) -> None:
    like = scan(tmp_path)
    like.header["pixdim"][4] = 2.5  # a repetition time
    values = np.random.default_rng(0).random((3, *like.shape))
    image.write_map(tmp_path / "map.nii.gz", values, like)
    written = nib.load(tmp_path / "map.nii.gz")
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(
        written.get_fdata(), np.moveaxis(values.astype(np.float32), 0, -1)
    )
    np.testing.assert_array_equal(written.affine, like.affine)
    assert written.header.get_zooms() == (1, 2, 3, 1)
    image.write_map(tmp_path / "map.nii.gz", values[0], like)
    np.testing.assert_array_equal(
        nib.load(tmp_path / "map.nii.gz").get_fdata(), values[0].astype(np.float32)
    )


@pytest.mark.parametrize("largest", [1.0, 0.0123, 5e-9, 700.0, 0.0])
def test_a_compact_map_keeps_four_digits_of_its_largest_number_in_two_bytes(
    tmp_path: Path, largest: float
) -> None:
    like = scan(tmp_path)
    values = largest * np.random.default_rng(0).random((3, *like.shape)).astype(np.float32)
    values.flat[7] = largest
    image.write_compact_map(tmp_path / "map.nii.gz", values, like)
    written = nib.load(tmp_path / "map.nii.gz")
    assert written.get_data_dtype() == np.uint16
    read = np.moveaxis(written.get_fdata(), -1, 0)
    assert np.abs(read - values).max() <= 0.51 * largest / 65535
    np.testing.assert_array_equal(written.affine, like.affine)
    again = image.read_map(tmp_path / "map.nii.gz", 3, like)
    np.testing.assert_allclose(again, read, rtol=1e-6)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
def test_a_label_of_any_kind_of_scan_is_written(tmp_path: Path, kind: type, order: str) -> None:
    nifti_image = kind(
        np.arange(60, dtype="i2").reshape(3, 4, 5), OBLIQUE, kind.header_class(endianness=order)
    )
    nib.save(nifti_image, tmp_path / "scan.nii.gz")
    like = image.read_image(tmp_path / "scan.nii.gz")
    image.write_label(tmp_path / "out.nii.gz", some_label(like.shape), like)
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), some_label(like.shape))
    np.testing.assert_array_equal(
        written.affine, nifti_image.affine if kind is nib.Nifti2Image else like.affine
    )


@pytest.mark.parametrize(
    ("highest", "dtype"),
    [(1, "u1"), (255, "u1"), (256, "u2"), (65535, "u2"), (65536, "u4")],
)
def test_a_label_is_written_in_the_smallest_unsigned_type(
    tmp_path: Path, highest: int, dtype: str
) -> None:
    like = scan(tmp_path)
    image.write_label(tmp_path / "out.nii.gz", np.full(like.shape, highest), like)
    assert nib.load(tmp_path / "out.nii.gz").get_data_dtype() == dtype


@pytest.mark.fault("X11", "names in NIfTI headers and extensions", "in no output")
def test_nothing_that_names_a_patient_is_kept_or_written(tmp_path: Path) -> None:
    like = scan(tmp_path)
    assert CANARY in gzip.decompress((tmp_path / "scan.nii.gz").read_bytes())
    assert CANARY not in like.header.binaryblock
    like.header["descrip"] = CANARY  # even where a caller put it back
    image.write_label(tmp_path / "out.nii.gz", some_label(like.shape), like)
    image.write_map(tmp_path / "map.nii", np.ones(like.shape), like)
    packed = (tmp_path / "out.nii.gz").read_bytes()
    assert packed[3] == 0  # the gzip header has no file name
    assert CANARY not in gzip.decompress(packed)
    assert CANARY not in (tmp_path / "map.nii").read_bytes()


def test_the_same_label_makes_the_same_bytes(tmp_path: Path) -> None:
    like = scan(tmp_path)
    for name in ("a.nii.gz", "b.nii.gz"):
        image.write_label(tmp_path / name, some_label(like.shape), like)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.fault(
    "F8",
    "a full disk while a label is written",
    "the old file stays, no other appears",
)
def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = scan(tmp_path)
    image.write_label(tmp_path / "out.nii.gz", some_label(like.shape), like)
    old_content = (tmp_path / "out.nii.gz").read_bytes()

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError):
        image.write_label(tmp_path / "out.nii.gz", some_label(like.shape, 1), like)
    assert (tmp_path / "out.nii.gz").read_bytes() == old_content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.nii.gz", "scan.nii.gz"]


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
def test_a_label_reads_as_it_was_saved_whatever_its_type(tmp_path: Path, dtype: str) -> None:
    like = scan(tmp_path)
    label = image.read_label(
        save_label(tmp_path, some_label(like.shape).astype(dtype)), like, {0, 1, 2}
    )
    np.testing.assert_array_equal(label, some_label(like.shape))
    assert label.dtype == np.uint8


def test_a_label_scaled_by_a_slope_is_read_as_whole_numbers(tmp_path: Path) -> None:
    like = scan(tmp_path)
    nifti_image = nib.Nifti1Image(some_label(like.shape).astype("u1") * 100, OBLIQUE)
    nifti_image.header["scl_slope"] = 0.01
    nifti_image.header["scl_inter"] = 0
    raw = bytearray(nifti_image.to_bytes())
    raw[112:120] = np.array([0.01, 0], "<f4").tobytes()
    (tmp_path / "label.nii").write_bytes(raw)
    np.testing.assert_array_equal(
        image.read_label(tmp_path / "label.nii", like), some_label(like.shape)
    )


def test_labels_above_255_are_kept(tmp_path: Path) -> None:
    like = scan(tmp_path)
    label = some_label(like.shape, 40_000)
    read = image.read_label(save_label(tmp_path, label.astype("i4")), like, range(40_001))
    np.testing.assert_array_equal(read, label)
    assert read.dtype == np.uint16


@pytest.mark.fault("C7", "labels with NaN, negative and broken values", "refused")
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(5.0, "unexpected label values 5; declared are 0, 1, 2", id="outside the set"),
        pytest.param(0.9999, "such as 0.9999 are not whole numbers", id="0.9999"),
        pytest.param(np.nan, "1 values are NaN or infinite where class numbers", id="NaN"),
        pytest.param(np.inf, "1 values are NaN or infinite where class numbers", id="Inf"),
        pytest.param(-1.0, "from -1 to", id="negative"),
        pytest.param(70_000.0, "to 70000", id="too high"),
    ],
)
def test_an_impossible_label_value_is_refused(tmp_path: Path, bad: float, reason: str) -> None:
    like = scan(tmp_path)
    values = some_label(like.shape).astype("f8")
    values[3, 3, 3] = bad
    with pytest.raises(DataError, match=reason) as caught:
        image.read_label(save_label(tmp_path, values), like, {0, 1, 2})
    assert str(caught.value).startswith("label.nii.gz: ")


@pytest.mark.fault("H2", "labels saved with a slope by nibabel", "rounded with a note")
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4"])
@pytest.mark.parametrize("classes", [(0, 1, 2), (0, 1, 2, 4), range(8), range(14), range(105)])
def test_a_label_that_went_through_nibabel_is_rounded_with_a_note(
    tmp_path: Path, dtype: str, classes: Sequence[int]
) -> None:
    """`get_fdata`, saved with the header of whole numbers, comes back with a slope."""
    like = scan(tmp_path)
    label = np.resize(np.array(classes), like.shape)
    path = save_label(tmp_path, label.astype(dtype))
    loaded = nib.load(path)
    nib.save(nib.Nifti1Image(loaded.get_fdata(), loaded.affine, loaded.header), path)
    slope = float(nib.load(path).dataobj.slope)
    read, notes = image.read_label_with_notes(path, like)
    np.testing.assert_array_equal(read, label)
    error = np.abs(nib.load(path).get_fdata() - label).max()
    assert bool(notes) == (error > 1e-5)
    assert all(f"scales the stored numbers by {slope:.3g}" in note for note in notes)


@pytest.mark.fault("H2", "interpolated labels with a slope", "refused with the slope")
def test_an_interpolated_label_with_a_slope_is_refused(tmp_path: Path) -> None:
    like = scan(tmp_path)
    label = np.resize(np.arange(8), like.shape).astype(np.int16)
    path = save_label(tmp_path, label)
    loaded = nib.load(path)
    blurred = ndimage.uniform_filter(loaded.get_fdata(), 3)
    nib.save(nib.Nifti1Image(blurred, loaded.affine, loaded.header), path)
    with pytest.raises(DataError, match=r"not whole numbers \(its header scales by 3"):
        image.read_label(path, like)


@pytest.mark.fault("H14", "a label of several volumes", "says how to split it")
def test_a_label_of_several_volumes_says_what_to_do(tmp_path: Path) -> None:
    like = scan(tmp_path)
    path = save_label(tmp_path, np.ones((*like.shape, 4), np.uint8))
    for read in (lambda: image.read_label(path, like), lambda: image.read_grid(path)):
        with pytest.raises(DataError, match="4 volumes where a label is one; write all classes"):
            read()


@pytest.mark.fault("H14", "label and scan of one name", "the message has both folders")
def test_a_label_of_the_same_name_as_its_scan_is_named_with_its_folder(tmp_path: Path) -> None:
    like = scan(tmp_path)
    folder = tmp_path / "labels"
    folder.mkdir()
    path = save_label(folder, some_label((5, 6, 7)).astype("u1")).rename(folder / like.name)
    with pytest.raises(DataError, match=rf"^labels/{like.name}: label of shape .* for {like.name}"):
        image.read_label(path, like)


def moved(millimetres: float) -> np.ndarray:
    affine = OBLIQUE.copy()
    affine[0, 3] += millimetres
    return affine


@pytest.mark.fault("C8", "a label on another grid", "refused")
@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        pytest.param(OBLIQUE @ np.diag([1, 1, 1.5, 1]), "voxel size differs", id="spacing"),
        pytest.param(moved(2e-3), "affine differs", id="affine off by 2e-3 voxel"),
        pytest.param(OBLIQUE @ np.diag([-1, 1, 1, 1]), "affine differs", id="mirrored"),
    ],
)
def test_a_label_on_another_grid_is_refused(
    tmp_path: Path, affine: np.ndarray, reason: str
) -> None:
    like = scan(tmp_path)
    with pytest.raises(DataError, match=f"label.nii.gz: its {reason}.*scan.nii.gz"):
        image.read_label(save_label(tmp_path, some_label(like.shape).astype("u1"), affine), like)


@pytest.mark.fault("C8", "a label of another shape", "refused")
def test_a_label_of_another_shape_is_refused(tmp_path: Path) -> None:
    like = scan(tmp_path)
    with pytest.raises(DataError, match=r"shape \(5, 6, 7\) for scan.nii.gz of \(7, 6, 5\)"):
        image.read_label(save_label(tmp_path, some_label((5, 6, 7)).astype("u1")), like)


def test_a_small_difference_that_adds_up_over_a_large_scan_is_another_grid(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(size=(400, 4, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "long.nii.gz")
    like = image.read_image(tmp_path / "long.nii.gz")
    label = (voxels > 0).astype("u1")
    image.read_label(save_label(tmp_path, label, np.diag([1.0002, 1, 1, 1])), like)
    with pytest.raises(DataError, match=r"voxel size differs .* by 0\.36 voxels"):
        image.read_label(save_label(tmp_path, label, np.diag([1.0009, 1, 1, 1])), like)


@pytest.mark.fault("C8", "affines that differ by rounding", "accepted")
def test_an_affine_off_by_rounding_is_the_same_grid(tmp_path: Path) -> None:
    like = scan(tmp_path)
    image.read_label(save_label(tmp_path, some_label(like.shape).astype("u1"), moved(5e-5)), like)


def test_a_label_of_background_alone_is_read(tmp_path: Path) -> None:
    like = scan(tmp_path)
    assert image.read_label(save_label(tmp_path, np.zeros(like.shape, "u1")), like).max() == 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real scans next to the project")
@pytest.mark.parametrize("data_set", ["Task04_Hippocampus", "Dataset051_Sarcoma"])
def test_real_labels_have_the_grid_of_their_scans_and_survive_a_round_trip(
    tmp_path: Path, data_set: str
) -> None:
    labels = sorted((SHARED / data_set / "labelsTr").glob("*.nii.gz"))[::9]
    assert labels
    for path in labels:
        ending = "_0000.nii.gz" if data_set.startswith("Dataset") else ".nii.gz"
        like = image.read_image(
            SHARED / data_set / "imagesTr" / path.name.replace(".nii.gz", ending)
        )
        label = image.read_label(path, like, {0, 1, 2})
        image.write_label(tmp_path / path.name, label, like)
        original = SimpleITK.ReadImage(path)
        written = SimpleITK.ReadImage(tmp_path / path.name)
        np.testing.assert_array_equal(
            SimpleITK.GetArrayFromImage(written), SimpleITK.GetArrayFromImage(original)
        )
        assert written.GetDirection() == pytest.approx(original.GetDirection(), abs=1e-6)
        assert written.GetOrigin() == pytest.approx(original.GetOrigin(), abs=1e-4)


def test_axes_that_are_not_perpendicular_are_noted_with_what_they_cost(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = math.tan(math.radians(20))
    data = np.random.default_rng(0).normal(size=(8, 8, 8)).astype("f4")
    nib.save(nib.Nifti1Image(data, sheared), tmp_path / "a.nii.gz")
    (note,) = image.read_image(tmp_path / "a.nii.gz").notes
    # a voxel of 1 mm³ with an edge of 1 / cos 20°
    assert note.startswith("its axes are not perpendicular: volumes are 6 % too large")
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "b.nii.gz")
    assert image.read_image(tmp_path / "b.nii.gz").notes == ()


def test_whole_numbers_beyond_four_bytes_are_not_written(tmp_path):
    values = np.zeros((4, 4, 4), np.int64)
    like = image.Image(values[None], np.eye(4), "a")
    values[0, 0, 0] = 2**31 - 1
    image.write_volume(tmp_path / "a.nii.gz", values, like)
    assert np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj).max() == 2**31 - 1
    values[0, 0, 0] = 3_000_000_000
    with pytest.raises(DataError, match="do not fit into 4 bytes"):
        image.write_volume(tmp_path / "b.nii.gz", values, like)
    assert not (tmp_path / "b.nii.gz").exists()
