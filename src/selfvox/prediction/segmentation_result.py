"""The prediction of one scan by a segmenter: label, probabilities, maps and review."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfvox.data.preparation.geometry import Geometry
from selfvox.prediction.trained_model import TrainedSegmenter
from selfvox.uncertainty.maps import MapValues


@dataclass(frozen=True)
class VotedScan:
    """What several passes decided, on the prepared grid; for pictures of it."""

    label: np.ndarray  # (*space), class numbers
    maps: Mapping[str, MapValues]


@dataclass(frozen=True)
class Segmentation:
    """The prediction of one scan, on the scan's own grid."""

    label: np.ndarray  # (*space), class numbers
    probabilities: np.ndarray | None  # (class or region, *space), mean over the passes; on request
    maps: Mapping[str, np.ndarray]  # (*space) or (class or region, *space), by ending of the file
    review: Mapping[str, Any] | None  # of several passes: volumes, agreement, trust, entropy
    voted: VotedScan | None  # of several passes


class ScanGridMaps(Mapping[str, np.ndarray]):
    """Maps on the scan's grid, by ending of the file.

    Each is moved there when it is read: all of them together would fill memory.

    Args:
        prepared: the maps on the prepared grid.
        model: its recipe prepared the scan.
        geometry: of the scan.
    """

    def __init__(
        self, prepared: Mapping[str, MapValues], model: TrainedSegmenter, geometry: Geometry
    ):
        self._prepared = prepared
        self._model = model
        self._geometry = geometry

    def __getitem__(self, ending: str) -> np.ndarray:
        values, is_probability = self._prepared[ending]
        if is_probability:
            return self._model.undo(values, self._geometry)
        has_classes = values.ndim > len(self._geometry.prepared_shape)
        # without background: outside the foreground box, nothing is uncertain
        maps_of_classes = self._model.recipe.undo_probabilities(
            values if has_classes else values[None], self._geometry, background=False
        )
        only_map: np.ndarray = maps_of_classes[0]
        return maps_of_classes if has_classes else only_map

    def __iter__(self) -> Iterator[str]:
        return iter(self._prepared)

    def __len__(self) -> int:
        return len(self._prepared)
