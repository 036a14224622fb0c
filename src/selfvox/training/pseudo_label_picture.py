"""A picture of pseudo-labels: the scan, its pseudo-label, and the voxels that do not train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.plotting import axial_slice, informative_level, outline, save_figure, write_letters

ROWS = 3  # the scan that is trusted least, the one in the middle, and the most trusted


def draw_pseudo_labels(
    out: Path,
    scans: Store,
    trusted: Sequence[tuple[StoredCase, float]],
    names: Sequence[str],
    ignored: int | None,
) -> None:
    """Draw some scans with their pseudo-labels, from the least trusted to the most.

    Args:
        out: the picture.
        scans: with pseudo-labels.
        trusted: cases with their trust.
        names: of the scans, in the same order.
        ignored: label value of voxels that do not train.
    """
    from matplotlib.figure import Figure  # only here: it takes half a second

    order = np.argsort([trust for _, trust in trusted], kind="stable")
    places = sorted({round(place) for place in np.linspace(0, len(order) - 1, ROWS)})
    figure = Figure(figsize=(9, 3.2 * len(places)), layout="constrained")
    grid = figure.subplots(len(places), 3, squeeze=False)
    for row, place in zip(grid, places, strict=True):
        number = int(order[place])
        case, trust = trusted[number]
        start = (0,) * len(case.shape)
        image = scans.crop(case, start, case.shape)[0]
        label = scans.label_crop(case, start, case.shape)
        classes = np.where(label == ignored, 0, label)
        level = informative_level(classes)
        plane = axial_slice(image, level)
        mask = axial_slice(classes, level)
        is_ignored = axial_slice(label == ignored, level)
        captions = (names[number], f"trust {trust:.2f}", f"{100 * is_ignored.mean():.1f} % ignored")
        low, high = np.percentile(plane, [1, 99])
        for axes, caption in zip(row, captions, strict=True):
            axes.imshow(plane, cmap="gray", vmin=low, vmax=high)
            axes.set_axis_off()
            axes.set_title(caption, fontsize=8)
            write_letters(axes, image)
        outline(row[1], mask, [int(value) for value in np.unique(mask)])
        veil = np.zeros((*is_ignored.shape, 4))
        veil[is_ignored] = (1, 0.8, 0, 0.7)
        row[2].imshow(veil)
    save_figure(figure, out)
