"""What the checks know of one scan, from its preparation or from an inspection without one."""

from __future__ import annotations

from dataclasses import dataclass

from selfvox.data.preparation.geometry import Geometry
from selfvox.data.preparation.scan_profile import ScanProfile
from selfvox.data.preparation.stored_case import StoredCase


@dataclass(frozen=True, kw_only=True)
class ScanFacts:
    """One readable scan."""

    id: str
    subject: str
    geometry: Geometry
    profile: ScanProfile
    file_hash: str  # of the contents of its files
    voxel_hash: str  # of the prepared voxels: stays the same if a file is compressed again
    coarse_picture: str  # stays nearly the same if a scan is resampled; empty if unknown
    has_label: bool
    label_values: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def orientation(self) -> str:
        """Where the axes of the volume point to, such as RAS; empty for a picture."""
        if len(self.geometry.shape) == 2:
            return ""
        return "".join(
            ("RAS" if sign == 1 else "LPI")[axis] for axis, sign in self.geometry.orientation
        )


def facts_of_case(case: StoredCase) -> ScanFacts | None:
    """The facts of a prepared case; None if it was prepared before profiles were measured."""
    if case.profile is None:
        return None
    return ScanFacts(
        id=case.id,
        subject=case.subject,
        geometry=case.geometry,
        profile=case.profile,
        file_hash=case.image_hash,
        voxel_hash=case.sha256["images"],
        coarse_picture=case.coarse_picture,
        has_label=case.has_label,
        label_values=case.label_values,
        notes=case.notes,
    )
