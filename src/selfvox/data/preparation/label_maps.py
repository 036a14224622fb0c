"""Label maps among scans, recognised by their voxels: whole numbers in uniform patches."""

from __future__ import annotations

import numpy as np

# a scan has noise: of real ones, at most .53 of the voxels outside the background had the value of
# the next voxel; of label maps, at least .84
MIN_UNIFORM = 0.7
MAX_VALUES = 512  # of an atlas; a scan that looks uniform by chance has few anyway
MAX_VALUES_ALONE = 4  # so few say enough: a small lesion is hardly uniform
_SAMPLE_VOXELS = 2**14


def label_map_evidence(data: np.ndarray) -> str:
    """Why an image (channel, *space) looks like a label map, for a message; "" if it does not.

    All channels do: whole numbers, of which there are very few, or few in uniform patches.
    """
    if not all(_may_be_label(channel) for channel in data):
        return ""
    values, counts = np.unique(data, return_counts=True)
    if not all(_looks_like_label(channel) for channel in data):
        return ""
    most_common = int(counts.argmax())
    # rounded down, since 100 % of one value would be a constant image
    share = int(100 * counts[most_common] / data.size)
    return (
        f"{len(values)} whole numbers from {values[0]:g} to {values[-1]:g}, "
        f"{share} % are {values[most_common]:g}"
    )


def _may_be_label(channel: np.ndarray) -> bool:
    """Whether a sample of the voxels has few whole numbers; decides for almost every scan."""
    step = max(1, channel.size // _SAMPLE_VOXELS)
    values = np.unique(channel.ravel(order="K")[::step])
    return len(values) <= MAX_VALUES and bool((values == np.rint(values)).all())


def _looks_like_label(channel: np.ndarray) -> bool:
    values, counts = np.unique(channel, return_counts=True)
    if len(values) > MAX_VALUES or not (values == np.rint(values)).all():
        return False
    if len(values) <= MAX_VALUES_ALONE:
        return True
    outside_background = channel != values[counts.argmax()]
    return all(_uniform_share(channel, outside_background, axis) >= MIN_UNIFORM for axis in (0, 1))


def _uniform_share(channel: np.ndarray, mask: np.ndarray, axis: int) -> float:
    """The share of the voxels in the mask that have the value of the next one along an axis."""
    length = channel.shape[axis]
    first = channel.take(range(length - 1), axis)
    second = channel.take(range(1, length), axis)
    inside = mask.take(range(length - 1), axis)
    count = np.count_nonzero(inside)
    return float(np.count_nonzero(inside & (first == second)) / count) if count else 1.0
