"""Windows over a scan, and a slab of sums that moves along it, so that memory has no whole scan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Place = tuple[slice, ...]  # of a window, along every axis of space


def window_places(size: Sequence[int], window: Sequence[int], overlap: float) -> list[Place]:
    """Where MONAI's sliding windows are, in the order of their first plane, row by row.

    Args:
        size: edges of the scan in voxels, none shorter than the window's.
        window: edges of the windows in voxels.
        overlap: share by which neighbours overlap.
    """
    from monai.data.utils import dense_patch_slices  # only here: it takes seconds

    steps = [
        edge if edge == extent else max(1, int(edge * (1 - overlap)))
        for edge, extent in zip(window, size, strict=True)
    ]
    places: list[Place] = dense_patch_slices(size, tuple(window), steps)
    return places


def window_weights(window: Sequence[int], device: torch.device) -> Tensor:
    """Weights (*window): a network sees less of the surroundings at the edge of a window."""
    from monai.data.utils import compute_importance_map  # only here: it takes seconds

    weights: Tensor = compute_importance_map(tuple(window), "gaussian", device=device)
    return weights


class Slab:
    """Weighted sums of logits over the planes that a row of windows covers.

    Args:
        passes: number of predictions of the scan.
        classes: number of classes or regions.
        shape: (plane, *other axes).
        device: where the sums are kept.
    """

    def __init__(self, passes: int, classes: int, shape: Sequence[int], device: torch.device):
        self._logits = torch.zeros(passes, classes, *shape, device=device)
        self._weights = torch.zeros(*shape, device=device)

    def add_weight(self, place: Place, weight: Tensor) -> None:
        """Add the weight (*window) of a window at its place within the planes."""
        self._weights[(slice(None), *place)] += weight

    def add(self, first: int, place: Place, logits: Tensor) -> None:
        """Add weighted logits (pass, class, *window) of the passes from the `first` on."""
        in_slab = (slice(first, first + len(logits)), slice(None), slice(None), *place)
        self._logits[in_slab] += logits

    def mean_logits(self, planes: int) -> Iterator[Tensor]:
        """Weighted means (class, plane, *other axes) of the first planes, for each pass."""
        return (logits[:, :planes] / self._weights[:planes] for logits in self._logits)

    def move(self, planes: int) -> None:
        """Forget the first planes."""
        for logits in self._logits:
            _shift(logits.movedim(1, 0), planes)
        _shift(self._weights, planes)


def _shift(values: Tensor, by: int) -> None:
    """Move what comes after the first `by` planes to the front, and clear the rest."""
    # a copy: source and target overlap
    remaining = values[by:].clone()
    values[: len(remaining)] = remaining
    values[len(remaining) :] = 0
