"""One vector for each crop of a scan, by an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from selfvox.models.encoder import Encoder
from selfvox.models.slab import window_places
from selfvox.models.sliding_window import SLICES_AT_ONCE, pad_to_window
from selfvox.runs.device import Fabric, inference_mode

_VOLUMES_AT_ONCE = 4


def embed_crops(
    encoder: Encoder,
    fabric: Fabric,
    image: Tensor,
    crop: Sequence[int],
    slice_axis: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the crops that cover a scan, and where these are.

    Args:
        encoder: on the device where it computes.
        fabric: device and arithmetic.
        image: (channel, *space), prepared by the encoder's recipe.
        crop: edges in voxels; a smaller scan is mirrored at its edges.
        slice_axis: for a 2D encoder, the axis of the volume to slice along.

    Returns:
        (crop, width) float32, and the first voxel of each crop (crop, axis of the image), which is
        negative where the scan was mirrored.
    """
    pictures = image[None] if slice_axis is None else image.movedim(1 + slice_axis, 0)
    padded, margins = pad_to_window(pictures, crop)
    # crops that do not overlap, but for the last ones
    places = window_places(padded.shape[2:], crop, overlap=0.0)
    crops = [(number, place) for number in range(len(padded)) for place in places]
    at_once = _VOLUMES_AT_ONCE if slice_axis is None else SLICES_AT_ONCE
    vectors = []
    with inference_mode(fabric):
        for first in range(0, len(crops), at_once):
            batch = [
                padded[number][(slice(None), *place)]
                for number, place in crops[first : first + at_once]
            ]
            embeddings = encoder.embed(fabric.to_device(torch.stack(batch)))
            # NumPy has no bf16
            vectors.append(embeddings.float().cpu().numpy())
    starts = np.array(
        [
            [side.start - margin for side, margin in zip(place, margins, strict=True)]
            for _, place in crops
        ]
    )
    if slice_axis is not None:
        starts = np.insert(starts, slice_axis, [number for number, _ in crops], axis=1)
    return np.concatenate(vectors), starts
