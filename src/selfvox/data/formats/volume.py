"""Volumes as all 3D formats return them: voxels with their affine, and the checks formats share."""

from __future__ import annotations

from typing import NamedTuple

import nibabel as nib
import numpy as np
from isal import isal_zlib

from selfvox.errors import DataError
from selfvox.runs.free_resources import memory_bytes

LIMIT_BYTES = 4 * 10**9  # 1000 voxels cubed in 32 bits
DEFLATE_RATIO = 1032  # no stream of gzip unpacks to more, <https://zlib.net/zlib_tech.html>

# what isal raises on a damaged stream; its stubs take the class for an instance
INFLATE_ERRORS: tuple[type[Exception], ...] = (
    isal_zlib.IsalError,  # type: ignore[assignment]
    EOFError,
)

# ITK and DICOM count millimetres to the left and to the back, NIfTI to the right and to the front
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


_SMALL_BYTES = 2 * 10**8  # of voxels, for which memory is there


def check_memory(name: str, voxel_bytes: int) -> None:
    """Refuse voxels that the memory cannot have twice: as read, and in another order or type.

    The system would end the process without a word, or take the memory of others.

    Raises:
        DataError: less memory is free.
    """
    if voxel_bytes < _SMALL_BYTES:
        return
    free_bytes = memory_bytes()
    if 2 * voxel_bytes > free_bytes:
        raise DataError(
            f"{name}: needs {2 * voxel_bytes / 1e9:.1f} GB of memory at least, and "
            f"{free_bytes / 1e9:.1f} GB are free; crop or resample it, or use a larger machine"
        )


class Volume(NamedTuple):
    """Voxels and their geometry."""

    # (x, y, z) or (x, y, z, frame), as stored; floating where the header asks for scaling
    data: np.ndarray
    affine: np.ndarray  # (4, 4): voxel index -> mm, RAS+
    header: nib.Nifti1Header | None
    notes: tuple[str, ...]


def is_usable_affine(affine: np.ndarray) -> bool:
    """Whether an affine (4, 4) is finite and its three axes span a volume."""
    if not np.isfinite(affine).all():
        return False
    # relative to the voxel sizes, which may be tiny
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(abs(np.linalg.det(affine[:3, :3])) > 1e-6 * lengths.prod())


def spacing_along_ras(affine: np.ndarray) -> tuple[float, ...]:
    """Edges of a voxel in mm along the axes of the nearest RAS+ grid, of a usable affine (4, 4)."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    axes = nib.orientations.io_orientation(affine)[:, 0].astype(int)
    spacing = np.empty(3)
    spacing[axes] = lengths
    return tuple(float(length) for length in spacing)


def voxel_edges(affine: np.ndarray) -> str:
    """The edges of a voxel, for a note: `: voxels of 1 x 1 x 3 mm`."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return f": voxels of {' x '.join(f'{mm:.3g}' for mm in lengths)} mm"


def max_corner_distance_mm(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance, in mm, between the corners of a grid under two affines (4, 4)."""
    edges = [(0, length - 1) for length in shape[:3]]
    corners = np.stack(np.meshgrid(*edges, [1], indexing="ij"), -1).reshape(-1, 4)
    distances = np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1)
    return float(distances.max())
