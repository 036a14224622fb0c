"""SimCLR: which two views show the same image?

Chen et al. 2020; in 3D: paper B, section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfvox.errors import UsageError, did_you_mean
from selfvox.models.encoder import Encoder
from selfvox.ops import intensity
from selfvox.ops.affine import resample, view_maps
from selfvox.ops.losses import alignment, nt_xent, uniformity
from selfvox.ops.outcome import Batch, Outcome
from selfvox.ops.planes import equal_spacing, plane_names, read_planes
from selfvox.ops.tiles import split_into_tiles
from selfvox.ops.transfer import copy_together
from selfvox.pretext import Panel, PretextTask
from selfvox.settings.options import as_dict, resolve
from selfvox.settings.verbs import AtLeastOne, Positive

OPS = ("rotate", "flip", "crop", "colour", "noise", "blur", "sobel", "identity")
# two views made by these alone may be identical
WITHOUT_STRENGTH = {"flip", "sobel", "identity"}


@dataclass(frozen=True, kw_only=True)
class SimCLR(PretextTask):
    """Find, among all views of the batch, the one of the same image: NT-Xent on two random views.

    A view is made by `ops_per_view` operations drawn from `ops`; the geometric ones are composed
    into one resampling.

    Good for large batches, and for classification, which distinguishes whole images.
    """

    temperature: Annotated[float, "divides the cosine similarities; paper B: 0.05", Positive] = 0.05
    grid: Annotated[
        int, "split each crop into grid**d patches, each a sample of its own", AtLeastOne
    ] = 1
    ops: Annotated[tuple[str, ...], f"operations to draw from: {', '.join(OPS)}"] = OPS
    ops_per_view: Annotated[int, "operations that make a view", AtLeastOne] = 3
    mask_same_scan: Annotated[
        bool, "other crops and patches of the same person are no negatives"
    ] = False
    positives: Annotated[
        Literal["crop", "subject"],
        "what two views show: the same crop, or the same place in two scans of a person, where "
        "there are several; other images of the person are then no negatives",
    ] = "crop"
    angle: Annotated[
        float, "largest rotation about each axis, in degrees", pydantic.Field(gt=0, le=180)
    ] = 30.0
    smallest_crop: Annotated[
        float, "shortest edge of a view, as a share of the image's", pydantic.Field(gt=0, lt=1)
    ] = 0.7
    planes: Annotated[
        str,
        "planes to rotate in: auto (those of equal spacing), all, none, or pairs of axes such as "
        "xy,xz",
    ] = "auto"

    def __post_init__(self) -> None:
        for op in self.ops:
            if op not in OPS:
                raise ValueError(f"ops: '{op}' is not an operation{did_you_mean(op, OPS)}")
        if len(set(self.ops)) < len(self.ops):
            raise ValueError("ops: an operation is named twice; name each once")
        if set(self.ops) <= WITHOUT_STRENGTH:
            raise ValueError(
                f"ops: {','.join(self.ops)} may make the same view twice; name another operation "
                "too"
            )
        if self.ops_per_view > len(self.ops):
            raise ValueError(
                f"ops_per_view: is {self.ops_per_view}, and task.ops names {len(self.ops)}; use "
                "fewer"
            )
        if self.positives == "subject" and self.mask_same_scan:
            raise ValueError("mask_same_scan: --task.positives subject implies it; leave it out")
        # `configure` takes rotate out where no plane is left, and then writes planes as none
        if self.planes == "none":
            if "rotate" in self.ops:
                raise ValueError(
                    "planes: none leaves rotate without a plane; leave rotate out of task.ops"
                )
        else:
            self._refuse_settings_of_missing_ops()

    def _refuse_settings_of_missing_ops(self) -> None:
        op_of = {"angle": "rotate", "planes": "rotate", "smallest_crop": "crop"}
        for setting, op in op_of.items():
            default = getattr(SimCLR, setting)
            if op not in self.ops and getattr(self, setting) != default:
                raise ValueError(
                    f"{setting}: goes with {op}, which task.ops lacks; leave it out, or name {op} "
                    "there"
                )

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> SimCLR:
        """Settle the planes: rotating between axes of different spacing would shear the anatomy."""
        # the smallest encoder halves a tile once, and a map has at least 4 voxels
        multiple = 8 * self.grid
        if any(edge % multiple for edge in crop):
            nearest = ",".join(str(max(1, edge // multiple) * multiple) for edge in crop)
            raise UsageError(
                f"task.grid: {self.grid} leaves tiles of a crop of {' x '.join(map(str, crop))} "
                f"voxels that are no multiple of 8; use --crop {nearest}"
            )
        if self.planes != "auto" or "rotate" not in self.ops:
            read_planes(self.planes.replace("auto", "all"), len(crop))
            return self
        equal = equal_spacing(*spacings_mm)
        if equal:
            return replace(self, planes=plane_names(equal))
        ops = [op for op in self.ops if op != "rotate"]
        try:
            return resolve(SimCLR, {**as_dict(self), "planes": "none", "ops": ops}, prefix="task.")
        except UsageError as error:
            raise UsageError(
                f"{error} (rotate was left out of task.ops, since no two axes are equally spaced "
                "in every scan)"
            ) from None

    @property
    def min_batch(self) -> int:
        """Two images; one where its tiles are compared."""
        return 2 if self.grid == 1 or self._masks_subject else 1

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """The crop, or one of its tiles."""
        return tuple(edge // self.grid for edge in crop)

    @property
    def needs_distinct_scans(self) -> bool:
        """Where patches of the same person are masked."""
        return self._masks_subject

    @property
    def pairs_scans(self) -> bool:
        """Where views of two scans of a person are a pair."""
        return self.positives == "subject"

    @property
    def _masks_subject(self) -> bool:
        """Whether other images of the same person are no negatives."""
        return self.mask_same_scan or self.positives == "subject"

    def head(self, encoder: Encoder) -> nn.Module:
        """A projection of two layers, as in the paper."""
        return nn.Sequential(nn.Linear(encoder.width, 512), nn.ReLU(), nn.Linear(512, 128))

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Two views of each sample: an image, or a tile of one.

        Returns:
            `views` (2N, channel, *space), rows `i` and `i + N` of one sample, and `scan` (2N,), the
            scan each is from.
        """
        return self.make_pair_batch(images, images, rng, scan)

    def make_pair_batch(
        self, images: Tensor, partners: Tensor, rng: torch.Generator, scan: Tensor | None = None
    ) -> Batch:
        """The same, with the second view of each sample made from its partner."""
        self.check_batch(len(images))
        samples = self._samples(images)
        second = samples if partners is images else self._samples(partners)
        # drawn on the CPU: every device makes the same views
        chosen = self._choose_ops(len(samples), rng)
        if scan is None:
            scan = torch.arange(len(images), device=images.device)
        # tiles of an image are next to each other, and the second views follow all first ones
        scan = scan.repeat_interleave(len(samples) // len(images)).repeat(2)
        return {"views": self._views(torch.cat([samples, second]), chosen, rng), "scan": scan}

    def _samples(self, images: Tensor) -> Tensor:
        """The images, or their tiles: (sample, channel, *space)."""
        return split_into_tiles(images, self.grid).flatten(0, 1) if self.grid > 1 else images

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """NT-Xent; accuracy of retrieving the partner, alignment, uniformity and spread.

        The last three show a collapse of the embeddings (Wang and Isola 2020).
        """
        embedded = head(encoder.embed(batch["views"])).float()
        retrieval = nt_xent(
            embedded, self.temperature, batch["scan"] if self._masks_subject else None
        )
        with torch.no_grad():
            # the loss depends on directions only, so the spread is that of unit vectors
            unit = F.normalize(embedded, dim=1)
            metrics = {
                "accuracy": retrieval.accuracy,
                "chance": retrieval.chance,
                "loss_chance": retrieval.loss_chance,
                "alignment": alignment(*embedded.chunk(2)),
                "uniformity": uniformity(embedded),
                # 1 where the embeddings are spread evenly over the sphere
                "embedding_std": unit.std(0).mean() * math.sqrt(unit.shape[1]),
            }
        return Outcome(retrieval.loss, metrics)

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, then the two views of its first sample."""
        first, second = batch["views"].chunk(2)
        per_image = len(first) // len(images)
        return [
            [Panel("scan", image), Panel("view 1", view_1), Panel("view 2", view_2)]
            for image, view_1, view_2 in zip(
                images, first[::per_image], second[::per_image], strict=True
            )
        ]

    def _choose_ops(self, count: int, rng: torch.Generator) -> Tensor:
        """(2 * count, ops) booleans: each view's operations, so that no two views are identical."""
        order = torch.rand(2 * count, len(self.ops), generator=rng)
        chosen = _smallest(order, self.ops_per_view)
        has_strength = torch.tensor([op not in WITHOUT_STRENGTH for op in self.ops])
        same_ops = (chosen[:count] == chosen[count:]).all(1)
        identical = same_ops & ~(chosen[:count] & has_strength).any(1)
        # the second view then takes an operation that has a strength
        order[count:] -= (identical[:, None] & has_strength).float()
        return _smallest(order, self.ops_per_view)

    def _views(self, x: Tensor, chosen: Tensor, rng: torch.Generator) -> Tensor:
        """Apply the chosen operations, the geometric ones in one resampling."""

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(len(x)).uniform_(low, high, generator=rng)

        # every strength is drawn for every view, so that a view's choice moves no later draw
        matrices, shifts = self._geometry(x, chosen, rng)
        shift = uniform(-0.3, 0.3)
        factor = uniform(0.6, 1.4)
        sigma_blur = uniform(0.3, 1.0)
        sigma_noise = uniform(0.02, 0.2)

        rows = copy_together(
            x.device,
            self._rows(chosen, "rotate", "flip", "crop"),
            *(self._rows(chosen, op) for op in ("blur", "sobel", "colour", "noise")),
            *(matrices, shifts, sigma_blur, factor, shift, sigma_noise),
        )
        moved, blurred, edged, coloured, noisy = rows[:5]
        matrices, shifts, sigma_blur, factor, shift, sigma_noise = rows[5:]
        # one resampling: each interpolation would blur the view a little more
        x = _on_rows(x, moved, lambda views: resample(views, matrices[moved], shifts[moved]))
        x = _on_rows(x, blurred, lambda views: intensity.blur(views, sigma_blur[blurred]))
        # Sobel standardises, so it comes before colour
        x = _on_rows(x, edged, intensity.sobel_magnitude)

        def recolour(views: Tensor) -> Tensor:
            views = intensity.scale_contrast(views, factor[coloured])
            return intensity.shift_brightness(views, shift[coloured])

        x = _on_rows(x, coloured, recolour)
        return _on_rows(x, noisy, lambda views: intensity.add_noise(views, sigma_noise[noisy], rng))

    def _geometry(self, x: Tensor, chosen: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One affine map per view: flips, rotation about some axes, and a smaller crop enlarged."""
        count = len(x)
        d = x.ndim - 2
        planes = read_planes(self.planes.replace("auto", "all"), d)
        # the order of the draws is part of a run's seed
        degrees = torch.empty(count, len(planes)).uniform_(-self.angle, self.angle, generator=rng)
        rotated = _one_or_more(count, len(planes), rng) & self._column(chosen, "rotate")
        flips = _one_or_more(count, d, rng) & self._column(chosen, "flip")
        scale = torch.empty(count, 1).uniform_(self.smallest_crop, 1.0, generator=rng)
        scale = torch.where(self._column(chosen, "crop"), scale, torch.ones(1))
        position = 2 * torch.rand(count, d, generator=rng) - 1
        angles = torch.deg2rad(degrees * rotated)
        return view_maps(x.shape[2:], angles, planes, flips, scale, position)

    def _column(self, chosen: Tensor, op: str) -> Tensor:
        """(views, 1) booleans: has the view this operation?"""
        if op not in self.ops:
            return torch.zeros(len(chosen), 1, dtype=torch.bool)
        return chosen[:, [self.ops.index(op)]]

    def _rows(self, chosen: Tensor, *ops: str) -> Tensor:
        """The numbers of the views that have any of these operations."""
        columns = torch.cat([self._column(chosen, op) for op in ops], 1)
        return columns.any(1).nonzero().flatten()


def _smallest(order: Tensor, count: int) -> Tensor:
    """True at the `count` smallest values of each row."""
    indices = order.topk(count, 1, largest=False).indices
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, indices, True)


def _one_or_more(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """(rows, columns) booleans: one drawn at random in each row, the others half of the time."""
    chosen = torch.rand(rows, columns, generator=rng) < 0.5
    if not columns:
        return chosen
    return chosen.scatter(1, torch.randint(columns, (rows, 1), generator=rng), True)


def _on_rows(x: Tensor, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`x` with `change` applied to some of its samples."""
    if not len(rows):
        return x
    return x.index_copy(0, rows, change(x[rows]))
