"""Synthetic cases with known labels: plain shapes, and brains from the MNI152 template."""

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
TEMPLATE_CENTRE_MM = (98, 117, 77)  # of the brain in the files
WHITE = 1
LESION = 2
CLASSES = {
    "brains": {0: "background", WHITE: "white matter", LESION: "lesion"},
    "shapes": {0: "background", 1: "dark", 2: "bright"},
}


@dataclass(frozen=True)
class Phantom:
    """A synthetic scan with its label."""

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
    """Write `images/sub-001.nii.gz`, ... and `labels/sub-001.nii.gz`, ... in one folder.

    A `dataset.json` as in the Medical Segmentation Decathlon lists them and names the classes. A
    subject depends on the seed and its number alone.

    Args:
        folder: created if it is missing.
        kind: brains need nilearn, which contains the template; shapes replace them without it.
        count: number of subjects.
        labelled: the first so many have labels; default: all.
        seed: of all subjects.

    Returns:
        The paths of the images.
    """
    if kind == "brains" and _template_folder() is None:
        echo("nilearn is not installed: plain shapes instead of brains (pip install nilearn)")
        kind = "shapes"
    images = folder / "images"
    labels = folder / "labels"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    paths = []
    training = []
    test = []
    for number in range(1, count + 1):
        # for each subject: more subjects leave the first ones as they are
        rng = np.random.default_rng([seed, number])
        drawn = draw_brain(rng) if kind == "brains" else draw_shapes(rng)
        # whole numbers, as scanners store them
        voxels = np.rint(drawn.image).astype(np.int16)
        # NIfTI has channels as the last axis, and none for a single channel
        voxels = voxels[0] if len(voxels) == 1 else np.moveaxis(voxels, 0, -1)
        path = images / f"sub-{number:03}.nii.gz"
        nifti.write_nifti(path, voxels, drawn.affine, None)
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


def draw_shapes(
    rng: np.random.Generator,
    size: Sequence[int] = (32, 32, 32),
    channels: int = 1,
    spacing_mm: Sequence[float] | None = None,
) -> Phantom:
    """An elliptic body with two separate ellipsoids in it, of class 1 and class 2.

    Every channel shows the three in another brightness; in the first channel, class 1 is darker
    than the body and class 2 is brighter.

    Args:
        rng: of shapes, brightness and noise.
        size: of the grid, 2D or 3D.
        channels: number of them.
        spacing_mm: voxel size; default: 1.
    """
    size = tuple(size)
    spacing = np.array(spacing_mm if spacing_mm is not None else [1.0] * len(size))
    position = _positions_mm(size, spacing)
    extent = np.array(size) * spacing

    def inside(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
        return np.asarray((((position - centre) / radii) ** 2).sum(-1) <= 1)

    body = inside(extent * 0, extent * rng.uniform(0.4, 0.46, len(size)))
    label = np.zeros(size, np.uint8)
    for value, side in zip((1, 2), rng.permuted([-0.18, 0.18]), strict=True):
        centre = rng.uniform(-0.06, 0.06, len(size))
        centre[0] += side
        label[inside(extent * centre, extent * rng.uniform(0.08, 0.12, len(size)))] = value
    image = np.empty((channels, *size), np.float32)
    for number, channel in enumerate(image):
        levels = rng.uniform([450, 200, 700], [550, 300, 800])  # of body, class 1, class 2
        if number > 0:
            levels = rng.permuted(levels)
        channel[...] = _rician(rng, np.where(body, levels[label], 0), 20)
    return Phantom(image, label, _affine(size, spacing))


def draw_brain(rng: np.random.Generator) -> Phantom:
    """A T1-weighted brain of 2.5 mm voxels without skull, with white matter (1) and lesions (2).

    Every subject has its own shape, tissue contrast, bias field and noise, and one or two lesions
    with oedema, which is of the same class. A lesion is in the white matter of the cerebrum; its
    oedema is as bright as grey matter and its core varies between that and fluid, so that
    brightness alone does not find it. Needs nilearn's files.
    """
    position = _positions_mm(SIZE, np.full(3, SPACING_MM))
    template_position = _deform(rng, position)
    t1, grey, white = (
        ndimage.map_coordinates(channel, template_position, order=1) for channel in _template()
    )
    brain = np.clip(4 * t1 - 0.5, 0, 1)
    # the template averages 152 people: squared, its probabilities are as sharp as those of one
    fluid = np.clip(brain - grey - white, 0, 1) ** 2
    grey = grey**2
    white = white**2
    # no division by 0 outside the head
    total = grey + white + fluid + 1e-3
    # grey matter, white matter and fluid, as in a T1-weighted image
    levels = rng.uniform([0.5, 0.85, 0.12], [0.65, 1.0, 0.25])
    image = (levels[0] * grey + levels[1] * white + levels[2] * fluid) / total
    image *= 1 + 0.6 * (t1 - ndimage.gaussian_filter(t1, 3)) + 0.03 * _smooth_field(rng, SIZE, 40)

    label = np.where((white > grey) & (white > fluid) & (brain > 0.5), WHITE, 0).astype(np.uint8)
    # some voxels below the surface of the brain
    deep = ndimage.uniform_filter(brain, 9) > 0.9
    # the cerebellum and the brain stem are below 75 mm
    cerebrum = deep & (white / total > 0.9) & (template_position[2] * TEMPLATE_MM > 75)
    for _ in range(rng.choice([1, 2], p=[0.75, 0.25])):
        centre = position[tuple(rng.choice(np.argwhere(cerebrum)))]
        image = _draw_lesion(
            # a child: what a lesion draws moves no later draw
            rng.spawn(1)[0],
            image,
            label,
            offset=position - centre,
            white=white / total,
            tissue=brain * (1 - fluid / total),
            levels=levels,
        )
    image *= brain * np.exp(0.12 * _smooth_field(rng, SIZE, 3))
    image = _rician(rng, image, rng.uniform(0.02, 0.05)) * (brain > 0.5) * rng.uniform(300, 1200)
    affine = _affine(SIZE, np.full(3, SPACING_MM), flip=True)
    return Phantom(image[None].astype(np.float32), label, affine)


def _draw_lesion(
    rng: np.random.Generator,
    image: np.ndarray,
    label: np.ndarray,
    offset: np.ndarray,
    white: np.ndarray,
    tissue: np.ndarray,
    levels: np.ndarray,
) -> np.ndarray:
    """Draw a lesion; returns the new image and changes `label`.

    Args:
        rng: of its shape and brightness.
        image: (*space).
        label: (*space).
        offset: (*space, 3): mm from its centre.
        white: (*space): share of white matter.
        tissue: (*space): share of tissue, without fluid.
        levels: brightness of grey matter, white matter and fluid.
    """
    elongation = rng.uniform(0.75, 1.35, 3)
    radius_mm = rng.uniform(14, 26)
    distance = np.sqrt(((offset / elongation) ** 2).sum(-1)) / radius_mm
    # oedema follows the white matter and stops at the cortex
    oedema_depth = 1.0 - distance - 0.7 * (1 - white) + 0.2 * _smooth_field(rng, SIZE, 14)
    oedema = _sigmoid(oedema_depth / 0.06) * tissue
    core_depth = rng.uniform(0.5, 0.7) - distance + 0.12 * _smooth_field(rng, SIZE, 18)
    core = _sigmoid(core_depth / 0.06) * tissue
    rim = core * (1 - core) * 4
    oedema_level = rng.uniform(0.9, 1.1) * levels[0]
    core_level = rng.uniform(levels[2] + 0.1, levels[0] - 0.05)
    image = image + oedema * (oedema_level - image) * rng.uniform(0.7, 0.95)
    image = image + core * (core_level * (1 + 0.2 * _smooth_field(rng, SIZE, 24)) - image)
    image = image + rim * rng.uniform(0, 0.35)
    label[(oedema > 0.5) | (core > 0.5)] = LESION
    return image


def _deform(rng: np.random.Generator, position: np.ndarray) -> np.ndarray:
    """(3, *space): position in the template of each voxel of a subject, in its halved voxels.

    Args:
        rng: of the subject's rotation, size and shape.
        position: (*space, 3): mm from the middle of the subject's grid.
    """
    a, b, c = rng.normal(0, np.radians(4), 3)
    rotation = np.array([[1, -c, b], [c, 1, -a], [-b, a, 1]])  # to first order
    moved = position @ (rotation * rng.uniform(1.08, 1.18, 3))
    for millimetres, knots in ((3.5, 5), (1.5, 12)):
        fields = [_smooth_field(rng, position.shape[:-1], knots) for _ in range(3)]
        moved = moved + millimetres * np.stack(fields, -1)
    centre = np.array(TEMPLATE_CENTRE_MM)
    # the first halved voxel is centred between the first two of the file, at 0.5 mm
    return np.moveaxis((moved + centre) / TEMPLATE_MM - 0.25, -1, 0)


@functools.cache
def _template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1, grey and white matter, 0 to 1, halved to 2 mm by averaging."""
    folder = _template_folder()
    assert folder is not None, "brains need nilearn's files; call _template_folder() first"
    maps = []
    for name in ("t1", "gm", "wm"):
        data = nifti.read_nifti(folder / TEMPLATE.format(name)).data.astype(np.float32) / 255
        data = data[tuple(slice(0, length // 2 * 2) for length in data.shape)]
        for axis in range(3):
            even = data.take(range(0, data.shape[axis], 2), axis)
            odd = data.take(range(1, data.shape[axis], 2), axis)
            data = (even + odd) / 2
        maps.append(data)
    return maps[0], maps[1], maps[2]


def _template_folder() -> Path | None:
    """The folder of the template's files; None without nilearn."""
    # not imported, which takes seconds
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return folder if (folder / TEMPLATE.format("t1")).is_file() else None


def _smooth_field(rng: np.random.Generator, size: Sequence[int], knots: int) -> np.ndarray:
    """A random field of mean 0 and deviation 1 with about `knots` knots along the longest axis."""
    step = max(size) / knots
    field = rng.standard_normal([int(np.ceil(length / step)) + 3 for length in size])
    for axis, length in enumerate(size):
        offset = (np.arange(length)[:, None] + 0.5) / step - (np.arange(field.shape[axis]) - 1)
        weight = np.exp(-(offset**2))
        weight /= weight.sum(1, keepdims=True)
        # einsum, not tensordot: its sums do not depend on the number of BLAS threads
        smooth = np.einsum("ab,b...->a...", weight, np.moveaxis(field, axis, 0))
        field = np.moveaxis(smooth, 0, axis)
    field -= field.mean()
    return np.asarray(field / field.std(), np.float32)


def _positions_mm(size: Sequence[int], spacing_mm: np.ndarray) -> np.ndarray:
    """(*space, axis): position of each voxel, from the middle of the grid."""
    axes = [
        (np.arange(length) - (length - 1) / 2) * step
        for length, step in zip(size, spacing_mm, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)


def _affine(size: Sequence[int], spacing_mm: np.ndarray, flip: bool = False) -> np.ndarray:
    """Voxel index -> mm with the origin in the middle; `flip`: right to left, as scanners do."""
    affine = np.eye(4)
    if len(size) == 3:
        direction = spacing_mm * np.array([-1 if flip else 1, 1, 1])
        affine[:3, :3] = np.diag(direction)
        affine[:3, 3] = -direction * (np.array(size) - 1) / 2
    return affine


def _rician(rng: np.random.Generator, signal: np.ndarray, deviation: float) -> np.ndarray:
    """Magnitude of the signal with complex noise, as in a magnitude image of MRI."""
    real, imaginary = rng.normal(0, deviation, (2, *signal.shape)).astype(np.float32)
    return np.asarray(np.hypot(signal + real, imaginary))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 + 0.5 * np.tanh(x / 2), np.float32)
