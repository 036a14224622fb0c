"""Registration of one prepared scan to another, by greedy (Yushkevich et al. 2016)."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own documentation calls it so
from scipy import ndimage

from selfvox.errors import DataError, UsageError

# from the coarsest level on, each with half the voxel size of the one before
ITERATIONS = (100, 50, 10)
RADIUS = 2  # voxels, of the window of the local correlation
SMOOTHING = "2.0vox 0.7vox"  # of each update, and of the displacement
SHORTEST_EDGE = 5  # voxels: recursive Gaussian filters need as many, and a window is as wide
COARSEST_EDGE = 8  # voxels that a level must keep along every axis
# the same registrations give the same copies: part of the key that they are stored under
SETTINGS = f"greedy affine12 NCC{RADIUS} {ITERATIONS} {SMOOTHING}"


@dataclass(frozen=True)
class Registration:
    """Where each voxel of the fixed scan comes from in the moving one: `matrix (x + u(x))`."""

    matrix: np.ndarray  # (d + 1, d + 1): voxel of the fixed scan -> voxel of the moving scan
    displacement: np.ndarray  # u, (d, *space) float32, in voxels of the fixed scan

    def positions(self, strength: float = 1.0) -> np.ndarray:
        """Voxel positions (d, *space) in the moving scan, for every voxel of the fixed scan.

        Args:
            strength: factor of the displacement. At 0 only the affine part is left, at 1 the
                moving scan takes the anatomy of the fixed one.
        """
        d = len(self.displacement)
        moved = np.indices(self.displacement.shape[1:], dtype=np.float32)
        moved += np.float32(strength) * self.displacement
        return apply_affine(self.matrix, moved.reshape(d, -1)).reshape(moved.shape)


def register(
    moving: np.ndarray,
    fixed: np.ndarray,
    moving_spacing_mm: Sequence[float],
    fixed_spacing_mm: Sequence[float],
) -> Registration:
    """Register a scan to another: affine from the centres of both, then deformable.

    Both maximise the local correlation, so that brightness may differ from scan to scan and from
    place to place. One thread: several registrations share the cores.

    Args:
        moving: (channel, *space).
        fixed: (channel, *space), with the same channels; all count alike.
        moving_spacing_mm: by axis.
        fixed_spacing_mm: by axis.

    Raises:
        DataError: a scan is too thin, or greedy finds no transform.
        UsageError: greedy is not installed.
    """
    d = fixed.ndim - 1
    if min(*fixed.shape[1:], *moving.shape[1:]) < SHORTEST_EDGE:
        raise DataError(f"has fewer than {SHORTEST_EDGE} voxels along an axis; leave it out")
    greedy = _greedy(d)
    pairs = " ".join(f"-i fixed{number} moving{number}" for number in range(len(fixed)))
    images = {}
    for number, (fixed_channel, moving_channel) in enumerate(zip(fixed, moving, strict=True)):
        images[f"fixed{number}"] = _to_itk(fixed_channel, fixed_spacing_mm)
        images[f"moving{number}"] = _to_itk(moving_channel, moving_spacing_mm)
    shared = (
        f"-d {d} -V 0 -seed 1 -threads 1 {pairs} -m NCC {'x'.join([str(RADIUS)] * d)} "
        f"-n {_iterations(fixed.shape[1:], moving.shape[1:])}"
    )
    try:
        with _silent() as log:
            # no jitter of the samples: the same scans give the same transform
            affine = f"{shared} -a -dof 12 -jitter 0 -ia-image-centers -o affine"
            greedy.execute(affine, **log, affine=None, **images)
            # wp 0: the displacement is not rounded
            deformable = f"{shared} -it affine -s {SMOOTHING} -wp 0 -o warp"
            greedy.execute(deformable, **log, warp=None)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"greedy finds no transform ({_last_line(error)})") from None
    matrix = _voxel_matrix(np.array(greedy["affine"]), moving_spacing_mm, fixed_spacing_mm)
    # components are mm along x, y, z; the array has the axes in reverse order
    in_mm = np.moveaxis(sitk.GetArrayFromImage(greedy["warp"]), -1, 0)
    in_mm = in_mm.transpose(0, *range(d, 0, -1))
    displacement = in_mm / _column(fixed_spacing_mm, d)
    if not (np.isfinite(matrix).all() and np.isfinite(displacement).all()):
        raise DataError("greedy's transform is not finite")
    return Registration(matrix, np.ascontiguousarray(displacement, dtype=np.float32))


def warp_image(image: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """An image (channel, *space) at positions (d, *space) in voxels: linear, its edge repeated."""
    return np.stack(
        [
            ndimage.map_coordinates(channel, positions, order=1, mode="nearest", prefilter=False)
            for channel in np.asarray(image, dtype=np.float32)
        ]
    )


def warp_label(label: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """A label (*space) at positions (d, *space) in voxels: the nearest voxel, its edge repeated."""
    warped: np.ndarray = ndimage.map_coordinates(
        label, positions, order=0, mode="nearest", prefilter=False
    )
    return warped


def centred_positions(
    moving_shape: Sequence[int],
    fixed_shape: Sequence[int],
    moving_spacing_mm: Sequence[float],
    fixed_spacing_mm: Sequence[float],
) -> np.ndarray:
    """Positions (d, *space) before any registration: the centres of both scans coincide."""
    d = len(fixed_shape)
    ratio = _column(fixed_spacing_mm, d) / _column(moving_spacing_mm, d)
    fixed_centre = (_column(fixed_shape, d) - 1) / 2
    moving_centre = (_column(moving_shape, d) - 1) / 2
    centred: np.ndarray = (np.indices(fixed_shape) - fixed_centre) * ratio + moving_centre
    return centred


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Mean correlation of the channels of two images (channel, *space); 0 where one is flat."""
    correlations = []
    for first_channel, second_channel in zip(first, second, strict=True):
        first_values = first_channel.ravel().astype(np.float64)
        second_values = second_channel.ravel().astype(np.float64)
        first_values -= first_values.mean()
        second_values -= second_values.mean()
        norm = np.linalg.norm(first_values) * np.linalg.norm(second_values)
        correlations.append(float(first_values @ second_values / norm) if norm else 0.0)
    return float(np.mean(correlations))


def folded_share(displacement: np.ndarray) -> float:
    """Share of voxels where `x + u(x)` folds: its Jacobian determinant is not positive.

    Args:
        displacement: u, (d, *space), in voxels.
    """
    d = len(displacement)
    # (*space, component, derivative)
    gradients = np.stack(
        [np.stack(np.gradient(component), axis=-1) for component in displacement], axis=-2
    )
    determinants = np.linalg.det(gradients + np.eye(d))
    return float((determinants <= 0).mean())


def apply_affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (d, n) through a homogeneous matrix (d + 1, d + 1)."""
    d = len(points)
    moved: np.ndarray = matrix[:d, :d] @ points + matrix[:d, d:]
    return moved


@contextlib.contextmanager
def _silent() -> Iterator[dict[str, io.StringIO]]:
    """Keep off the terminal what greedy prints; yields the streams to pass to it.

    Its optimiser writes past them, to the streams of the process.
    """
    saved = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as sink:
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            yield {"out": io.StringIO(), "err": io.StringIO()}
        finally:
            # else text in C's buffers would appear after the terminal is back
            ctypes.CDLL(None).fflush(None)
            for stream, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, stream)
                os.close(copy)


def check_installed() -> None:
    """Refuse to register without greedy.

    Raises:
        UsageError: it is not installed.
    """
    _greedy(3)


def _greedy(d: int) -> Any:
    try:
        import picsl_greedy
    except ImportError:
        raise UsageError(
            "registration: needs picsl-greedy; install it with `pip install selfvox[atlas]`"
        ) from None
    return picsl_greedy.Greedy2D() if d == 2 else picsl_greedy.Greedy3D()


def _iterations(*shapes: Sequence[int]) -> str:
    """Iterations of each level, as greedy takes them; thin scans have fewer levels."""
    shortest = min(min(shape) for shape in shapes)
    levels = 1
    while levels < len(ITERATIONS) and shortest // 2**levels >= COARSEST_EDGE:
        levels += 1
    return "x".join(map(str, ITERATIONS[:levels]))


def _to_itk(channel: np.ndarray, spacing_mm: Sequence[float]) -> sitk.Image:
    """(*space) with its spacing, at the origin and along the axes of the array."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(channel.T, dtype=np.float32))
    image.SetSpacing([float(mm) for mm in spacing_mm])
    return image


def _voxel_matrix(
    affine: np.ndarray, moving_spacing_mm: Sequence[float], fixed_spacing_mm: Sequence[float]
) -> np.ndarray:
    """Greedy's matrix, fixed mm -> moving mm, between voxels.

    Its first two axes point the other way: greedy's matrices are for RAS+ and images have LPS+.
    """
    d = len(fixed_spacing_mm)
    flip = np.diag([-1.0, -1.0, *[1.0] * (d - 1)])
    to_mm = np.diag([*map(float, fixed_spacing_mm), 1.0])
    to_voxels = np.diag([*(1 / float(mm) for mm in moving_spacing_mm), 1.0])
    matrix: np.ndarray = to_voxels @ flip @ affine @ flip @ to_mm
    return matrix


def _column(values: Sequence[float], d: int) -> np.ndarray:
    """Values by axis, to be broadcast over (d, *space)."""
    return np.array(values, dtype=np.float64).reshape(d, *(1,) * d)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
