"""Rotation: by which right angle, about which axis, was the image turned?

Gidaris et al. 2018; in 3D: paper A, section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from selfvox.errors import UsageError
from selfvox.models.answer_head import answer_layer, answer_outcome
from selfvox.models.encoder import Encoder
from selfvox.ops.outcome import Batch, Outcome
from selfvox.ops.planes import AXES, Plane, equal_edges, equal_spacing, plane_names, read_planes
from selfvox.ops.resize import random_crop
from selfvox.ops.rotations import AxisRotation, plane_rotations, rotate_batch, rotation_group
from selfvox.pretext import Panel, PretextTask
from selfvox.settings.verbs import AtLeastOne


@dataclass(frozen=True, kw_only=True)
class Rotation(PretextTask):
    """Predict by which right angle the image was rotated.

    There are 4 answers in 2D and 10 in 3D, or 24 with `answers` "group". Rotations move voxels,
    they never interpolate. Images are cropped to equal edges on the axes that mix.

    Good for a first try: cheap, easy to judge by its accuracy, and fit for any organ that has an up
    and a front.
    """

    versions: Annotated[int, "differently rotated versions of each image in a step", AtLeastOne] = 1
    answers: Annotated[
        Literal["planes", "group"],
        "the identity and three rotations in each plane, or every rotation of the grid",
    ] = "planes"
    planes: Annotated[
        str,
        "planes to rotate in: all, in-plane (those of equal spacing), or pairs of axes such as xy "
        "or xy,xz",
    ] = "all"
    uneven: Annotated[
        bool,
        "rotate between axes of unequal spacing too, as the papers did: the resolution may then "
        "give the rotation away",
    ] = False

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> Rotation:
        """Settle the planes; refuse those in which the resolution would give the answer away."""
        equal = equal_spacing(*spacings_mm)
        if self.answers == "group" and self.planes != "all":
            raise UsageError(
                "task.answers: the group rotates in all planes; use --task.answers planes"
            )
        if self.planes == "in-plane":
            return replace(self, planes=_planes_in_slices(spacings_mm)).configure(
                crop, *spacings_mm
            )
        planes = read_planes(self.planes, len(crop))
        if not planes:
            raise UsageError("task.planes: none leaves no rotation to predict; use all or in-plane")
        unequal = [plane for plane in planes if plane not in equal]
        if unequal and not self.uneven:
            remedy = "use --task.planes in-plane or " if equal else ""
            raise UsageError(
                f"task rotation: there are scans of spacing {_most_unequal(unequal, spacings_mm)}, "
                "as scanned or as prepared, so the resolution would give a rotation in "
                f"{plane_names(unequal)} away; {remedy}prepare with "
                f"{_equal_spacing_option(spacings_mm)} or coarser"
            )
        rotations = len(self.table(len(crop)))
        if self.versions > rotations:
            raise UsageError(
                f"task.versions: {self.versions} of an image cannot all differ, there are "
                f"{rotations} rotations; use fewer"
            )
        return self

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """The crop, shortened to equal edges on the axes that mix."""
        mixed = {axis for plane in read_planes(self.planes, len(crop)) for axis in plane}
        return equal_edges(crop, sorted(mixed))

    def table(self, spatial_dims: int) -> tuple[AxisRotation, ...]:
        """The rotations, in the order of their answers; the identity is 0."""
        if self.answers == "group":
            return rotation_group(spatial_dims)
        return plane_rotations(spatial_dims, read_planes(self.planes, spatial_dims))

    def head(self, encoder: Encoder) -> nn.Module:
        """Two layers on the embedding."""
        last = answer_layer(256, len(self.table(encoder.spatial_dims)))
        return nn.Sequential(nn.Linear(encoder.width, 256), nn.ReLU(), last)

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Rotate each image, `versions` times and each time differently.

        Returns:
            `images` (batch * versions, channel, *space) and their `answer` (batch * versions,).
        """
        table = self.table(images.ndim - 2)
        # at a random place, so that no voxel of the scan is left out for good
        images = random_crop(images, self.input_size(images.shape[2:]), rng)
        # the first of a random order: the versions of an image are different
        order = torch.rand(len(images), len(table), generator=rng).argsort(1)
        answer = order[:, : self.versions].flatten()
        rotated = rotate_batch(images.repeat_interleave(self.versions, 0), table, answer)
        return {"images": rotated, "answer": answer.to(images.device)}

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """Cross-entropy of the answer."""
        return answer_outcome(head(encoder.embed(batch["images"])), batch["answer"])

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, then its rotated versions with the answer."""
        table = self.table(images.ndim - 2)
        rotated = batch["images"].view(len(images), -1, *batch["images"].shape[1:])
        answers = batch["answer"].view(len(images), -1).tolist()
        rows = []
        for image, versions, image_answers in zip(images, rotated, answers, strict=True):
            row = [Panel("scan", image)]
            for version, answer in zip(versions, image_answers, strict=True):
                row.append(Panel(f"answer {answer}: {_axes_text(table[answer])}", version))
            rows.append(row)
        return rows


def _planes_in_slices(spacings_mm: Sequence[Sequence[float]]) -> str:
    """The planes of equal spacing in every scan, as a setting writes them."""
    planes = equal_spacing(*spacings_mm)
    if not planes:
        all_planes = read_planes("all", len(spacings_mm[0]))
        raise UsageError(
            "task.planes: no two axes are equally spaced in every scan "
            f"({_most_unequal(all_planes, spacings_mm)}); prepare with "
            f"{_equal_spacing_option(spacings_mm)} or coarser"
        )
    return plane_names(planes)


def _equal_spacing_option(spacings_mm: Sequence[Sequence[float]]) -> str:
    """How to prepare the scans so that all axes are equally spaced."""
    # a finer spacing would interpolate the coarse axis, which would then be the smooth one
    coarsest = f"{max(max(spacing) for spacing in spacings_mm):.2g}"
    if len(spacings_mm[0]) == 3:
        return f"--spacing {','.join([coarsest] * 3)}"
    # two axes may be those of a slice, and the scans have three
    return f"{coarsest} mm along each axis"


def _axes_text(rotation: AxisRotation) -> str:
    """`y, -x, z`: which input axis each output axis runs along."""
    return ", ".join(
        f"{'-' if flipped else ''}{AXES[axis]}" for axis, flipped in zip(*rotation, strict=True)
    )


def _most_unequal(planes: Sequence[Plane], spacings_mm: Sequence[Sequence[float]]) -> str:
    """For each plane its most unequal spacing, such as `0.70 x 0.70 x 5.00 mm`; each once."""
    texts = []
    for a, b in planes:
        # defaults, since the loop changes both
        def ratio(spacing: Sequence[float], a: int = a, b: int = b) -> float:
            return max(spacing[a] / spacing[b], spacing[b] / spacing[a])

        spacing = max(spacings_mm, key=ratio)
        texts.append(" x ".join(f"{edge:.2f}" for edge in spacing) + " mm")
    return " and ".join(dict.fromkeys(texts))
