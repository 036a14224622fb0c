"""Pictures: every mode becomes known values; damaged, animated and huge files are refused."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageFile

from selfvox.data.formats import image
from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.sources import Case
from selfvox.errors import DataError

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
GREY = np.array([[0, 1, 100], [128, 254, 255]], "u1")
COLOUR = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[1, 2, 3], [0, 0, 0], [255, 255, 255]]], "u1"
)


def saved(path: Path, values: np.ndarray | Pillow.Image, **options: object) -> Path:
    (Pillow.fromarray(values) if isinstance(values, np.ndarray) else values).save(path, **options)
    return path


def palette() -> Pillow.Image:
    picture = Pillow.fromarray(np.array([[0, 1, 2], [2, 1, 0]], "u1"))
    picture = Pillow.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    return picture


def with_alpha(values: np.ndarray) -> np.ndarray:
    values = values if values.ndim == 3 else values[..., None]
    return np.concatenate([values, np.array([[[0], [9], [255]]] * 2, "u1")], -1)


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_of_header(
    width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 0, data: bytes = b""
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, bits, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def test_grey_keeps_its_values(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "a.tiff", "A.PNG"):
        scan = image.read_image(saved(tmp_path / name, GREY))
        np.testing.assert_array_equal(scan.data, GREY[None])
        assert (scan.data.dtype, scan.shape, scan.spatial_dims, scan.spacing_mm) == (
            np.uint8,
            (2, 3),
            2,
            (1.0, 1.0),
        )
        assert scan.notes == ()


def test_colour_is_three_channels_first(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(
            image.read_image(saved(tmp_path / name, COLOUR)).data, COLOUR.transpose(2, 0, 1)
        )


@pytest.mark.fault("P3", "pictures of one bit", "0 and 255")
def test_one_bit_becomes_0_and_255(tmp_path: Path) -> None:
    bits = np.array([[True, False, True], [False, False, True]])
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(
            image.read_image(saved(tmp_path / name, bits)).data[0], bits * np.uint8(255)
        )


@pytest.mark.fault("P3", "pictures with a palette", "their colours")
def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], "u1")[
        [[0, 1, 2], [2, 1, 0]]
    ].transpose(2, 0, 1)
    scan = image.read_image(saved(tmp_path / "a.png", palette()))
    np.testing.assert_array_equal(scan.data, colours)
    assert scan.notes == ("palette converted to RGB",)
    np.testing.assert_array_equal(
        image.read_image(saved(tmp_path / "b.png", palette(), transparency=1)).data, colours
    )


@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["LA", "RGBA"])
def test_transparency_is_dropped_and_the_colours_below_it_kept(
    tmp_path: Path, values: np.ndarray
) -> None:
    scan = image.read_image(saved(tmp_path / "a.png", with_alpha(values)))
    np.testing.assert_array_equal(
        scan.data, np.moveaxis(values if values.ndim == 3 else values[..., None], -1, 0)
    )
    assert scan.notes == ("transparency dropped",)


@pytest.mark.fault("P3", "CMYK", "RGB")
def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    inks = Pillow.fromarray(
        np.array([[[255, 0, 0, 0], [0, 255, 0, 0]], [[0, 0, 0, 255], [0, 0, 0, 0]]], "u1"), "CMYK"
    )
    expected = [[[0, 255, 255], [255, 0, 255]], [[0, 0, 0], [255, 255, 255]]]
    scan = image.read_image(saved(tmp_path / "a.tif", inks))
    np.testing.assert_array_equal(scan.data, np.transpose(expected, (2, 0, 1)))
    assert scan.notes == ("CMYK converted to RGB",)


@pytest.mark.fault("P3", "pictures of 16 bits", "their values")
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_kept(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 255, 256], [4095, 40_000, 65_535]], "u2")
    scan = image.read_image(saved(tmp_path / name, values))
    np.testing.assert_array_equal(scan.data[0], values)
    assert scan.data.dtype == np.uint16


def test_big_endian_sixteen_bits_are_kept(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256], [4095, 40_000, 65_535]], "u2")
    picture = Pillow.frombytes("I;16B", (3, 2), values.astype(">u2").tobytes())
    scan = image.read_image(saved(tmp_path / "a.tif", picture))
    np.testing.assert_array_equal(scan.data[0], values)
    assert scan.data.dtype.isnative


def test_sixteen_bit_colour_is_reduced_to_eight_and_says_so(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in COLOUR)
    (tmp_path / "a.png").write_bytes(png_of_header(3, 2, bits=16, colour=2, data=rows))
    scan = image.read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(scan.data, COLOUR.transpose(2, 0, 1))
    assert scan.notes == ("16 bits per colour reduced to 8",)


def test_floating_grey_is_kept_and_its_nan_repaired(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 400, dtype="f4").reshape(20, 20)
    np.testing.assert_array_equal(
        image.read_image(saved(tmp_path / "a.tif", values)).data[0], values
    )
    values[3, 4] = np.nan
    scan = image.read_image(saved(tmp_path / "b.tif", values))
    assert (scan.data[0, 3, 4], len(scan.notes)) == (-1, 1)


def test_a_jpeg_reads_as_pillow_reads_it(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = saved(tmp_path / "a.jpg", values)
    np.testing.assert_array_equal(
        image.read_image(path).data, np.asarray(Pillow.open(path)).transpose(2, 0, 1)
    )


@pytest.mark.fault("P4", "EXIF rotation of picture and mask", "turned alike, once")
@pytest.mark.parametrize(
    ("tag", "undo"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.T),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].T),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_turns_scan_and_mask_alike_once(tmp_path: Path, tag: int, undo) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = tag
    scan = image.read_image(saved(tmp_path / "a.png", GREY, exif=exif))
    np.testing.assert_array_equal(scan.data[0], undo(GREY))
    assert scan.notes == ("turned upright by its EXIF tag",)
    np.testing.assert_array_equal(
        image.read_label(saved(tmp_path / "mask.png", GREY, exif=exif), scan), undo(GREY)
    )
    image.write_label(tmp_path / "out.png", undo(GREY), scan)
    np.testing.assert_array_equal(image.read_label(tmp_path / "out.png", scan), undo(GREY))


@pytest.mark.fault("P1", "PNG, JPEG and TIFF, cut", "refused")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_cut_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = saved(tmp_path / name, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"damaged|not a PNG") as caught:
        image.read_image(path)
    assert str(caught.value).startswith(name)


@pytest.mark.fault("P2", "headers of 12 000 pixels an edge and more", "refused before decoding")
@pytest.mark.parametrize("edge", [12_000, 60_000, 2**31 - 1])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: int
) -> None:
    (tmp_path / "a.png").write_bytes(png_of_header(edge, edge))
    decoded: list[ImageFile.ImageFile] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    with pytest.raises(DataError, match="pixels"):
        image.read_image(tmp_path / "a.png")
    assert decoded == []


@pytest.mark.fault("P5", "a mask with smoothed edges", "refused with its values")
def test_a_blurred_mask_is_refused_naming_its_values(tmp_path: Path) -> None:
    scan = image.read_image(saved(tmp_path / "a.png", COLOUR))
    with pytest.raises(
        DataError, match=r"unexpected label values 100, 128, 254, 255; declared are 0, 1"
    ):
        image.read_label(saved(tmp_path / "mask.png", GREY), scan, {0, 1})


@pytest.mark.fault("P5", "a mask saved as JPEG", "refused")
def test_a_jpeg_mask_is_refused_even_without_declared_classes(tmp_path: Path) -> None:
    scan = image.read_image(saved(tmp_path / "a.png", COLOUR))
    with pytest.raises(DataError, match="JPEG"):
        image.read_label(saved(tmp_path / "mask.png", GREY, format="JPEG"), scan)


@pytest.mark.fault("P6", "a mask of another size", "refused")
def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    scan = image.read_image(saved(tmp_path / "a.png", COLOUR))
    with pytest.raises(DataError, match=r"shape \(3, 2\) for a.png of \(2, 3\)"):
        image.read_label(saved(tmp_path / "mask.png", np.ascontiguousarray(GREY.T)), scan)


@pytest.mark.fault("P7", "animated PNG, TIFF of several pages", "refused")
@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.tif", "TIFF")])
def test_animations_and_pages_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    saved(
        tmp_path / name,
        GREY,
        format=kind,
        save_all=True,
        append_images=[Pillow.fromarray(255 - GREY)],
    )
    with pytest.raises(DataError, match="animated, or several pages"):
        image.read_image(tmp_path / name)


@pytest.mark.fault("P8 N37", "SVG, HTML, PDF and others named as pictures", "refused")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html></html>",
        b"GIF89a" + bytes(99),
        b"%PDF-1.7",
        b"%!PS",
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff"])
def test_a_renamed_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="not a PNG or JPEG or TIFF"):
        image.read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.gif", "a.bmp", "a.ppm", "a.pgm", "A.GIF"])
def test_pictures_of_older_data_sets_are_read_by_their_names_alone(
    tmp_path: Path, name: str
) -> None:
    """DRIVE's labels are GIF, STARE's pictures PPM, those of PH2 and REFUGE's labels BMP."""
    grey = saved(tmp_path / name, GREY)
    np.testing.assert_array_equal(image.read_image(grey).data[0], GREY)
    mask = saved(tmp_path / f"mask_{name}", np.where(GREY > 100, 255, 0).astype("u1"))
    np.testing.assert_array_equal(
        image.read_label(mask, image.read_image(grey)), np.where(GREY > 100, 255, 0)
    )
    saved(tmp_path / "b.png", GREY).rename(grey)
    with pytest.raises(DataError, match="picture, whatever its name"):
        image.read_image(grey)


def test_the_order_of_a_gifs_palette_changes_no_class(tmp_path: Path) -> None:
    labels = []
    for black_first in (True, False):
        picture = Pillow.fromarray(np.array([[0, 0, 1], [1, 1, 0]], "u1") ^ (not black_first))
        picture = Pillow.frombytes("P", picture.size, picture.tobytes())
        shades = [0, 0, 0, 255, 255, 255]
        picture.putpalette(shades if black_first else shades[::-1])
        path = saved(tmp_path / f"{black_first}.gif", picture)
        labels.append(image.read_label(path, image.read_grid(path)))
    np.testing.assert_array_equal(labels[0], [[0, 0, 255], [255, 255, 0]])
    np.testing.assert_array_equal(labels[1], labels[0])


def test_colours_of_a_ppm_are_kept(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ppm", COLOUR)
    np.testing.assert_array_equal(image.read_image(path).data, np.moveaxis(COLOUR, -1, 0))


@pytest.mark.fault("P8", "a PNG text chunk that is a bomb", "not unpacked")
@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_chunk_that_grows_a_thousandfold_is_refused_or_ignored_without_growing(
    tmp_path: Path, peak_bytes: Callable[..., int], kind: bytes
) -> None:
    bomb = chunk(kind, b"name\0\0" + zlib.compress(bytes(64 * 2**20), 9))
    (tmp_path / "a.png").write_bytes(png_of_header(2, 1, bomb, data=b"\0\1\2"))

    def read() -> None:
        with contextlib.suppress(DataError):
            np.testing.assert_array_equal(image.read_image(tmp_path / "a.png").data, [[[1, 2]]])

    assert peak_bytes(read) < 8 * 2**20  # of 64 MiB


@pytest.mark.fault("P9", "impossible fields of TIFF", "refused, or read right")
@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (257, 2**31),
        (258, 2**30),
        (273, 2**32 - 1),
        (278, 2**32 - 1),
        (279, 2**32 - 1),
        (277, 2**15),
    ],
)
def test_a_tiff_with_an_impossible_field_is_refused_or_read_right(
    tmp_path: Path, tag: int, value: int
) -> None:
    path = saved(tmp_path / "a.tif", GREY)
    content = bytearray(path.read_bytes())
    start = int.from_bytes(content[4:8], "little")
    for at in range(
        start + 2, start + 2 + 12 * int.from_bytes(content[start : start + 2], "little"), 12
    ):
        if int.from_bytes(content[at : at + 2], "little") == tag:
            content[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        np.testing.assert_array_equal(image.read_image(path).data, GREY[None])


def test_a_constant_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="same value"):
        image.read_image(saved(tmp_path / "a.png", np.full((4, 4), 3, "u1")))


def test_a_mask_is_read_from_palette_one_bit_grey_and_equal_colours(tmp_path: Path) -> None:
    scan = image.read_image(saved(tmp_path / "a.png", COLOUR))
    indices = np.array([[0, 1, 2], [2, 1, 0]], "u1")
    masks = {
        "palette": (palette(), indices),
        "bits": (indices > 0, indices > 0),
        "grey": (indices, indices),
        "sixteen": (indices.astype("u2") * 300, indices.astype("u2") * 300),
        "colours": (np.repeat(indices[..., None], 3, -1), indices),
        "alpha": (with_alpha(indices), indices),
    }
    for name, (mask, expected) in masks.items():
        np.testing.assert_array_equal(
            image.read_label(saved(tmp_path / f"{name}.png", mask), scan), expected, name
        )
    with pytest.raises(DataError, match="coloured label"):
        image.read_label(tmp_path / "a.png", scan)


@pytest.mark.parametrize("highest", [2, 300])
def test_a_written_mask_is_read_back(tmp_path: Path, highest: int) -> None:
    scan = image.read_image(saved(tmp_path / "a.png", COLOUR))
    label = np.random.default_rng(0).integers(0, highest, scan.shape, endpoint=True)
    label[0, 0] = highest
    image.write_label(tmp_path / "mask.png", label, scan)
    np.testing.assert_array_equal(image.read_label(tmp_path / "mask.png", scan), label)


def test_a_map_of_a_picture_is_a_floating_tiff_with_a_page_per_class(tmp_path: Path) -> None:
    scan = image.read_image(saved(tmp_path / "a.png", COLOUR))
    values = np.random.default_rng(0).random((3, *scan.shape)).astype("f4")
    image.write_map(tmp_path / "map.tif", values, scan)
    with Pillow.open(tmp_path / "map.tif") as pages:
        for number in range(3):
            pages.seek(number)
            np.testing.assert_array_equal(np.asarray(pages), values[number])


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real scans next to the project")
def test_real_photographs_read_as_pillow_reads_them() -> None:
    paths = sorted((SHARED / "idrid_fundus" / "images").glob("*.png"))
    assert len(paths) > 100
    for path in paths[::20]:
        with Pillow.open(path) as picture:
            expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(image.read_image(path).data, expected)


@pytest.mark.fault("H14", "a grey picture saved in colour among grey ones", "read as grey")
def test_a_grey_picture_may_be_saved_in_colour_among_grey_ones_and_the_reverse(
    tmp_path: Path,
) -> None:
    shades = np.random.default_rng(0).integers(0, 256, (8, 9)).astype("u1")
    grey = saved(tmp_path / "grey.png", shades)
    copy = saved(tmp_path / "copy.png", np.stack([shades] * 3, -1))
    colour = saved(tmp_path / "colour.png", np.stack([shades, shades[::-1], shades], -1))

    def read(path: Path, channels: int) -> image.Image:
        return read_case(Case(path.stem, path.stem, (path,)), channels)

    for path, channels in ((grey, 1), (copy, 1), (grey, 3), (copy, 3)):
        scan = read(path, channels)
        np.testing.assert_array_equal(scan.data, np.stack([shades] * channels))
        assert len(scan.notes) == ((path == grey) != (channels == 1))
    assert len(read(colour, 3).data) == 3
    with pytest.raises(DataError, match="has 3 channels where the data set has 1"):
        read(colour, 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_grey_mask_of_few_bits_has_the_numbers_that_are_stored(tmp_path: Path, bits: int) -> None:
    rows, columns = 6, 8
    numbers = np.random.default_rng(bits).integers(0, min(2**bits, 9), (rows, columns), dtype="u1")
    packed = [
        np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()) for row in numbers
    ]
    header = struct.pack(">IIBBBBB", columns, rows, bits, 0, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in packed)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "mask.png").write_bytes(content)
    scan = image.read_image(saved(tmp_path / "a.png", np.arange(48, dtype="u1").reshape(6, 8)))
    np.testing.assert_array_equal(image.read_label(tmp_path / "mask.png", scan), numbers)
