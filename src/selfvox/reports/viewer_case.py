"""What the viewer shows of a case: its voxels are read, and written as data of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.data.preparation.geometry import canonical_orientation, orient
from selfvox.errors import DataError
from selfvox.plotting import informative_level
from selfvox.prediction.case_files import MAPS_FOLDER
from selfvox.reports import volumes
from selfvox.reports.bundle import Bundle
from selfvox.reports.predicted_cases import PredictedCase, is_picture
from selfvox.runs.atomic_files import sha256
from selfvox.uncertainty.maps import PERCENTILES

_BINS = 48  # of the histogram
_LARGEST_DRAWN = 255  # class number that fits into the byte of a drawing


@dataclasses.dataclass(frozen=True)
class ReadCase:
    """The voxels of a case, as far as they could be read."""

    case: PredictedCase
    image: Image | None  # without a scan the label itself, for its grid
    label: np.ndarray | None  # (*space) class numbers
    truth: np.ndarray | None
    problems: Sequence[str]  # why something is missing


def read_case(case: PredictedCase) -> ReadCase:
    """Read the scan, the label and the truth of a case."""
    problems = []
    image: Image | None = None
    try:
        image = case.read_scan()
    except DataError as error:
        problems.append(str(error))
        if case.label is not None:
            image = images.read_grid(case.label)
    masks: list[np.ndarray | None] = []
    for path in (case.label, case.truth):
        mask = None
        if path is not None and image is not None:
            try:
                mask = images.read_label(path, image)
            except DataError as error:
                problems.append(str(error))
        masks.append(mask)
    label, truth = masks
    return ReadCase(case, image, label, truth, problems)


def focus_mm(label: np.ndarray, image: Image) -> list[float] | None:
    """Where the viewer opens: in the highest class of the axial slice that all pictures show.

    In mm, RAS+; None for a picture and for an empty label.
    """
    if image.spatial_dims == 2 or not label.any():
        return None
    orientation = canonical_orientation(image)
    canonical = orient(label[None], orientation)[0]
    level = informative_level(canonical)
    # the highest class of all may be elsewhere
    plane = canonical[:, :, level]
    places = np.argwhere(plane == plane.max())
    # a voxel of the class, also where it is a ring
    middle = places[((places - places.mean(0)) ** 2).sum(1).argmin()]
    voxel = np.zeros(3)
    for axis, (canonical_axis, sign) in enumerate(orientation):
        index = (*middle, level)[canonical_axis]
        voxel[axis] = index if sign == 1 else label.shape[axis] - 1 - index
    return [float(value) for value in image.affine[:3, :3] @ voxel + image.affine[:3, 3]]


class CaseWriter:
    """Writes the voxels of one case.

    Args:
        key: what its data are called after.
        voxels: of the case.
        largest_class: number of a class that the network may predict.
        map_parts: names of the classes and regions that maps are of, in the order of their layers.
        background: the name of class 0, of which no map is shown.
        bundle: of the report.
    """

    def __init__(
        self,
        key: str,
        voxels: ReadCase,
        largest_class: int,
        map_parts: Sequence[str],
        background: str | None,
        bundle: Bundle,
    ):
        self.key = key
        self.voxels = voxels
        self.largest_class = largest_class
        self.map_parts = map_parts
        self.background = background
        self.bundle = bundle

    def write(self) -> dict[str, Any]:
        """Write the data; returns what `review.js` needs to show them."""
        case = self.voxels.case
        image = self.voxels.image
        label = self.voxels.label
        shown: dict[str, Any] = {
            "key": self.key,
            "id": case.id,
            "flat": is_picture(case),
            "channels": [],
            "label": None,
            "truth": None,
            "maps": [],
            "label_sha256": "" if case.label is None else sha256(case.label),
            "label_file": None if case.label is None else case.label.name,
            "scan_file": case.scan_file,
            "focus": None,
            "editable": False,
        }
        if image is None:
            return shown
        step = self._step(image)
        shown["channels"] = self._channels(image, step)
        for name, mask in (("label", label), ("truth", self.voxels.truth)):
            if mask is not None:
                content = volumes.label_bytes(mask, image, step)
                shown[name] = self.bundle.add_data(f"{self.key}/{name}", content)
        if label is not None:
            shown["focus"] = focus_mm(label, image)
            largest = max(int(label.max()), self.largest_class)
            fits = largest <= _LARGEST_DRAWN
            shown["editable"] = step == 1 and fits
        shown["maps"] = self._maps(image, step)
        return shown

    def _step(self, image: Image) -> int:
        if image.spatial_dims == 2:
            return 1
        return max(self.bundle.step, volumes.step_for(image.shape))

    def _channels(self, image: Image, step: int) -> list[dict[str, Any]]:
        names = self.voxels.case.channels
        is_colour = image.spatial_dims == 2 and len(image.data) == 3
        channels = []
        for index in range(1 if is_colour else len(image.data)):
            values = np.asarray(image.data[index])
            low, high = (0.0, 255.0) if is_colour else volumes.shown_window(values)
            counts, edges = np.histogram(values, _BINS)
            content = volumes.scan_bytes(image, index, step)
            name = names[index] if index < len(names) else "scan"
            channels.append(
                {
                    "name": "colours" if is_colour else name,
                    "data": self.bundle.add_data(f"{self.key}/scan-{index}", content),
                    "window": [float(low), float(high)],
                    "ct": volumes.is_ct(values),
                    "colour": is_colour,
                    "histogram": [int(count) for count in counts],
                    "range": [float(edges[0]), float(edges[-1])],
                }
            )
            # one channel of a page that has to stay small
            if self.bundle.single_file:
                break
        return channels

    def _maps(self, image: Image, step: int) -> list[dict[str, Any]]:
        """Entropy and the like, and percentiles of each class; entropy alone in a single file."""
        case = self.voxels.case
        if case.label is None:
            return []
        folder = case.label.parent / MAPS_FOLDER
        ending = ".tif" if image.spatial_dims == 2 else ".nii.gz"
        maps: list[dict[str, Any]] = []
        for name in ("entropy", "mutual-information"):
            path = folder / f"{case.id}_{name}{ending}"
            if path.exists() and not (maps and self.bundle.single_file):
                values = images.read_map(path, 1, image)[0]
                title = name.replace("-", " ")
                maps.append(self._map(name, title, values, image, step))
        if self.bundle.single_file:
            return maps
        for percent in PERCENTILES:
            path = folder / f"{case.id}_percentile-{percent:02}{ending}"
            if not path.exists():
                continue
            values = images.read_map(path, len(self.map_parts), image)
            for index, part in enumerate(self.map_parts):
                # the background's would show nothing that the others do not
                if part != self.background:
                    name = f"percentile-{percent:02}-{index}"
                    title = f"{part}: {percent}th percentile"
                    maps.append(self._map(name, title, values[index], image, step, 1.0))
        return maps

    def _map(
        self,
        name: str,
        title: str,
        values: np.ndarray,
        image: Image,
        step: int,
        largest: float | None = None,
    ) -> dict[str, Any]:
        top = float(values.max()) if largest is None else largest
        content = volumes.map_bytes(values, image, step, top)
        data = self.bundle.add_data(f"{self.key}/{name}", content)
        return {"name": title, "data": data, "largest": top}
