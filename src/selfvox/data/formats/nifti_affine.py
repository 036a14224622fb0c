"""The affine of a NIfTI header in mm; its voxel sizes are repaired with a note."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from selfvox.data.formats.volume import is_usable_affine, max_corner_distance_mm, voxel_edges
from selfvox.errors import DataError

_UNITS_MM = {1: ("metre", 1000.0), 3: ("micrometre", 0.001)}


def header_affine(
    header: nib.Nifti1Header, shape: tuple[int, ...], name: str, notes: list[str]
) -> np.ndarray:
    """The affine (4, 4), voxel -> mm, whatever the unit of the header; `shape` is the scan's.

    The voxel sizes in the header are repaired, and `notes` get a line for each repair.

    Raises:
        DataError: the sform, or the qform without one, or the voxel sizes cannot be used.
    """
    affine = _affine_in_its_unit(header, shape, name, notes)
    # the lowest three bits are the unit of lengths, the others that of time
    unit, mm = _UNITS_MM.get(int(header["xyzt_units"]) & 7, ("millimetre", 1.0))
    if mm == 1:
        return affine
    affine[:3] *= mm
    notes.append(f"header's unit is the {unit}, converted to mm{voxel_edges(affine)}")
    return affine


def _affine_in_its_unit(
    header: nib.Nifti1Header, shape: tuple[int, ...], name: str, notes: list[str]
) -> np.ndarray:
    """sform, else qform, else voxel sizes about the centre; disagreement and repairs are noted."""
    _repair_voxel_sizes(header, name, notes)
    sform = _sform(header, name, notes)
    qform, flaw = _qform(header)
    # the sform first, as in nibabel
    if sform is not None:
        note = flaw or _disagreement(sform, qform, shape, header)
        if note:
            notes.append(f"{note}; the sform is used")
        return np.array(sform, np.float64)
    if flaw:
        raise DataError(f"{name}: {flaw} and there is no sform; export it again")
    if qform is not None:
        return np.array(qform, np.float64)
    notes.append("neither sform nor qform: orientation unknown, left and right may be swapped")
    # method 1 of the standard
    return np.array(header.get_base_affine(), np.float64)


def _repair_voxel_sizes(header: nib.Nifti1Header, name: str, notes: list[str]) -> None:
    """Make the voxel sizes positive or 0, and the qform's handedness 1 or -1."""
    pixdim = header["pixdim"]
    if not np.isfinite(pixdim[1:4]).all():
        raise DataError(
            f"{name}: voxel sizes {tuple(map(float, pixdim[1:4]))} in the header; export it again"
        )
    # the standard reads 0 as 1
    if int(header["qform_code"]) > 0 and pixdim[0] not in (-1, 1):
        pixdim[0] = -1 if pixdim[0] < 0 else 1
    if (pixdim[1:4] < 0).any():
        notes.append("negative voxel sizes in the header taken as positive")
        pixdim[1:4] = abs(pixdim[1:4])


def _sform(header: nib.Nifti1Header, name: str, notes: list[str]) -> np.ndarray | None:
    """The sform where it is declared; it also gives voxel sizes that are 0 in the header."""
    pixdim = header["pixdim"]
    sform: np.ndarray | None = None
    if int(header["sform_code"]) > 0:
        sform = header.get_sform()
        if not is_usable_affine(sform):
            raise DataError(
                f"{name}: the sform is no usable affine (not finite, or flat); export it again"
            )
        if (pixdim[1:4] == 0).any():
            notes.append("voxel size 0 in the header; taken from the sform")
            pixdim[1:4] = np.linalg.norm(sform[:3, :3], axis=0)
    if (pixdim[1:4] == 0).any():
        raise DataError(
            f"{name}: voxel size 0 in the header and no sform to give it; export it again"
        )
    return sform


def _qform(header: nib.Nifti1Header) -> tuple[np.ndarray | None, str]:
    """The qform where it is declared and usable, and what is wrong with it."""
    if int(header["qform_code"]) <= 0:
        return None, ""
    flaw = "the qform's quaternion or offset is impossible"
    try:
        qform = header.get_qform()
    except (ValueError, HeaderDataError):
        return None, flaw
    return (qform, "") if is_usable_affine(qform) else (None, flaw)


def _disagreement(
    sform: np.ndarray,
    qform: np.ndarray | None,
    shape: tuple[int, ...],
    header: nib.Nifti1Header,
) -> str:
    """How far sform and qform are apart, where that is more than a tenth of a voxel; else ""."""
    if qform is None:
        return ""
    distance = max_corner_distance_mm(sform, qform, shape)
    if distance <= 0.1 * header["pixdim"][1:4].min():
        return ""
    return f"sform and qform disagree by up to {distance:.3g} mm"
