"""Which recipe a data set gets: chosen from names, from voxels or by the user, and fitted where a channel needs it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from selfvox.data.image import Image
from selfvox.data.recipe import Intensity, Kind, foreground
from selfvox.errors import DataError, UsageError

# ImageNet's, red, green, blue, as every network trained on photographs expects them; their average for grey pictures
_RGB_MEAN, _RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY_MEAN, _GREY_STD = 0.449, 0.226

_NAMES: dict[Kind, str] = {
    "ct": r"ct|cta|cbct|hu",
    "mri": r"mri?|t1\w*|t2\w*|flair|dwi|adc|swi|pd\w*|pet|suv|spect|dce\w*|fa",
    "photo": r"rgb|r|g|b|red|green|blue|gr[ae]y|lumin\w*|photo\w*|colou?r",
}
_AIR_HU = -500  # nothing but CT has so many voxels so far below zero
_VOXELS_KEPT = 10_000_000  # of a ct channel's foreground, over all scans, that its window is fitted to
_VOXELS_PER_SCAN = 100_000


def choose(channel_names: Sequence[str], samples: Sequence[Image], asked: str = "auto") -> list[tuple[Kind, str]]:
    """The intensity kind of each channel, and why, in one line.

    Args:
        channel_names: as the data set calls them.
        samples: a few of its scans, looked at where a name says nothing; not empty if `asked` is auto.
        asked: `auto`, or mri, ct, photo; one for all channels or one for each, by commas.

    Raises:
        UsageError: `asked` names another number of channels, or photo is asked for volumes.
    """
    wanted = [kind.strip() for kind in asked.split(",")]
    if len(wanted) == 1:
        wanted *= len(channel_names)
    if len(wanted) != len(channel_names):
        raise UsageError(
            f"intensity: {len(wanted)} given for {len(channel_names)} channels ({', '.join(channel_names)}); "
            "give one for all or one for each"
        )
    return [
        (_kind(kind), f"{name}: {kind}, as asked") if kind != "auto" else _from_data(name, index, samples)
        for index, (name, kind) in enumerate(zip(channel_names, wanted, strict=True))
    ]


def intensities(kinds: Sequence[Kind], ct_samples: Sequence[Sequence[np.ndarray]]) -> tuple[Intensity, ...]:
    """The channels' intensities; a ct channel is fitted to `ct_samples[channel]`, one array of voxels per scan."""
    photos = [index for index, kind in enumerate(kinds) if kind == "photo"]
    found = []
    for index, kind in enumerate(kinds):
        if kind == "ct":
            found.append(ct_window(ct_samples[index]))
        elif kind == "photo":
            place = photos.index(index)
            rgb = len(photos) == 3
            mean, std = (_RGB_MEAN[place], _RGB_STD[place]) if rgb else (_GREY_MEAN, _GREY_STD)
            found.append(Intensity(kind="photo", mean=mean, std=std))
        else:
            found.append(Intensity(kind="mri"))
    return tuple(found)


def ct_sample(channel: np.ndarray, scans: int) -> np.ndarray:
    """Foreground voxels of one ct channel, float32; evenly spaced ones where there are very many."""
    inside: np.ndarray = channel[foreground(channel)].astype(np.float32)
    most = max(1000, min(_VOXELS_PER_SCAN, _VOXELS_KEPT // max(1, scans)))
    if len(inside) <= most:
        return inside
    return np.asarray(inside[np.linspace(0, len(inside) - 1, most).round().astype(np.int64)])


def ct_window(samples: Sequence[np.ndarray]) -> Intensity:
    """The 0.5th and 99.5th percentile of the pooled foreground, and mean and std of what is clipped to them.

    Sorted first, so that the order in which scans arrive cannot change a digit.

    Raises:
        DataError: no voxels, or all of one value.
    """
    pooled = np.sort(np.concatenate([np.empty(0, np.float32), *samples]))
    if not len(pooled) or pooled[0] == pooled[-1]:
        raise DataError(
            "ct: no scan has a foreground to fit the window to; if these are no CT scans, use --intensity mri"
        )
    lower, upper = np.percentile(pooled, [0.5, 99.5])
    clipped = np.clip(pooled, lower, upper).astype(np.float64)
    std = float(clipped.std()) or 1.0
    return Intensity(kind="ct", lower=float(lower), upper=float(upper), mean=float(clipped.mean()), std=std)


def _from_data(name: str, index: int, samples: Sequence[Image]) -> tuple[Kind, str]:
    picture = samples[0].spatial_dims == 2
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    for kind, pattern in _NAMES.items():
        if picture == (kind == "photo") and any(re.fullmatch(pattern, word) for word in words):
            return kind, f"{name}: {kind}, by its name"
    values = [image.data[index] for image in samples]
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    where = f"values from {float(low):g} to {float(high):g} in {len(samples)} scans"
    if picture and low >= 0 and high <= 255:
        return "photo", f"{name}: photo, {where}"
    if not picture and all(np.percentile(v, 1) < _AIR_HU for v in values):
        return "ct", f"{name}: ct, {where}: air at the bottom of the Hounsfield scale"
    return "mri", f"{name}: mri, {where}: no fixed scale known, so each scan has its own z-score"


def _kind(text: str) -> Kind:
    for kind in _NAMES:
        if kind == text:
            return kind
    raise UsageError(f"intensity: '{text}' is not a choice; known: auto, ct, mri, photo")
