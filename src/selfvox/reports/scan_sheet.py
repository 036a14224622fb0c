"""Sheets of small pictures, one for each scan of a data set, to look at all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from selfvox.runs.atomic_files import atomic_write

_WIDTH = 1200  # pixels of a sheet, about
_HEIGHT = 1600  # pixels of a sheet, at most
_CAPTION = 14  # pixels under a picture
_GAP = 6
_MARKED = (231, 29, 54)
_PLAIN = (200, 200, 200)


def write_sheets(
    folder: Path, pictures: Mapping[str, np.ndarray], captions: Mapping[str, str], marked: set[str]
) -> list[Path]:
    """Write `sheet_1.png`, `sheet_2.png` and so on; returns their paths.

    Args:
        folder: is made.
        pictures: uint8 (row, column, 3) by id of the scan, all of one size.
        captions: by id.
        marked: ids with a red frame and caption.
    """
    if not pictures:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("sheet_*.png"):
        old.unlink()
    height, width, _ = next(iter(pictures.values())).shape
    columns = max(1, _WIDTH // (width + _GAP))
    rows = max(1, _HEIGHT // (height + _CAPTION + _GAP))
    ids = list(pictures)
    per_sheet = columns * rows
    paths = []
    for start in range(0, len(ids), per_sheet):
        path = folder / f"sheet_{start // per_sheet + 1}.png"
        sheet = _draw_sheet(ids[start : start + per_sheet], pictures, captions, marked, columns)
        with atomic_write(path) as temporary:
            sheet.save(temporary, format="PNG")
        paths.append(path)
    return paths


def _draw_sheet(
    ids: Sequence[str],
    pictures: Mapping[str, np.ndarray],
    captions: Mapping[str, str],
    marked: set[str],
    columns: int,
) -> Pillow.Image:
    height, width, _ = pictures[ids[0]].shape
    rows = -(-len(ids) // columns)
    step_x = width + _GAP
    step_y = height + _CAPTION + _GAP
    sheet = Pillow.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), (30, 30, 30))
    pen = ImageDraw.Draw(sheet)
    for number, scan in enumerate(ids):
        row, column = divmod(number, columns)
        left = _GAP + column * step_x
        top = _GAP + row * step_y
        sheet.paste(Pillow.fromarray(pictures[scan]), (left, top))
        colour = _MARKED if scan in marked else _PLAIN
        if scan in marked:
            pen.rectangle((left - 1, top - 1, left + width, top + height), outline=_MARKED, width=2)
        # about 6 pixels a letter; the default font draws ASCII alone
        text = captions[scan][: width // 6].encode("ascii", "replace").decode()
        pen.text((left, top + height + 1), text, fill=colour)
    return sheet
