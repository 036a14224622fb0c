"""Maps of numbers as DICOM parametric maps, which refer to the slices that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.sr.codedict import codes

from selfvox.data.formats.dicom_object import (
    SERIES_NUMBER,
    pixel_measures,
    series_of_selfvox,
    slices_in_order,
    write_object,
)
from selfvox.data.formats.image import Image

_LABEL = 16  # characters that a short text may have
_EXPLANATION = 64  # and a long one


def write_parametric_map(
    path: Path,
    values: np.ndarray,
    like: Image,
    sources: Sequence[Path],
    name: str,
    parts: Sequence[str],
) -> None:
    """Write numbers without a unit, such as an entropy, as float32.

    Args:
        path: the file, .dcm.
        values: (x, y, z), or (part, x, y, z).
        like: the scan, as it was read from its slices.
        sources: the files of the slices, in any order.
        name: of the map.
        parts: what each of several parts is of, such as a class.

    Raises:
        DataError: slices of the scan were interpolated, or cannot be referred to.
    """
    import highdicom as hd  # only here: it is optional, and takes seconds

    layers = values[None] if values.ndim == 3 else values
    titles = [name] if values.ndim == 3 else [f"{part}: {name}" for part in parts]
    # frames have rows first, and parts last
    frames = np.ascontiguousarray(layers.transpose(3, 2, 1, 0), np.float32)
    mappings = [
        [
            hd.pm.RealWorldValueMapping(
                lut_label=title[:_LABEL],
                lut_explanation=title[:_EXPLANATION],
                unit=codes.UCUM.NoUnits,
                value_range=(float(layer.min()), float(layer.max())),
            )
        ]
        for title, layer in zip(titles, layers, strict=True)
    ]
    top = float(frames.max())
    # from black to the largest value; a width of 0 is not allowed
    window = hd.VOILUTTransformation(window_center=top / 2, window_width=max(top, 1e-6))
    write_object(
        path,
        like,
        lambda: hd.pm.ParametricMap(
            source_images=slices_in_order(sources, like),
            pixel_array=frames,
            contains_recognizable_visual_features=False,
            real_world_value_mappings=mappings,
            voi_lut_transformations=[window],
            content_description=name[:_EXPLANATION],
            content_label="UNCERTAINTY",
            pixel_measures=pixel_measures(like),
            **series_of_selfvox(SERIES_NUMBER + 1),
        ),
    )
