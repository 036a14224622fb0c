"""The recipe of a data set: intensity kinds by name, voxels or request, fitted where needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from selfvox.data.formats.image import Image, read_spacing
from selfvox.data.preparation import parallel, prepare_case
from selfvox.data.preparation.geometry import canonical_orientation, canonical_spacing
from selfvox.data.preparation.normalise import AIR_HU, WHITE, Intensity, Kind, foreground
from selfvox.data.preparation.prepare_case import Rejected
from selfvox.data.preparation.recipe import Recipe, is_near
from selfvox.data.sources import Case, Dataset
from selfvox.errors import DataError, UsageError
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import PreparationSettings

# of ImageNet, red, green, blue, as every network trained on photographs expects them
_RGB_MEAN = (0.485, 0.456, 0.406)
_RGB_STD = (0.229, 0.224, 0.225)
# their averages, for grey pictures
_GREY_MEAN = 0.449
_GREY_STD = 0.226

_NAMES: dict[Kind, str] = {
    "ct": r"ct|cta|cbct|hu",
    "mri": r"mri?|t1\w*|t2\w*|flair|dwi|adc|swi|pd\w*|pet|suv|spect|dce\w*|fa",
    "photo": r"rgb|r|g|b|red|green|blue|gr[ae]y|lumin\w*|photo\w*|colou?r",
}
_READERS = 8  # threads
# scans that windows and spacings are fitted to, drawn at random from larger data sets: to read all
# of 100 000 CT scans once more would take as long as to prepare them
MOST_FITTED = 1000
_SAMPLES = 3  # scans that are read to choose a kind
_CT_VOXELS = 10_000_000  # of a channel's foreground, over all scans, that its window is fitted to
_CT_VOXELS_PER_SCAN = 100_000
# scans with voxels within a fifth of the median are not interpolated: augmentation shows
# networks such zooms, and every interpolation blurs
SPACING_TOLERANCE = 0.2
_CT_VOXELS_AT_LEAST = 1000  # per scan, however many scans there are


class NoUsableScanError(DataError):
    """Not one scan of a data set can be read."""

    def __init__(self, rejected: Sequence[Rejected]):
        super().__init__(f"not one of {len(rejected)} scans can be used")
        self.rejected = rejected


def fit_recipe(dataset: Dataset, settings: PreparationSettings) -> Recipe:
    """The recipe for a data set with these settings; prints the choice for each channel and why.

    Raises:
        NoUsableScanError: not one scan can be read.
        DataError: no CT scan has a foreground.
        UsageError: a setting does not fit the scans.
    """
    names = dataset.channel_names
    samples = _read_samples(dataset)
    spatial_dims = samples[0].spatial_dims
    _check_settings(settings, spatial_dims)
    choices = choose_intensity_kinds(names, samples, settings.intensity)
    kinds = [kind for kind, _ in choices]
    for _, reason in choices:
        echo(f"intensity of {reason}")
    recipe = Recipe(
        spatial_dims=spatial_dims,
        channel_names=names,
        intensity=fit_intensities(kinds, _collect_ct_voxels(dataset, kinds, settings)),
        size=settings.size,
        spacing_mm=settings.spacing,
    )
    if settings.size is None and settings.spacing is None and spatial_dims == 3:
        spacing_mm = _median_spacing(dataset, samples)
        recipe = replace(recipe, spacing_mm=spacing_mm, keep_within=SPACING_TOLERANCE)
    for name, window in zip(names, recipe.intensity, strict=True):
        if window.kind == "ct":
            echo(
                f"{name}: window {window.lower:g} to {window.upper:g}, mean {window.mean:.4g}, "
                f"std {window.std:.4g}"
            )
    return recipe


def drawn_cases(dataset: Dataset) -> Sequence[Case]:
    """The cases that a recipe is fitted to: all, or `MOST_FITTED` of them, the same each time."""
    cases = dataset.cases
    if len(cases) <= MOST_FITTED:
        return cases
    drawn = np.random.default_rng(0).permutation(len(cases))[:MOST_FITTED]
    return [cases[number] for number in sorted(drawn)]


def _median_spacing(dataset: Dataset, samples: Sequence[Image]) -> tuple[float, ...]:
    """The median spacing of the scans in mm, of many of a sample; prints how many differ from it.

    Volumes in files tell it in their headers, and DICOM series told it when they were listed; the
    samples are taken where no scan does.
    """
    # most of the time is spent waiting for the disk
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(_spacing_of, drawn_cases(dataset))
        spacings = [spacing for spacing in read if spacing is not None]
    spacings = spacings or [
        canonical_spacing(image, canonical_orientation(image)) for image in samples
    ]
    # four digits: headers round differently, and the number is printed
    median = tuple(float(f"{mm:.4g}") for mm in np.median(spacings, axis=0))
    different = sum(not is_near(spacing, median, SPACING_TOLERANCE) for spacing in spacings)
    if different:
        text = " x ".join(f"{mm:g}" for mm in median)
        echo(
            f"spacing: {different} of {len(spacings)} scans differ by more than a fifth from the "
            f"median, {text} mm, and are resampled to it; --spacing takes another"
        )
    return median


def _spacing_of(case: Case) -> tuple[float, ...] | None:
    """The spacing of a volume; None where the preparation will report that it cannot be read."""
    if case.stacked:
        return case.spacing_mm
    try:
        return read_spacing(case.images[0])
    except (DataError, OSError):
        return None


def _check_settings(settings: PreparationSettings, spatial_dims: int) -> None:
    """Refuse a size or spacing of another number of axes, and a spacing of pictures.

    Raises:
        UsageError: such a setting.
    """
    for option, value in (("size", settings.size), ("spacing", settings.spacing)):
        if value is not None and len(value) != spatial_dims:
            raise UsageError(
                f"{option}: {len(value)} numbers given for scans of {spatial_dims} axes; give one "
                "per axis"
            )
    if settings.spacing is not None and spatial_dims == 2:
        raise UsageError("spacing: pictures have no mm; use --size")


def _collect_ct_voxels(
    dataset: Dataset, kinds: Sequence[Kind], settings: PreparationSettings
) -> list[list[np.ndarray]]:
    """Foreground voxels of each ct channel, one array per scan; none for the other channels."""
    voxels: list[list[np.ndarray]] = [[] for _ in kinds]
    channels = tuple(index for index, kind in enumerate(kinds) if kind == "ct")
    if not channels:
        return voxels
    cases = drawn_cases(dataset)
    jobs = [
        (prepare_case.with_absolute_paths(case), channels, len(kinds), len(cases)) for case in cases
    ]
    with progress_bar("reading CT values", len(jobs)) as bar:
        for _, result in parallel.run(read_ct_voxels, jobs, settings.workers, settings.scheduler):
            bar.advance()
            # the preparation reads such a scan again, and reports it
            if isinstance(result, parallel.WorkerDiedError):
                continue
            for index, sample in zip(channels, result, strict=True):
                voxels[index].append(sample)
    return voxels


def choose_intensity_kinds(
    channel_names: Sequence[str], samples: Sequence[Image], requested: str = "auto"
) -> list[tuple[Kind, str]]:
    """The intensity kind of each channel, with the reason in one line.

    Args:
        channel_names: of the data set.
        samples: a few of its scans, used where a name is not enough; not empty if `requested` is
            auto.
        requested: `auto`, or mri, ct, photo; one for all channels, or one per channel with commas.

    Raises:
        UsageError: `requested` has another number of channels, or an unknown kind.
    """
    requests = [kind.strip() for kind in requested.split(",")]
    if len(requests) == 1:
        requests *= len(channel_names)
    if len(requests) != len(channel_names):
        raise UsageError(
            f"intensity: {len(requests)} given for {len(channel_names)} channels "
            f"({', '.join(channel_names)}); give one for all or one for each"
        )
    choices = []
    for index, (name, request) in enumerate(zip(channel_names, requests, strict=True)):
        if request == "auto":
            choices.append(_choose_kind(name, index, samples))
        else:
            choices.append((_parse_kind(request), f"{name}: {request}, as requested"))
    return choices


def fit_intensities(
    kinds: Sequence[Kind], ct_voxels: Sequence[Sequence[np.ndarray]]
) -> tuple[Intensity, ...]:
    """The intensity of each channel.

    Args:
        kinds: of the channels.
        ct_voxels: what a ct channel is fitted to, by channel: one array of voxels per scan.
    """
    photos = [index for index, kind in enumerate(kinds) if kind == "photo"]
    is_rgb = len(photos) == 3
    fitted = []
    for index, kind in enumerate(kinds):
        if kind == "ct":
            fitted.append(fit_ct_window(ct_voxels[index]))
        elif kind == "photo" and is_rgb:
            colour = photos.index(index)
            fitted.append(Intensity(kind="photo", mean=_RGB_MEAN[colour], std=_RGB_STD[colour]))
        elif kind == "photo":
            fitted.append(Intensity(kind="photo", mean=_GREY_MEAN, std=_GREY_STD))
        else:
            fitted.append(Intensity(kind="mri"))
    return tuple(fitted)


def read_ct_voxels(job: tuple[Case, tuple[int, ...], int, int]) -> list[np.ndarray]:
    """Foreground voxels of a case's ct channels; empty if it cannot be read.

    The preparation of such a case reports the reason.

    Args:
        job: the case, the indices of its ct channels, its number of channels, the number of cases.
    """
    case, ct_channels, channels, cases = job
    try:
        data = prepare_case.read_case(case, channels).data
        return [
            sample_ct_voxels(np.asarray(data[channel], dtype=np.float32), cases)
            for channel in ct_channels
        ]
    except Exception:
        return [np.empty(0, dtype=np.float32) for _ in ct_channels]


def sample_ct_voxels(channel: np.ndarray, scans: int) -> np.ndarray:
    """Foreground voxels of one ct channel (*space), float32; evenly spaced ones of very many."""
    inside: np.ndarray = channel[foreground(channel, kind="ct")].astype(np.float32)
    share = min(_CT_VOXELS_PER_SCAN, _CT_VOXELS // max(1, scans))
    count = max(_CT_VOXELS_AT_LEAST, share)
    if len(inside) <= count:
        return inside
    places = np.linspace(0, len(inside) - 1, count).round().astype(np.int64)
    return np.asarray(inside[places])


def fit_ct_window(samples: Sequence[np.ndarray]) -> Intensity:
    """The 0.5th and 99.5th percentile of all foreground voxels, and mean and std within them.

    Raises:
        DataError: no voxels, or all of one value.
    """
    # sorted: the order in which the scans arrive cannot change a digit of the sums
    pooled = np.sort(np.concatenate([np.empty(0, np.float32), *samples]))
    if not len(pooled) or pooled[0] == pooled[-1]:
        raise DataError(
            "ct: no scan has a foreground to fit the window to; if these are no CT scans, use "
            "--intensity mri"
        )
    lower, upper = np.percentile(pooled, [0.5, 99.5])
    clipped = np.clip(pooled, lower, upper).astype(np.float64)
    std = float(clipped.std()) or 1.0
    return Intensity(
        kind="ct", lower=float(lower), upper=float(upper), mean=float(clipped.mean()), std=std
    )


def _choose_kind(name: str, index: int, samples: Sequence[Image]) -> tuple[Kind, str]:
    """The kind of a channel by its name, or else by the values of a few scans; and the reason."""
    is_picture = samples[0].spatial_dims == 2
    # all channels together: the blue of an eye may be dark
    lowest = min(image.data.min() for image in samples)
    highest = max(image.data.max() for image in samples)
    is_photo = is_picture and lowest >= 0 and 1 < highest <= WHITE
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    for kind, pattern in _NAMES.items():
        possible = is_photo if kind == "photo" else not is_picture
        if possible and any(re.fullmatch(pattern, word) for word in words):
            return kind, f"{name}: {kind}, by its name"
    values = [image.data[index] for image in samples]
    low = float(min(channel.min() for channel in values))
    high = float(max(channel.max() for channel in values))
    evidence = f"values from {low:g} to {high:g} in {len(samples)} scans"
    if is_photo:
        return "photo", f"{name}: photo, {evidence}"
    if not is_picture and all(np.percentile(channel, 1) < AIR_HU for channel in values):
        return "ct", f"{name}: ct, {evidence}: air at the bottom of the Hounsfield scale"
    return "mri", f"{name}: mri, {evidence}: no fixed scale known, so each scan has its own z-score"


def _parse_kind(text: str) -> Kind:
    for kind in _NAMES:
        if kind == text:
            return kind
    raise UsageError(f"intensity: '{text}' is not a choice; known: auto, ct, mri, photo")


def _read_samples(dataset: Dataset) -> list[Image]:
    """A few scans from all over the data set; more are tried if some cannot be read.

    Raises:
        NoUsableScanError: not one can be read.
    """
    step = max(1, len(dataset.cases) // _SAMPLES)
    order = [*dataset.cases[::step], *dataset.cases]
    samples: list[Image] = []
    rejected: list[Rejected] = []
    for case in dict.fromkeys(order):
        if len(samples) == _SAMPLES:
            break
        try:
            samples.append(prepare_case.read_case(case, len(dataset.channel_names)))
        except DataError as error:
            rejected.append(prepare_case.make_rejected(case, str(error)))
    if not samples:
        raise NoUsableScanError(rejected)
    return samples
