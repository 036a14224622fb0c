"""NIfTI files: every damaged one is made here, and is refused, or repaired with a note."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from selfvox.data.formats import image, nifti, volume
from selfvox.errors import DataError

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])


def voxels(dtype: str = "i2", shape: tuple[int, ...] = (7, 6, 5)) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 100, shape).astype(dtype)


def nifti_bytes(
    data: np.ndarray | None = None, affine: np.ndarray = AFFINE, kind: type = nib.Nifti1Image
) -> bytes:
    nifti_image = kind(voxels() if data is None else data, affine)
    nifti_image.set_qform(affine, 1)
    nifti_image.set_sform(affine, 1)
    return nifti_image.to_bytes()


def patched(offset: int, form: str, *values: float, content: bytes | None = None) -> bytes:
    raw = bytearray(nifti_bytes() if content is None else content)
    struct.pack_into("<" + form, raw, offset, *values)
    return bytes(raw)


def patches(*changes: tuple) -> bytes:
    raw = nifti_bytes()
    for change in changes:
        raw = patched(*change, content=raw)
    return raw


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def save(folder: Path, content: bytes, name: str = "scan.nii") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refused(path: Path, reason: str, **options: int) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        image.read_image(path, **options)
    message = str(caught.value)
    assert message.startswith(path.name)
    assert "\n" not in message
    assert ";" in message  # the remedy


ZIPPED = gzip.compress(nifti_bytes(), mtime=0)
NAN = float("nan")
INF = float("inf")


@pytest.mark.fault(
    "N1-N4 N6-N9",
    "packed NIfTI: empty, a web page, cut at many places, flipped bits, garbage after it",
    "refused with the reason",
)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"<html><body>404</body></html>" * 50, "not gzip", id="web page"),
        pytest.param(gzip.compress(b"some text " * 99), "not a NIfTI", id="gzip of text"),
        pytest.param(gzip.compress(b"text"), "less than a NIfTI header", id="gzip of short text"),
        pytest.param(
            gzip.compress(nifti_bytes()[:200]), "less than a NIfTI header", id="header cut"
        ),
        pytest.param(gzip.compress(nifti_bytes()[:500]), "asks for", id="data cut before packing"),
        pytest.param(ZIPPED[: len(ZIPPED) // 2], "cut", id="half a stream"),
        pytest.param(ZIPPED[:-3], "cut", id="trailer cut"),
        pytest.param(ZIPPED[:15], "NIfTI header|gzip", id="nothing left"),
        pytest.param(flipped(ZIPPED, len(ZIPPED) - 6), "damaged gzip.*checksum", id="CRC"),
        pytest.param(flipped(ZIPPED, len(ZIPPED) - 2), "damaged gzip", id="length"),
        pytest.param(flipped(ZIPPED, len(ZIPPED) // 2), "gzip", id="bit flip"),
        pytest.param(ZIPPED + b"trailing garbage", "more data after the end", id="garbage"),
        pytest.param(ZIPPED + ZIPPED, "more data after the end", id="two members"),
        pytest.param(
            gzip.compress(nifti_bytes() + b"x" * 40), "more data after the voxels", id="longer"
        ),
        pytest.param(
            gzip.compress(nifti_bytes() + b"x" * 100_000), "unpacks to more", id="much longer"
        ),
    ],
)
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    refused(save(tmp_path, content, "scan.nii.gz"), reason)


@pytest.mark.fault(
    "N1 N4 N5 N10 N12-N18 N20 N22-N24 N27-N29 N31-N33 N37",
    "NIfTI: one field of the header wrong or hostile, voxels cut, constant, complex, RGB",
    "refused with the field",
)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(nifti_bytes()[:200], "less than a NIfTI header", id="header cut"),
        pytest.param(
            nifti_bytes(kind=nib.Nifti2Image)[:400], "cut at 400 of 540", id="NIfTI-2 header cut"
        ),
        pytest.param(nifti_bytes()[:-1], "asks for", id="data cut"),
        pytest.param(nifti_bytes() + b"x", "more data after the voxels", id="trailing garbage"),
        pytest.param(patched(40, "4h", 3, 32767, 32767, 32767), "70362.3 GB", id="huge"),
        pytest.param(patched(42, "h", -7), "not all positive", id="negative"),
        pytest.param(patched(42, "h", 0), "not all positive", id="zero"),
        pytest.param(patched(40, "h", 9), "not 1 to 7", id="nine"),
        pytest.param(patched(40, "h", 0), "not 1 to 7", id="none"),
        pytest.param(patched(42, "h", 8), "asks for", id="claims more"),
        pytest.param(patched(70, "2h", 9999, 16), "voxel type 9999", id="unknown type"),
        pytest.param(patched(70, "2h", 1536, 128), "128-bit", id="float128"),
        pytest.param(patched(70, "2h", 128, 24), "RGB", id="RGB24"),
        pytest.param(nifti_bytes(voxels("c8")), "magnitude", id="complex"),
        pytest.param(patched(108, "f", 1e9), "asks for", id="offset 1e9"),
        pytest.param(patched(108, "f", -100), "vox_offset", id="offset -100"),
        pytest.param(patched(108, "f", NAN), "vox_offset", id="offset NaN"),
        pytest.param(patched(108, "f", INF), "vox_offset", id="offset Inf"),
        pytest.param(
            patches((80, "3f", 0, 2, 3), (254, "h", 0)), "voxel size 0", id="pixdim 0, no sform"
        ),
        pytest.param(patched(80, "f", NAN), "voxel sizes", id="pixdim NaN"),
        pytest.param(patched(280, "f", NAN), "sform", id="sform NaN"),
        pytest.param(patched(280, "12f", *[0] * 12), "sform", id="sform zeros"),
        pytest.param(patches((254, "h", 0), (256, "3f", 3, 3, 3)), "quaternion", id="quaternion"),
        pytest.param(
            patches((254, "h", 0), (256, "3f", NAN, 0, 0)), "quaternion", id="quaternion NaN"
        ),
        pytest.param(patched(112, "2f", INF, 0), "slope", id="slope Inf"),
        pytest.param(patched(112, "2f", 1, NAN), "intercept", id="intercept NaN"),
        pytest.param(patched(344, "4s", b"nope"), "magic", id="wrong magic"),
        pytest.param(patched(344, "4s", b"ni1\0"), "pair", id="pair magic"),
        pytest.param(nifti_bytes(np.full((4, 4, 4), 7, "i2")), "same value", id="constant"),
        pytest.param(nifti_bytes(np.full((4, 4, 4), 7, "f4")), "same value", id="constant float"),
        pytest.param(nifti_bytes(voxels(shape=(4, 4, 4, 5))), "has 5 volumes", id="five frames"),
        pytest.param(nifti_bytes(voxels(shape=(4, 4, 4, 1, 3))), "5 dimensions", id="vectors"),
        pytest.param(nifti_bytes(voxels(shape=(6, 5))), "single slice", id="2D"),
        pytest.param(nifti_bytes(voxels(shape=(6, 5, 1))), "single slice", id="one slice"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(500), "not a NIfTI", id="PNG"),
        pytest.param(ZIPPED, "gzip, though", id="gzip named .nii"),
    ],
)
def test_a_damaged_plain_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    refused(save(tmp_path, content), reason)


@pytest.mark.fault(
    "N11 X5",
    "NIfTI-2 of 10^6 voxels an edge, products that overflow",
    "refused from the header, in no memory",
)
def test_dimensions_whose_product_overflows_are_refused_at_once_without_memory(
    tmp_path: Path, record_reads: Callable[..., list[int]], peak_bytes: Callable[..., int]
) -> None:
    raw = bytearray(nifti_bytes(kind=nib.Nifti2Image))
    struct.pack_into("<4q", raw, 16, 3, 10**6, 10**6, 10**6)
    path = save(tmp_path, bytes(raw))
    sizes = record_reads(nifti)
    assert peak_bytes(lambda: refused(path, "2000000000.0 GB")) < 10 * 2**20
    struct.pack_into("<4q", raw, 16, 3, 2**62, 2**62, 2**62)
    packed = save(tmp_path, gzip.compress(bytes(raw)), "scan.nii.gz")
    assert peak_bytes(lambda: refused(packed, "GB")) < 10 * 2**20
    assert len(sizes) == 2  # the start of each file and no more


@pytest.mark.fault(
    "N19 N21 N28 N29",
    "NIfTI: bits per voxel, voxel sizes 0 or negative, slope 0 or NaN",
    "repaired with a note",
)
@pytest.mark.parametrize(
    ("content", "note"),
    [
        pytest.param(patched(72, "h", 32), "32 bits per voxel", id="bitpix"),
        pytest.param(patched(80, "3f", 0, 0, 0), "taken from the sform", id="pixdim 0"),
        pytest.param(patched(80, "3f", -2, 2, 3), "negative voxel sizes", id="pixdim negative"),
        pytest.param(
            patched(256, "3f", 3, 3, 3),
            "the sform is used",
            id="impossible qform with a good sform",
        ),
        pytest.param(patched(112, "2f", 0, 5), "slope 0 taken as 1", id="slope 0"),
        pytest.param(patched(112, "2f", NAN, 5), "slope nan taken as 1", id="slope NaN"),
        pytest.param(patched(0, "i", 349), "349 bytes", id="sizeof_hdr"),
    ],
)
def test_a_small_flaw_is_repaired_with_a_note(tmp_path: Path, content: bytes, note: str) -> None:
    scan = image.read_image(save(tmp_path, content))
    np.testing.assert_array_equal(scan.data[0], voxels())
    np.testing.assert_array_equal(scan.affine, AFFINE)
    assert scan.spacing_mm == (2, 2, 3)
    assert [note in line for line in scan.notes] == [True]
    np.testing.assert_array_equal(scan.header["pixdim"][1:4], [2, 2, 3])


@pytest.mark.fault("H6", "NIfTI in metres and micrometres", "converted to mm")
@pytest.mark.parametrize(("unit", "mm"), [("micron", 1e-3), ("meter", 1e3)])
@pytest.mark.parametrize("forms", [(1, 1), (0, 1), (0, 0)])
def test_other_units_become_mm_in_any_way_a_grid_is_given(
    tmp_path: Path, unit: str, mm: float, forms: tuple[int, int]
) -> None:
    grids = []
    for name, edges in ((unit, mm), ("mm", 1)):
        affine = AFFINE.copy()
        affine[:3] /= edges
        nifti_image = nib.Nifti1Image(voxels(), affine)
        nifti_image.set_sform(affine, forms[0])
        nifti_image.set_qform(affine, forms[1])
        nifti_image.header.set_xyzt_units(name)
        path = save(tmp_path, nifti_image.to_bytes(), f"{name}.nii")
        scan = image.read_image(path)
        grids.append(scan.affine)
        np.testing.assert_allclose(image.read_spacing(path), scan.spacing_mm)
        assert any("voxels of 2 x 2 x 3 mm" in note for note in scan.notes) == (name != "mm")
        # a label has the numbers and the unit of its scan, and is on its grid for all programs
        image.write_label(tmp_path / "label.nii", np.ones(scan.shape, int), scan)
        written = nib.load(tmp_path / "label.nii")
        np.testing.assert_allclose(written.affine, nifti_image.affine, rtol=1e-6)
        assert written.header.get_xyzt_units()[0] == name
        np.testing.assert_array_equal(image.read_label(tmp_path / "label.nii", scan), 1)
    np.testing.assert_allclose(grids[0], grids[1], rtol=1e-6)


@pytest.mark.fault("N25", "NIfTI without sform and qform", "read with a note")
def test_a_scan_without_sform_and_qform_is_placed_as_nibabel_does_with_a_note(
    tmp_path: Path,
) -> None:
    path = save(tmp_path, patches((252, "2h", 0, 0)))
    scan = image.read_image(path)
    assert "orientation unknown" in scan.notes[0]
    np.testing.assert_array_equal(scan.affine, nib.load(path).affine)


def test_the_qform_is_taken_where_there_is_no_sform(tmp_path: Path) -> None:
    turned = nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.3, 0.2, 0.1) @ np.diag([2, 2, -3]), [1, 2, 3]
    )
    nifti_image = nib.Nifti1Image(voxels(), None)
    nifti_image.set_qform(turned, 1)
    scan = image.read_image(save(tmp_path, nifti_image.to_bytes()))
    np.testing.assert_allclose(scan.affine, turned, atol=1e-5)
    assert scan.notes == ()


@pytest.mark.fault("N26", "sform and qform that disagree", "the sform, with a note")
def test_the_sform_wins_over_another_qform_with_a_note(tmp_path: Path) -> None:
    nifti_image = nib.Nifti1Image(voxels(), AFFINE)
    nifti_image.set_sform(AFFINE @ np.diag([2, 2, 2, 1]), 1)
    nifti_image.set_qform(AFFINE, 1)
    nifti_image.header["pixdim"][1:4] = (2, 2, 3)
    scan = image.read_image(save(tmp_path, nifti_image.to_bytes()))
    assert scan.spacing_mm == (4, 4, 6)
    assert "disagree" in scan.notes[0]


@pytest.mark.fault(
    "N30",
    "NaN and infinite voxels",
    "few become the minimum with a note, more than 1 % are refused",
)
def test_few_unusable_voxels_become_the_minimum_and_many_are_refused(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(10, 10, 10)).astype("f4")
    data[1, 2, 3] = NAN
    data[4, 5, 6] = INF
    data[7, 8, 9] = -INF
    scan = image.read_image(save(tmp_path, nifti_bytes(data)))
    expected = np.where(np.isfinite(data), data, data[np.isfinite(data)].min())
    np.testing.assert_array_equal(scan.data[0], expected)
    assert scan.notes == ("3 NaN or infinite voxels replaced by the minimum",)
    data[0, 0, :] = data[0, 1, :] = NAN
    refused(save(tmp_path, nifti_bytes(data)), "more than 1 %")


def test_finite_values_whose_sum_overflows_are_kept(tmp_path: Path) -> None:
    data = voxels("f4") * np.float32(3e36)
    np.testing.assert_array_equal(image.read_image(save(tmp_path, nifti_bytes(data))).data[0], data)


def test_a_double_beyond_single_precision_is_infinite_since_scans_are_prepared_in_it(
    tmp_path: Path,
) -> None:
    data = np.random.default_rng(0).normal(size=(10, 10, 10))
    data[1, 2, 3] = 1e39
    data[4, 5, 6] = -1e300
    scan = image.read_image(save(tmp_path, nifti_bytes(data)))
    expected = np.where(abs(data) < 1e38, data, data[abs(data) < 1e38].min())
    np.testing.assert_array_equal(scan.data[0], expected)
    assert scan.notes == ("2 NaN or infinite voxels replaced by the minimum",)


@pytest.mark.fault("N28", "a slope that overflows", "refused")
def test_a_slope_that_overflows_is_refused(tmp_path: Path) -> None:
    refused(save(tmp_path, patched(112, "2f", 3e38, 0)), "NaN or infinite")


def test_frames_are_channels_where_the_data_set_says_so(tmp_path: Path) -> None:
    data = voxels(shape=(6, 5, 4, 3))
    path = save(tmp_path, nifti_bytes(data))
    np.testing.assert_array_equal(image.read_image(path, channels=3).data, np.moveaxis(data, 3, 0))
    refused(path, "2 channels are expected", channels=2)


@pytest.mark.fault("N34", "trailing axes of one", "dropped")
def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    data = voxels(shape=(6, 5, 4, 1, 1))
    np.testing.assert_array_equal(
        image.read_image(save(tmp_path, nifti_bytes(data))).data[0], data[..., 0, 0]
    )


OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.4, 0.3, 0.2) @ np.diag([1.0, 2, 3]), [5, 6, 7]
)


@pytest.mark.fault("N35", "all voxel types, byte orders and orientations", "the voxels of nibabel")
@pytest.mark.parametrize(
    "affine", [AFFINE, OBLIQUE, OBLIQUE @ np.diag([-1, 1, 1, 1])], ids=["flip", "oblique", "left"]
)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_real_type_order_and_orientation_reads_as_nibabel_reads_it(
    tmp_path: Path, affine: np.ndarray, kind: type, order: str, dtype: str
) -> None:
    nifti_image = kind(voxels(dtype), affine, kind.header_class(endianness=order))
    nifti_image.set_data_dtype(dtype)
    path = save(tmp_path, gzip.compress(nifti_image.to_bytes(), 1), "scan.nii.gz")
    scan = image.read_image(path)
    expected = nib.load(path)
    assert expected.header.endianness == order
    np.testing.assert_array_equal(scan.data[0], np.asanyarray(expected.dataobj))
    np.testing.assert_array_equal(scan.affine, expected.affine)
    assert scan.data.dtype == np.dtype(dtype)
    assert scan.data.dtype.isnative


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
def test_slope_and_intercept_are_applied_as_nibabel_applies_them(
    tmp_path: Path, dtype: str
) -> None:
    path = save(tmp_path, patched(112, "2f", 0.37, -1024, content=nifti_bytes(voxels(dtype))))
    np.testing.assert_allclose(
        image.read_image(path).data[0], nib.load(path).get_fdata(), rtol=1e-6, atol=1e-3
    )


@pytest.mark.fault("N36", "NIfTI extensions of a negative size", "read without a loop")
def test_an_endless_chain_of_extensions_is_never_walked(tmp_path: Path) -> None:
    raw = bytearray(nifti_bytes())
    struct.pack_into("<f", raw, 108, 384)
    chain = b"\1\0\0\0" + struct.pack("<2i", -16, 6) + bytes(24)
    content = bytes(raw[:348]) + chain + bytes(raw[352:])
    np.testing.assert_array_equal(image.read_image(save(tmp_path, content)).data[0], voxels())


@pytest.mark.fault("N37", "files without a known ending", "refused")
@pytest.mark.parametrize("name", ["scan", "scan.nii.bz2", ".nii.gz"])
def test_an_unknown_ending_is_refused(tmp_path: Path, name: str) -> None:
    refused(save(tmp_path, nifti_bytes(), name), "unknown kind of file")


@pytest.mark.fault(
    "N38",
    "folder, pipe and link to /dev/zero in place of a scan",
    "refused before it is opened",
)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mha", "scan.nrrd", "scan.png"])
def test_only_a_regular_file_is_ever_opened(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    make(tmp_path / name)
    refused(tmp_path / name, "not a regular file but")


def test_a_missing_file_is_named_and_a_link_to_a_scan_is_read(tmp_path: Path) -> None:
    refused(tmp_path / "scan.nii", "no such file")
    (tmp_path / "link.nii").symlink_to(save(tmp_path, nifti_bytes()))
    np.testing.assert_array_equal(image.read_image(tmp_path / "link.nii").data[0], voxels())


def zeros_zipped(header: bytes, megabytes: int) -> bytes:
    pack = zlib.compressobj(9, wbits=31)
    return (
        pack.compress(header)
        + b"".join(pack.compress(bytes(2**20)) for _ in range(megabytes))
        + pack.flush()
    )


@pytest.mark.fault(
    "N39 X4",
    "a gzip bomb of 2 GB, a header of 17 GB",
    "refused before it is unpacked",
)
def test_a_bomb_is_refused_before_it_grows(
    tmp_path: Path, record_reads: Callable[..., list[int]]
) -> None:
    header = patched(40, "4h", 3, 1024, 1024, 1024)[:352]
    # only its start matters: no stream grows more than 1032 fold
    content = zeros_zipped(header, 1)[:2000] + bytes(2 * 10**6)
    path = save(tmp_path, content, "scan.nii.gz")
    sizes = record_reads(nifti)
    refused(path, "cannot unpack to the 2147484000")
    assert len(sizes) == 1
    assert sizes[0] < len(content) / 10
    refused(save(tmp_path, patched(40, "4h", 3, 2048, 2048, 2048)), "17.2 GB")


@pytest.mark.fault(
    "N39g", "a sparse file of 3.8 GB where 6 GB of memory are free", "refused before it is read"
)
@pytest.mark.parametrize("name", ["scan.nii", "scan.mha"])
def test_a_scan_that_the_memory_cannot_have_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak_bytes: Callable[..., int], name: str
) -> None:
    header = patched(40, "4h", 3, 1024, 1024, 1812)[:352]
    if name.endswith(".mha"):
        small = SimpleITK.Image(2, 2, 2, SimpleITK.sitkInt16)
        SimpleITK.WriteImage(small, str(tmp_path / "small.mha"))
        content = (tmp_path / "small.mha").read_bytes()
        header = content[: -2 * 2**3].replace(b"DimSize = 2 2 2", b"DimSize = 1024 1024 1812")
    path = save(tmp_path, header, name)
    with path.open("r+b") as file:
        file.truncate(len(header) + 2 * 1024 * 1024 * 1812)  # a hole in the file system
    monkeypatch.setattr(volume, "memory_bytes", lambda: 6e9)
    reason = r"needs 7.6 GB of memory at least, and 6.0 GB are free"
    assert peak_bytes(lambda: refused(path, reason)) < 10**7


@pytest.mark.fault(
    "X4",
    "a stream that unpacks to more than its header says",
    "refused where it grows beyond",
)
def test_a_small_header_cannot_make_a_stream_grow_past_what_it_says(
    tmp_path: Path, peak_bytes: Callable[..., int]
) -> None:
    path = save(tmp_path, zeros_zipped(nifti_bytes(), 64), "scan.nii.gz")

    def read() -> None:
        with pytest.raises(DataError, match="more"):
            nifti.read_nifti(path)

    assert peak_bytes(read) < 2 * 2**20  # of 64 MiB


@pytest.mark.fault(
    "H5",
    "an almost empty mask that packs a thousandfold",
    "read: only the size is limited",
)
def test_a_nearly_empty_label_that_shrinks_a_thousandfold_is_read(tmp_path: Path) -> None:
    """As large ones do that passed through `get_fdata`, which makes eight bytes of each voxel."""
    data = np.zeros((100, 100, 100), "f8")
    data[50, 50, 50] = 1
    path = save(tmp_path, gzip.compress(nifti_bytes(data)), "scan.nii.gz")
    assert data.nbytes > 500 * path.stat().st_size
    np.testing.assert_array_equal(image.read_image(path).data[0], data)


@pytest.mark.fault("N40", "a scan smaller than any crop", "read")
def test_a_scan_smaller_than_any_crop_is_read(tmp_path: Path) -> None:
    assert image.read_image(save(tmp_path, nifti_bytes(voxels(shape=(2, 2, 2))))).shape == (2, 2, 2)


def test_a_stored_type_is_kept_and_its_memory_never_copied(tmp_path: Path) -> None:
    scan = image.read_image(save(tmp_path, ZIPPED, "scan.nii.gz"))
    owner = scan.data
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, bytes)  # the inflated stream itself


@pytest.mark.fault("X7", "line breaks and escapes in a file name", "one plain line")
def test_a_name_with_line_breaks_and_escapes_makes_one_plain_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        image.read_image(save(tmp_path, b"", "a\nb\x1b[31m.nii"))
    assert str(caught.value).isprintable()


@pytest.mark.fault(
    "X19",
    "any byte of a NIfTI header replaced",
    "read or refused, never an internal error",
)
def test_the_reader_survives_any_single_byte_of_the_header(tmp_path: Path) -> None:
    raw = nifti_bytes()
    rng = np.random.default_rng(0)
    for at in range(348):
        content = raw[:at] + rng.integers(0, 256, 1, np.uint8).tobytes() + raw[at + 1 :]
        try:
            scan = image.read_image(save(tmp_path, content))
        except DataError:
            continue
        assert np.isfinite(scan.data).all()
        assert abs(np.linalg.det(scan.affine)) > 0
        image.write_label(tmp_path / "label.nii", np.ones(scan.shape, int), scan)
        np.testing.assert_array_equal(image.read_label(tmp_path / "label.nii", scan), 1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real scans next to the project")
def test_real_scans_read_as_nibabel_reads_them() -> None:
    paths = [
        p for p in sorted(SHARED.rglob("*.nii.gz")) if "label" not in str(p) and "seg" not in p.name
    ]
    assert len(paths) > 100
    for path in paths[::12]:
        scan = image.read_image(path)
        expected = nib.load(path)
        np.testing.assert_array_equal(
            scan.data[0], np.asanyarray(expected.dataobj), err_msg=path.name
        )
        np.testing.assert_array_equal(scan.affine, expected.affine)
