"""Rotation: by which right angle, about which axis, was the image turned? (Gidaris et al. 2018; paper A, 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfvox.errors import UsageError
from selfvox.models.encoder import Encoder
from selfvox.ops.outcome import Batch, Outcome
from selfvox.ops.planes import AXES, Plane, equal_edges, equal_spacing, plane_names, read_planes
from selfvox.ops.resize import random_crop
from selfvox.ops.rotations import AxisRotation, plane_rotations, rotate_batch, rotation_group
from selfvox.pretext import Panel, PretextTask
from selfvox.settings.verbs import AtLeastOne


@dataclass(frozen=True, kw_only=True)
class Rotation(PretextTask):
    """Tell by which right angle the image was turned: 4 answers in 2D, 10 in 3D (24 with answers='group').

    Rotations move voxels, they never interpolate. Images are cut to equal edges on the axes that mix.

    Good for a first try: cheap, easy to judge by its accuracy, and fit for any organ that has an up and a front.
    """

    versions: Annotated[int, "differently rotated versions of each image in a step", AtLeastOne] = 1
    answers: Annotated[
        Literal["planes", "group"],
        "the identity and three turns about each plane, or every turn of the grid",
    ] = "planes"
    planes: Annotated[
        str,
        "planes to turn in: all, in-plane (those of equal spacing), or pairs of axes such as xy or xy,xz",
    ] = "all"
    uneven: Annotated[
        bool,
        "turn between axes of unequal spacing too, as the papers did: the resolution may then tell the turn",
    ] = False

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> Rotation:
        """Settle the planes; refuse to turn between axes of different spacing, for the resolution would tell."""
        spatial_dims, equal = len(crop), equal_spacing(*spacings_mm)
        if self.answers == "group" and self.planes != "all":
            raise UsageError(
                "task.answers: the whole group turns in all planes; use --task.answers planes"
            )
        # a finer one would interpolate the coarse axis, which would then be the smooth one
        coarsest = f"{max(map(max, spacings_mm)):.2g}"
        # two axes may be those of a slice, and the scans have three
        spacing = (
            f"--spacing {','.join([coarsest] * 3)}"
            if spatial_dims == 3
            else f"{coarsest} mm along each axis"
        )
        if self.planes == "in-plane":
            if not equal:
                at_fault = _most_uneven(read_planes("all", spatial_dims), spacings_mm)
                raise UsageError(
                    f"task.planes: no two axes are equally spaced in every scan ({at_fault}); prepare with {spacing} "
                    "or coarser"
                )
            return replace(self, planes=plane_names(equal)).configure(crop, *spacings_mm)
        planes = read_planes(self.planes, spatial_dims)
        if not planes:
            raise UsageError("task.planes: none leaves no rotation to tell; use all or in-plane")
        uneven = [plane for plane in planes if plane not in equal and not self.uneven]
        if uneven:
            remedy = "use --task.planes in-plane or " if equal else ""
            raise UsageError(
                f"task rotation: there are scans of spacing {_most_uneven(uneven, spacings_mm)}, as scanned or as "
                f"prepared, so the resolution would give a turn in {plane_names(uneven)} away; {remedy}prepare with "
                f"{spacing} or coarser"
            )
        if self.versions > len(self.table(spatial_dims)):
            raise UsageError(
                f"task.versions: {self.versions} of an image cannot all differ, there are "
                f"{len(self.table(spatial_dims))} rotations; use fewer"
            )
        return self

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """The crop, cut to equal edges on the axes that mix."""
        mixed = {axis for plane in read_planes(self.planes, len(crop)) for axis in plane}
        return equal_edges(crop, sorted(mixed))

    def table(self, spatial_dims: int) -> tuple[AxisRotation, ...]:
        """The rotations, in the order of their answers; the identity is 0."""
        if self.answers == "group":
            return rotation_group(spatial_dims)
        return plane_rotations(spatial_dims, read_planes(self.planes, spatial_dims))

    def head(self, encoder: Encoder) -> nn.Module:  # noqa: D102
        answers = len(self.table(encoder.spatial_dims))
        last = nn.Linear(256, answers)
        # small weights: an untrained network answers every rotation equally often
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(encoder.width, 256), nn.ReLU(), last)

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Turn each image, `versions` times and each time differently.

        Returns:
            `images` (batch * versions, channel, *space) and their `answer` (batch * versions,).
        """
        table = self.table(images.ndim - 2)
        images = random_crop(images, self.input_size(images.shape[2:]), rng)
        order = torch.rand(len(images), len(table), generator=rng).argsort(1)
        answer = order[:, : self.versions].flatten()
        turned = rotate_batch(images.repeat_interleave(self.versions, 0), table, answer)
        return {"images": turned, "answer": answer.to(images.device)}

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """Cross-entropy of the answer."""
        logits = head(encoder.embed(batch["images"])).float()
        accuracy = (logits.argmax(1) == batch["answer"]).float().mean()
        chance = torch.tensor(1 / logits.shape[1], device=logits.device)
        return Outcome(
            F.cross_entropy(logits, batch["answer"]), {"accuracy": accuracy, "chance": chance}
        )

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, then its rotated versions with the answer."""
        table = self.table(images.ndim - 2)
        turned = batch["images"].view(len(images), -1, *batch["images"].shape[1:])
        answers = batch["answer"].view(len(images), -1).tolist()
        return [
            [Panel("scan", image)]
            + [
                Panel(f"answer {n}: {_words(table[n])}", each)
                for n, each in zip(row, versions, strict=True)
            ]
            for image, versions, row in zip(images, turned, answers, strict=True)
        ]


def _words(rotation: AxisRotation) -> str:
    """`y, -x, z`: which input axis each output axis runs along."""
    return ", ".join(
        f"{'-' if back else ''}{AXES[axis]}" for axis, back in zip(*rotation, strict=True)
    )


def _most_uneven(planes: Sequence[Plane], spacings_mm: Sequence[Sequence[float]]) -> str:
    """For each plane the spacing whose two axes differ most, such as `0.70 x 0.70 x 5.00 mm`; each once."""
    found = [
        max(spacings_mm, key=lambda each: max(each[a] / each[b], each[b] / each[a]))
        for a, b in planes
    ]
    return " and ".join(
        dict.fromkeys(" x ".join(f"{spacing:.2f}" for spacing in each) + " mm" for each in found)
    )
