"""Synthetic cases whose truth is known: plain shapes for tests, and brains grown from the MNI152 template."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from selfvox.data.formats import nifti
from selfvox.data.formats.image import Image, write_label
from selfvox.runs.atomic_files import write_json
from selfvox.runs.progress import echo

SPACING_MM = 2.5
SIZE = (64, 80, 64)  # of a brain, in voxels
TEMPLATE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
TEMPLATE_MM = 2.0  # the files have 1 mm, and are halved
WHITE, LESION = 1, 2
CLASSES = {
    "brains": {0: "background", WHITE: "white matter", LESION: "lesion"},
    "shapes": {0: "background", 1: "dark", 2: "bright"},
}


@dataclass(frozen=True)
class Phantom:
    """A scan that was drawn, with what was drawn."""

    image: np.ndarray  # (channel, *space) float32, not negative
    label: np.ndarray  # (*space) uint8
    affine: np.ndarray  # (4, 4): voxel index -> mm; the identity in 2D


def write(
    folder: Path,
    kind: Literal["brains", "shapes"] = "brains",
    count: int = 10,
    labelled: int | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write `images/sub-001.nii.gz`, ... and, for the first `labelled` (default: all), `labels/sub-001.nii.gz`.

    A `dataset.json` in the decathlon's manner lists them and names the classes.

    A subject depends on the seed and its number alone. Where nilearn, which carries the template, is not installed,
    shapes take the place of brains.

    Returns:
        The images.
    """
    if kind == "brains" and _template_folder() is None:
        echo("nilearn is not installed: plain shapes instead of brains (pip install nilearn)")
        kind = "shapes"
    images, labels = folder / "images", folder / "labels"
    for place in (images, labels):
        place.mkdir(parents=True, exist_ok=True)
    paths, training, test = [], [], []
    for number in range(1, count + 1):
        rng = np.random.default_rng([seed, number])
        drawn = brains(rng) if kind == "brains" else shapes(rng)
        stored = np.rint(drawn.image).astype(np.int16)
        path = images / f"sub-{number:03}.nii.gz"
        nifti.write_nifti(
            path, stored[0] if len(stored) == 1 else np.moveaxis(stored, 0, -1), drawn.affine, None
        )
        if labelled is None or number <= labelled:
            write_label(
                labels / path.name, drawn.label, Image(drawn.image, drawn.affine, path.name)
            )
            training.append({"image": f"images/{path.name}", "label": f"labels/{path.name}"})
        else:
            test.append(f"images/{path.name}")
        paths.append(path)
    write_json(
        folder / "dataset.json",
        {
            "name": f"synthetic {kind}",
            "modality": {"0": "T1" if kind == "brains" else "MRI"},
            "labels": {str(value): name for value, name in CLASSES[kind].items()},
            "training": training,
            "test": test,
        },
    )
    return paths


def shapes(
    rng: np.random.Generator,
    size: Sequence[int] = (32, 32, 32),
    channels: int = 1,
    spacing_mm: Sequence[float] | None = None,
) -> Phantom:
    """An elliptic body that holds an ellipsoid of class 1 and one of class 2, apart from each other; 2D or 3D.

    Every channel shows the three in another brightness; in the first, class 1 is darker than the body, 2 brighter.
    """
    size = tuple(size)
    spacing = np.array(spacing_mm if spacing_mm is not None else [1.0] * len(size))
    place, extent = _millimetres(size, spacing), np.array(size) * spacing

    def inside(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
        return np.asarray((((place - centre) / radii) ** 2).sum(-1) <= 1)

    body = inside(extent * 0, extent * rng.uniform(0.4, 0.46, len(size)))
    label = np.zeros(size, np.uint8)
    for value, side in zip((1, 2), rng.permuted([-0.18, 0.18]), strict=True):
        centre = rng.uniform(-0.06, 0.06, len(size))
        centre[0] += side
        label[inside(extent * centre, extent * rng.uniform(0.08, 0.12, len(size)))] = value
    image = np.empty((channels, *size), np.float32)
    for number, channel in enumerate(image):
        levels = rng.uniform([450, 200, 700], [550, 300, 800])
        levels = levels if number == 0 else rng.permuted(levels)
        channel[...] = _rician(rng, np.where(body, levels[label], 0), 20)
    return Phantom(image, label, _affine(size, spacing))


def brains(rng: np.random.Generator) -> Phantom:
    """A T1-weighted brain of 2.5 mm voxels without skull: white matter (1), and one or two lesions with oedema (2).

    Every subject has a shape, tissue contrast, bias field and noise of its own. A lesion lies in the white matter of
    the cerebrum; its oedema is as bright as grey matter and its core varies between that and fluid, so that brightness
    alone does not find it. Needs nilearn's files.
    """
    place = _millimetres(SIZE, np.full(3, SPACING_MM))
    at = _deformed(rng, place)
    t1, grey, white = (ndimage.map_coordinates(each, at, order=1) for each in _template())
    brain = np.clip(4 * t1 - 0.5, 0, 1)
    # the template averages 152 people: sharpened probabilities look like those of one
    grey, white, fluid = grey**2, white**2, np.clip(brain - grey - white, 0, 1) ** 2
    total = grey + white + fluid + 1e-3
    levels = rng.uniform([0.5, 0.85, 0.12], [0.65, 1.0, 0.25])
    image = (levels[0] * grey + levels[1] * white + levels[2] * fluid) / total
    image *= 1 + 0.6 * (t1 - ndimage.gaussian_filter(t1, 3)) + 0.03 * _smooth(rng, SIZE, 40)

    label = np.where((white > grey) & (white > fluid) & (brain > 0.5), WHITE, 0).astype(np.uint8)
    deep = ndimage.uniform_filter(brain, 9) > 0.9
    cerebrum = deep & (white / total > 0.9) & (at[2] * TEMPLATE_MM > 75)
    for _ in range(rng.choice([1, 2], p=[0.75, 0.25])):
        centre = place[tuple(rng.choice(np.argwhere(cerebrum)))]
        image = _with_lesion(
            rng.spawn(1)[0],
            image,
            label,
            place - centre,
            white / total,
            brain * (1 - fluid / total),
            levels,
        )
    image *= brain * np.exp(0.12 * _smooth(rng, SIZE, 3))
    image = _rician(rng, image, rng.uniform(0.02, 0.05)) * (brain > 0.5) * rng.uniform(300, 1200)
    return Phantom(
        image[None].astype(np.float32), label, _affine(SIZE, np.full(3, SPACING_MM), flip=True)
    )


def _with_lesion(
    rng: np.random.Generator,
    image: np.ndarray,
    label: np.ndarray,
    offset: np.ndarray,
    white: np.ndarray,
    tissue: np.ndarray,
    levels: np.ndarray,
) -> np.ndarray:
    """Draw a lesion around where `offset` (mm) is zero, into the image that is returned and into `label`."""
    distance = np.sqrt(((offset / rng.uniform(0.75, 1.35, 3)) ** 2).sum(-1)) / rng.uniform(14, 26)
    # oedema follows the white matter and stops at the cortex
    oedema = (
        _sigmoid((1.0 - distance - 0.7 * (1 - white) + 0.2 * _smooth(rng, SIZE, 14)) / 0.06)
        * tissue
    )
    core = (
        _sigmoid((rng.uniform(0.5, 0.7) - distance + 0.12 * _smooth(rng, SIZE, 18)) / 0.06) * tissue
    )
    rim = core * (1 - core) * 4
    oedema_level = rng.uniform(0.9, 1.1) * levels[0]
    core_level = rng.uniform(levels[2] + 0.1, levels[0] - 0.05)
    image = image + oedema * (oedema_level - image) * rng.uniform(0.7, 0.95)
    image = image + core * (core_level * (1 + 0.2 * _smooth(rng, SIZE, 24)) - image)
    image = image + rim * rng.uniform(0, 0.35)
    label[(oedema > 0.5) | (core > 0.5)] = LESION
    return image


def _deformed(rng: np.random.Generator, place: np.ndarray) -> np.ndarray:
    """(3, *space): where in the template each voxel of a subject lies, in the template's halved voxels."""
    a, b, c = rng.normal(0, np.radians(4), 3)
    rotation = np.array([[1, -c, b], [c, 1, -a], [-b, a, 1]])  # to first order
    moved = place @ (rotation * rng.uniform(1.08, 1.18, 3))
    for millimetres, knots in ((3.5, 5), (1.5, 12)):
        moved = moved + millimetres * np.stack(
            [_smooth(rng, place.shape[:-1], knots) for _ in range(3)], -1
        )
    centre_mm = np.array([98, 117, 77])  # of the brain in the template's files
    return np.moveaxis((moved + centre_mm) / TEMPLATE_MM - 0.25, -1, 0)


@functools.cache
def _template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1, grey and white matter, 0 to 1, halved to 2 mm by averaging."""
    folder = _template_folder()
    assert folder is not None, "brains() needs nilearn's files; ask _template_folder() first"
    maps = []
    for name in ("t1", "gm", "wm"):
        data = nifti.read_nifti(folder / TEMPLATE.format(name)).data.astype(np.float32) / 255
        data = data[tuple(slice(0, length // 2 * 2) for length in data.shape)]
        for axis in range(3):
            data = (
                data.take(range(0, data.shape[axis], 2), axis)
                + data.take(range(1, data.shape[axis], 2), axis)
            ) / 2
        maps.append(data)
    return maps[0], maps[1], maps[2]


def _template_folder() -> Path | None:
    # found, not imported: importing nilearn takes seconds
    found = importlib.util.find_spec("nilearn")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    return folder if (folder / TEMPLATE.format("t1")).is_file() else None


def _smooth(rng: np.random.Generator, size: Sequence[int], knots: int) -> np.ndarray:
    """A random field of mean 0 and deviation 1 that turns about `knots` times along the longest axis."""
    step = max(size) / knots
    field = rng.standard_normal([int(np.ceil(length / step)) + 3 for length in size])
    for axis, length in enumerate(size):
        offset = (np.arange(length)[:, None] + 0.5) / step - (np.arange(field.shape[axis]) - 1)
        weight = np.exp(-(offset**2))
        weight /= weight.sum(1, keepdims=True)
        # einsum, not tensordot: the sums do not depend on the number of BLAS threads
        field = np.moveaxis(
            np.einsum("ab,b...->a...", weight, np.moveaxis(field, axis, 0)), 0, axis
        )
    field -= field.mean()
    return np.asarray(field / field.std(), np.float32)


def _millimetres(size: Sequence[int], spacing_mm: np.ndarray) -> np.ndarray:
    """(*space, axis): where each voxel lies, from the middle of the grid."""
    axes = [
        (np.arange(length) - (length - 1) / 2) * step
        for length, step in zip(size, spacing_mm, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)


def _affine(size: Sequence[int], spacing_mm: np.ndarray, flip: bool = False) -> np.ndarray:
    """Voxel index -> mm with the origin in the middle; `flip`: stored from right to left, as scanners do."""
    affine = np.eye(4)
    if len(size) == 3:
        direction = spacing_mm * np.array([-1 if flip else 1, 1, 1])
        affine[:3, :3] = np.diag(direction)
        affine[:3, 3] = -direction * (np.array(size) - 1) / 2
    return affine


def _rician(rng: np.random.Generator, signal: np.ndarray, deviation: float) -> np.ndarray:
    """The length of a noisy complex number, which is what a magnitude image shows."""
    real, imaginary = rng.normal(0, deviation, (2, *signal.shape)).astype(np.float32)
    return np.asarray(np.hypot(signal + real, imaginary))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 + 0.5 * np.tanh(x / 2), np.float32)
