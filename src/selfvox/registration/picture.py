"""A picture of copies: the labelled scan, the unlabelled scan, and the copy that joins both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.plotting import axial_slice, informative_level, outline, save_figure, write_letters
from selfvox.registration.registered_pairs import RegisteredPair, copies_of, read_label, read_scan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 3  # the pair that fits worst, the one in the middle, and the best


def draw_pairs(
    out: Path, labelled: Store, unlabelled: Store, copies: Store, pairs: Sequence[RegisteredPair]
) -> None:
    """Draw some pairs, from the one that fits worst to the best.

    Args:
        out: the picture.
        labelled: scans that were moved.
        unlabelled: scans that they were moved to.
        copies: of the labelled scans.
        pairs: registered, with copies.
    """
    from matplotlib.figure import Figure  # only here: it takes half a second

    # a random choice could hide the worst
    ordered = sorted(pairs, key=lambda pair: pair.similarity)
    places = sorted({round(place) for place in np.linspace(0, len(ordered) - 1, ROWS)})
    figure = Figure(figsize=(9, 3.2 * len(places)), layout="constrained")
    grid = figure.subplots(len(places), 3, squeeze=False)
    for row, place in zip(grid, places, strict=True):
        pair = ordered[place]
        copy = copies_of(copies.path, pair)[-1]
        carried = read_label(copies, copy)
        moving = _case(labelled, pair.labelled)
        fixed = _case(unlabelled, pair.unlabelled)
        panels = (
            ("labelled", pair.labelled, labelled, moving, read_label(labelled, moving)),
            ("unlabelled", f"{pair.unlabelled}, carried labels", unlabelled, fixed, carried),
            ("copy", f"correlation {pair.similarity:.2f}", copies, copy, carried),
        )
        for axes, (title, caption, scans, case, label) in zip(row, panels, strict=True):
            _draw(axes, read_scan(scans, case)[0], label)
            axes.set_title(f"{title}: {caption}", fontsize=8)
    save_figure(figure, out)


def _draw(axes: Axes, image: np.ndarray, label: np.ndarray) -> None:
    level = informative_level(label)
    plane = axial_slice(image, level)
    low, high = np.percentile(plane, [1, 99])
    axes.imshow(plane, cmap="gray", vmin=low, vmax=high)
    axes.set_axis_off()
    mask = axial_slice(label, level)
    outline(axes, mask, [int(value) for value in np.unique(mask)])
    write_letters(axes, image)


def _case(scans: Store, case_id: str) -> StoredCase:
    return next(case for case in scans.cases if case.id == case_id)
