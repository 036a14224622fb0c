"""Pictures (PNG, JPEG, TIFF, GIF, BMP, PPM) through Pillow: upright, grey or RGB, not too large."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, ImageSequence, UnidentifiedImageError

from selfvox.data.naming import printable
from selfvox.errors import DataError
from selfvox.runs.atomic_files import atomic_write
from selfvox.runs.safe_open import open_regular

LIMIT_PIXELS = 2**26  # 8192 x 8192
# each decoder is code that untrusted files reach, so that a name opens few of them
_FORMATS = ("PNG", "JPEG", "TIFF")
_FORMATS_OF = {".gif": ("GIF",), ".bmp": ("BMP",), ".ppm": ("PPM",), ".pgm": ("PPM",)}
_EXIF_ORIENTATION = 0x0112
# Pillow's mode -> the grey mode it is converted to; I;16* are kept as they are
_GREY = {
    "1": "L",
    "L": "L",
    "LA": "L",
    "I;16": "I;16",
    "I;16B": "I;16",
    "I;16L": "I;16",
    "I": "I",
    "F": "F",
}
_SHADES = {"L;2": 85, "L;4": 17}  # of grey of 2 and 4 bits, by the raw mode of the file
_COLOUR = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr")


def read_picture(
    path: Path, limit_pixels: int = LIMIT_PIXELS
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The picture as (channel, row, column), one channel of grey or three of colour, and notes.

    1-bit becomes 0 and 255; a palette, CMYK and YCbCr become RGB; transparency is dropped; 16-bit
    and floating grey keep their values; a camera's EXIF rotation is applied.

    Raises:
        DataError: damaged, animated, several pages, too large, or not what its name says.
    """
    picture, notes = _open(path, limit_pixels)
    if picture.mode in _GREY:
        grey = picture if picture.mode.startswith("I") else picture.convert(_GREY[picture.mode])
        return _native(np.asarray(grey))[None], notes
    if picture.mode not in _COLOUR:
        raise DataError(
            f"{printable(path.name)}: colour space {picture.mode} is not read; "
            "save it as RGB or grey"
        )
    if picture.mode in ("P", "PA") or "transparency" in picture.info:
        # Pillow warns when a palette with transparency goes straight to RGB
        picture = picture.convert("RGBA")
    return np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0), notes


def read_label(path: Path, limit_pixels: int = LIMIT_PIXELS) -> tuple[np.ndarray, bool]:
    """Class numbers (row, column) as stored, and whether the format is lossy.

    Of a palette these are the indices, but of GIF the shades of grey; 1-bit becomes 0 and 1; equal
    colours become one number.

    Raises:
        DataError: the file cannot be used, or is coloured.
    """
    picture, _ = _open(path, limit_pixels)
    file_format = picture.info["selfvox format"]
    if file_format == "GIF" and picture.mode == "P":
        # its programs order the palette as they like: 1 may be black in one file, white in another
        picture = picture.convert("RGB")
    values = _native(np.asarray(picture))
    raw_mode = picture.info["selfvox raw mode"]
    if raw_mode in _SHADES:
        # Pillow spreads them over the range of a byte
        values = values // _SHADES[raw_mode]
    if picture.mode == "1":
        values = values.astype(np.uint8)
    elif picture.mode in ("RGB", "RGBA", "LA") and _colours_equal(values):
        values = values[..., 0]
    elif picture.mode not in ("P", *_GREY):
        raise DataError(
            f"{printable(path.name)}: a coloured label ({picture.mode}); "
            "save one class number per pixel, as PNG"
        )
    return values, file_format == "JPEG"


def write_picture(path: Path, values: np.ndarray) -> None:
    """Write uint8 or uint16 (row, column) as PNG, or float32 as TIFF.

    float32 may be (page, row, column).
    """
    pages = [Pillow.fromarray(page) for page in (values if values.ndim == 3 else values[None])]
    file_format = "TIFF" if values.dtype.kind == "f" else "PNG"
    options = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    with atomic_write(path) as temporary:
        pages[0].save(temporary, format=file_format, **options)


def read_pages(path: Path, limit_pixels: int = LIMIT_PIXELS) -> np.ndarray:
    """Numbers (page, row, column), float32, as `write_picture` writes them as TIFF.

    Raises:
        DataError: damaged, too large, or something else.
    """
    with open_regular(path) as file:
        try:
            picture = Pillow.open(file, formats=("TIFF",))
            if picture.width * picture.height > limit_pixels:
                raise DataError(
                    f"{printable(path.name)}: more than {limit_pixels} pixels; predict it again"
                )
            pages = [np.array(page) for page in ImageSequence.Iterator(picture)]
            return _native(np.stack(pages)).astype(np.float32, casting="same_kind", copy=False)
        except DataError:
            raise
        except Exception as error:  # decoders fail in many ways, all of which mean a damaged file
            raise DataError(
                f"{printable(path.name)}: no map, or a damaged one; predict it again"
            ) from error


def _open(path: Path, limit_pixels: int) -> tuple[Pillow.Image, tuple[str, ...]]:
    """The decoded picture, upright, and notes."""
    name = printable(path.name)
    formats = _FORMATS_OF.get(path.suffix.lower(), _FORMATS)
    with open_regular(path) as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            picture = Pillow.open(file, formats=formats)  # reads the header only
            _check_header(picture, limit_pixels, name)
            file_format = picture.format
            tiles = getattr(picture, "tile", ())  # empty once it is loaded
            raw_mode = str(tiles[0][3]) if tiles else ""
            notes = _notes(picture)
            picture.load()
            upright = ImageOps.exif_transpose(picture)
        except DataError:
            raise
        except UnidentifiedImageError as error:
            raise DataError(
                f"{name}: not a {' or '.join(formats)} picture, whatever its name; export it again"
            ) from error
        except Pillow.DecompressionBombError as error:
            raise DataError(f"{name}: far too many pixels; crop or shrink it") from error
        except Exception as error:  # decoders fail in many ways, all of which mean a damaged file
            raise DataError(f"{name}: damaged picture; copy it again from its source") from error
    # a transposed picture has none
    upright.info |= {"selfvox format": file_format, "selfvox raw mode": raw_mode}
    messages = {" ".join(str(warning.message).split()) for warning in caught}
    return upright, (*notes, *sorted(messages))


def _check_header(picture: Pillow.Image, limit_pixels: int, name: str) -> None:
    width, height = picture.size
    if width * height > limit_pixels:
        raise DataError(
            f"{name}: {width} x {height} pixels are more than {limit_pixels}; crop or shrink it"
        )
    if getattr(picture, "n_frames", 1) > 1:
        raise DataError(f"{name}: animated, or several pages; save the one picture that is meant")


def _notes(picture: Pillow.Image) -> tuple[str, ...]:
    """What reading will change, one line each."""
    notes = []
    # first, since looking for EXIF loads a PNG and clears its `tile`
    tiles = getattr(picture, "tile", ())
    if picture.mode.startswith(("RGB", "LA")) and any(";16" in str(tile[3]) for tile in tiles):
        notes.append("16 bits per colour reduced to 8")
    if picture.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        notes.append("turned upright by its EXIF tag")
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        notes.append("transparency dropped")
    if picture.mode in ("P", "PA"):
        notes.append("palette converted to RGB")
    if picture.mode in ("CMYK", "YCbCr"):
        notes.append(f"{picture.mode} converted to RGB")
    return tuple(notes)


def _colours_equal(values: np.ndarray) -> bool:
    """Whether red, green and blue are the same everywhere; an alpha channel does not count."""
    colours = values[..., :3] if values.shape[-1] > 2 else values[..., :1]
    return bool((values[..., :1] == colours).all())


def _native(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder("="), copy=False)
