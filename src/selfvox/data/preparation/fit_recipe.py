"""Which recipe a data set gets: chosen from names, from voxels or by the user, and fitted where a channel needs it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from selfvox.data.formats.image import Image
from selfvox.data.preparation import parallel, prepare_case
from selfvox.data.preparation.prepare_case import Rejected
from selfvox.data.preparation.recipe import Intensity, Kind, Recipe, foreground
from selfvox.data.sources import Case, Dataset
from selfvox.errors import DataError, UsageError
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import PreparationSettings

# ImageNet's, red, green, blue, as every network trained on photographs expects them; their average for grey pictures
_RGB_MEAN, _RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY_MEAN, _GREY_STD = 0.449, 0.226

_NAMES: dict[Kind, str] = {
    "ct": r"ct|cta|cbct|hu",
    "mri": r"mri?|t1\w*|t2\w*|flair|dwi|adc|swi|pd\w*|pet|suv|spect|dce\w*|fa",
    "photo": r"rgb|r|g|b|red|green|blue|gr[ae]y|lumin\w*|photo\w*|colou?r",
}
_WHITE = 255  # of 8 bits
_SAMPLES = 3  # scans looked at where a name says nothing
_AIR_HU = -500  # nothing but CT has so many voxels so far below zero
_VOXELS_KEPT = (
    10_000_000  # of a ct channel's foreground, over all scans, that its window is fitted to
)
_VOXELS_PER_SCAN = 100_000


class NoUsableScanError(DataError):
    """Not one scan of a data set can be read."""

    def __init__(self, refused: Sequence[Rejected]):
        super().__init__(f"not one of {len(refused)} scans can be used")
        self.refused = refused


def fit_recipe(dataset: Dataset, settings: PreparationSettings) -> Recipe:
    """The recipe for a data set under these settings; says, for each channel, what was chosen and why.

    Raises:
        NoUsableScanError: not one scan can be read.
        DataError: no CT scan has a foreground.
        UsageError: a setting does not fit the scans.
    """
    names = dataset.channel_names
    samples = _samples(dataset)
    spatial_dims = samples[0].spatial_dims
    for option, value in (("size", settings.size), ("spacing", settings.spacing)):
        if value is not None and len(value) != spatial_dims:
            raise UsageError(
                f"{option}: {len(value)} numbers given for scans of {spatial_dims} axes; give one per axis"
            )
    if settings.spacing is not None and spatial_dims == 2:
        raise UsageError("spacing: pictures have no mm; use --size")
    chosen = choose_recipe(names, samples, settings.intensity)
    kinds = [kind for kind, _ in chosen]
    for _, reason in chosen:
        echo(f"intensity of {reason}")
    ct = tuple(index for index, kind in enumerate(kinds) if kind == "ct")
    voxels: list[list[np.ndarray]] = [[] for _ in names]
    if ct:
        tasks = [
            (prepare_case.with_absolute_paths(case), ct, len(names), len(dataset.cases))
            for case in dataset.cases
        ]
        with progress_bar("looking at CT values", len(tasks)) as shown:
            for _, result in parallel.run(ct_voxels, tasks, settings.workers, settings.scheduler):
                shown.advance()
                # a scan that kills its worker is met again, and named, when it is prepared
                for index, part in zip(
                    ct, [] if isinstance(result, parallel.WorkerDiedError) else result, strict=False
                ):
                    voxels[index].append(part)
    recipe = Recipe(
        spatial_dims=spatial_dims,
        channel_names=names,
        intensity=intensities(kinds, voxels),
        size=settings.size,
        spacing_mm=settings.spacing,
    )
    for index in ct:
        window = recipe.intensity[index]
        echo(
            f"{names[index]}: window {window.lower:g} to {window.upper:g}, mean {window.mean:.4g}, std {window.std:.4g}"
        )
    return recipe


def choose_recipe(
    channel_names: Sequence[str], samples: Sequence[Image], asked: str = "auto"
) -> list[tuple[Kind, str]]:
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
        (_kind(kind), f"{name}: {kind}, as asked")
        if kind != "auto"
        else _from_data(name, index, samples)
        for index, (name, kind) in enumerate(zip(channel_names, wanted, strict=True))
    ]


def intensities(
    kinds: Sequence[Kind], ct_samples: Sequence[Sequence[np.ndarray]]
) -> tuple[Intensity, ...]:
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


def ct_voxels(task: tuple[Case, tuple[int, ...], int, int]) -> list[np.ndarray]:
    """Foreground voxels of a case's ct channels; empty where it cannot be read, since its preparation will say why.

    Args:
        task: the case, the numbers of its ct channels, how many channels it has, how many cases there are.
    """
    case, which, channels, count = task
    try:
        data = prepare_case.read_case(case, channels).data
        return [ct_sample(np.asarray(data[channel], dtype=np.float32), count) for channel in which]
    except Exception:
        return [np.empty(0, dtype=np.float32) for _ in which]


def ct_sample(channel: np.ndarray, scans: int) -> np.ndarray:
    """Foreground voxels of one ct channel, float32; evenly spaced ones where there are very many."""
    inside: np.ndarray = channel[foreground(channel, kind="ct")].astype(np.float32)
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
    return Intensity(
        kind="ct", lower=float(lower), upper=float(upper), mean=float(clipped.mean()), std=std
    )


def _from_data(name: str, index: int, samples: Sequence[Image]) -> tuple[Kind, str]:
    picture = samples[0].spatial_dims == 2
    # all channels together: the blue of an eye may be dark
    lowest, highest = (
        min(image.data.min() for image in samples),
        max(image.data.max() for image in samples),
    )
    photo = picture and lowest >= 0 and 1 < highest <= _WHITE
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    for kind, pattern in _NAMES.items():
        if (photo if kind == "photo" else not picture) and any(
            re.fullmatch(pattern, word) for word in words
        ):
            return kind, f"{name}: {kind}, by its name"
    values = [image.data[index] for image in samples]
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    where = f"values from {float(low):g} to {float(high):g} in {len(samples)} scans"
    if photo:
        return "photo", f"{name}: photo, {where}"
    if not picture and all(np.percentile(v, 1) < _AIR_HU for v in values):
        return "ct", f"{name}: ct, {where}: air at the bottom of the Hounsfield scale"
    return "mri", f"{name}: mri, {where}: no fixed scale known, so each scan has its own z-score"


def _kind(text: str) -> Kind:
    for kind in _NAMES:
        if kind == text:
            return kind
    raise UsageError(f"intensity: '{text}' is not a choice; known: auto, ct, mri, photo")


def _samples(dataset: Dataset) -> list[Image]:
    """A few scans from all over the data set; more are tried where some cannot be read."""
    step = max(1, len(dataset.cases) // _SAMPLES)
    order = [*dataset.cases[::step], *dataset.cases]
    found: list[Image] = []
    refused: list[Rejected] = []
    for case in dict.fromkeys(order):
        if len(found) == _SAMPLES:
            break
        try:
            found.append(prepare_case.read_case(case, len(dataset.channel_names)))
        except DataError as error:
            refused.append(prepare_case.make_rejected(case, str(error)))
    if not found:
        raise NoUsableScanError(refused)
    return found
