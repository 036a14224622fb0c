"""SimCLR: which two views show the same image? (Chen et al. 2020; paper B, section 2.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

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
from selfvox.pretext import Panel, PretextTask
from selfvox.settings.options import as_dict, resolve
from selfvox.settings.verbs import AtLeastOne, Positive

OPS = ("rotate", "flip", "crop", "colour", "noise", "blur", "sobel", "identity")
WITHOUT_STRENGTH = {
    "flip",
    "sobel",
    "identity",
}  # two views made by these alone may be the very same


@dataclass(frozen=True, kw_only=True)
class SimCLR(PretextTask):
    """Find, among all views of the batch, the one that shows the same image: NT-Xent on two random views of each.

    A view is made by `ops_per_view` operations drawn from `ops`; the geometric ones are composed into one resampling.

    Good for large batches, and for classification, where whole images are told from one another.
    """

    temperature: Annotated[float, "divides the cosine similarities; paper B: 0.05", Positive] = 0.05
    grid: Annotated[
        int, "split each crop into grid**d patches, each a sample of its own", AtLeastOne
    ] = 1
    ops: Annotated[tuple[str, ...], f"operations to draw from: {', '.join(OPS)}"] = OPS
    ops_per_view: Annotated[int, "operations that make a view", AtLeastOne] = 3
    mask_same_scan: Annotated[bool, "other crops and patches of the same scan are no negatives"] = (
        False
    )
    angle: Annotated[
        float, "largest rotation about each axis, in degrees", pydantic.Field(gt=0, le=180)
    ] = 30.0
    smallest_crop: Annotated[
        float, "shortest edge of a view, as a share of the image's", pydantic.Field(gt=0, lt=1)
    ] = 0.7
    planes: Annotated[
        str,
        "planes to rotate in: auto (those of equal spacing), all, none, or pairs of axes such as xy,xz",
    ] = "auto"

    def __post_init__(self) -> None:
        for op in self.ops:
            if op not in OPS:
                raise ValueError(f"ops: '{op}' is no operation{did_you_mean(op, OPS)}")
        if len(set(self.ops)) < len(self.ops):
            raise ValueError("ops: an operation is named twice; name each once")
        if set(self.ops) <= WITHOUT_STRENGTH:
            raise ValueError(
                f"ops: {','.join(self.ops)} may make the same view twice; name another operation too"
            )
        if self.ops_per_view > len(self.ops):
            raise ValueError(
                f"ops_per_view: is {self.ops_per_view}, and task.ops names {len(self.ops)}; use fewer"
            )
        if self.planes == "none" and "rotate" in self.ops:
            raise ValueError(
                "planes: none leaves rotate without a plane; leave rotate out of task.ops"
            )
        # `configure` itself takes rotate out where no plane is left
        for name, op in (("angle", "rotate"), ("planes", "rotate"), ("smallest_crop", "crop")):
            if (
                op not in self.ops
                and self.planes != "none"
                and getattr(self, name) != getattr(SimCLR, name)
            ):
                raise ValueError(
                    f"{name}: goes with {op}, which task.ops lacks; leave it out, or name {op} there"
                )

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> SimCLR:
        """Settle the planes: rotating between axes of different spacing would shear the anatomy."""
        by = 8 * self.grid
        if any(edge % by for edge in crop):
            nearest = ",".join(str(max(1, edge // by) * by) for edge in crop)
            raise UsageError(
                f"task.grid: {self.grid} leaves tiles of a crop of {' x '.join(map(str, crop))} voxels that are no "
                f"multiple of 8; use --crop {nearest}"
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
            why = "rotate was left out of task.ops, since no two axes are equally spaced in every scan"
            raise UsageError(f"{error} ({why})") from None

    @property
    def min_batch(self) -> int:
        """One image will do where it has tiles to tell apart."""
        return 2 if self.grid == 1 or self.mask_same_scan else 1

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """The crop, or one of its tiles."""
        return tuple(edge // self.grid for edge in crop)

    @property
    def needs_distinct_scans(self) -> bool:
        """Where a scan's own patches are masked."""
        return self.mask_same_scan

    def head(self, encoder: Encoder) -> nn.Module:  # noqa: D102
        return nn.Sequential(nn.Linear(encoder.width, 512), nn.ReLU(), nn.Linear(512, 128))

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Two views of each sample.

        Returns:
            `views` (2N, channel, *space), rows `i` and `i + N` of one sample, and `scan` (2N,), the scan each is from.
        """
        self.check_batch(len(images))
        samples = split_into_tiles(images, self.grid).flatten(0, 1) if self.grid > 1 else images
        chosen = self._choose(len(samples), rng)
        scan = torch.arange(len(images), device=images.device) if scan is None else scan
        scan = scan.repeat_interleave(len(samples) // len(images)).repeat(2)
        return {"views": self._views(torch.cat([samples, samples]), chosen, rng), "scan": scan}

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """NT-Xent; accuracy of retrieving the partner, alignment, uniformity (Wang and Isola 2020) and spread."""
        embedded = head(encoder.embed(batch["views"])).float()
        found = nt_xent(embedded, self.temperature, batch["scan"] if self.mask_same_scan else None)
        with torch.no_grad():
            unit = F.normalize(embedded, dim=1)
            metrics = {
                "accuracy": found.accuracy,
                "chance": found.chance,
                "alignment": alignment(*embedded.chunk(2)),
                "uniformity": uniformity(embedded),
                "embedding_std": unit.std(0).mean() * math.sqrt(unit.shape[1]),
            }
        return Outcome(found.loss, metrics)

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, then the two views of its first sample."""
        first, second = batch["views"].chunk(2)
        per_image = len(first) // len(images)
        return [
            [
                Panel("scan", image),
                Panel("view 1", first[i * per_image]),
                Panel("view 2", second[i * per_image]),
            ]
            for i, image in enumerate(images)
        ]

    def _choose(self, count: int, rng: torch.Generator) -> Tensor:
        """(2 * count, ops) booleans: each view's operations; never such that both views of a sample are the same."""
        order = torch.rand(2 * count, len(self.ops), generator=rng)
        chosen = _lowest(order, self.ops_per_view)
        varied = torch.tensor([op not in WITHOUT_STRENGTH for op in self.ops])
        same = (chosen[:count] == chosen[count:]).all(1) & ~(chosen[:count] & varied).any(1)
        # the second view then takes an operation that has a strength
        order[count:] -= (same[:, None] & varied).float()
        return _lowest(order, self.ops_per_view)

    def _views(self, x: Tensor, chosen: Tensor, rng: torch.Generator) -> Tensor:
        """Apply the chosen operations: the geometric ones in one resampling, then blur, Sobel, colour, noise."""

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(len(x)).uniform_(low, high, generator=rng)

        matrices, shifts = self._geometry(x, chosen, rng)
        moved = self._rows(chosen, "rotate", "flip", "crop")
        x = _on_rows(x, moved, lambda part: resample(part, matrices[moved], shifts[moved]))
        shift, factor = uniform(-0.3, 0.3), uniform(0.6, 1.4)
        sigma_blur, sigma_noise = uniform(0.3, 1.0), uniform(0.02, 0.2)
        colour, blurred, edges, noisy = (
            self._rows(chosen, op) for op in ("colour", "blur", "sobel", "noise")
        )
        x = _on_rows(x, blurred, lambda part: intensity.blur(part, sigma_blur[blurred]))
        # before colour, which its standardising would take back
        x = _on_rows(x, edges, intensity.sobel_magnitude)
        x = _on_rows(
            x,
            colour,
            lambda part: intensity.shift_brightness(
                intensity.scale_contrast(part, factor[colour]), shift[colour]
            ),
        )
        return _on_rows(x, noisy, lambda part: intensity.add_noise(part, sigma_noise[noisy], rng))

    def _geometry(self, x: Tensor, chosen: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One affine map per view: flips, rotation about some axes, and a smaller crop blown up to the whole."""
        d = x.ndim - 2
        planes = read_planes(self.planes.replace("auto", "all"), d)
        degrees = torch.empty(len(x), len(planes)).uniform_(-self.angle, self.angle, generator=rng)
        turned = _one_or_more(len(x), len(planes), rng) & self._column(chosen, "rotate")
        flipped = _one_or_more(len(x), d, rng) & self._column(chosen, "flip")
        scale = torch.empty(len(x), 1).uniform_(self.smallest_crop, 1.0, generator=rng)
        scale = torch.where(self._column(chosen, "crop"), scale, torch.ones(1))
        place = 2 * torch.rand(len(x), d, generator=rng) - 1
        return view_maps(
            x.shape[2:], torch.deg2rad(degrees * turned), planes, flipped, scale, place
        )

    def _column(self, chosen: Tensor, op: str) -> Tensor:
        """(views, 1) booleans: has the view this operation?"""
        return (
            chosen[:, [self.ops.index(op)]]
            if op in self.ops
            else torch.zeros(len(chosen), 1, dtype=torch.bool)
        )

    def _rows(self, chosen: Tensor, *ops: str) -> Tensor:
        """The numbers of the views that have any of these operations."""
        return (
            torch.stack([self._column(chosen, op)[:, 0] for op in ops]).any(0).nonzero().flatten()
        )


def _lowest(order: Tensor, count: int) -> Tensor:
    """True at the `count` smallest values of each row."""
    return torch.zeros_like(order, dtype=torch.bool).scatter(
        1, order.topk(count, 1, largest=False).indices, True
    )


def _one_or_more(rows: int, of: int, rng: torch.Generator) -> Tensor:
    """(rows, of) booleans: one drawn at random in each row, and each other half of the time."""
    some = torch.rand(rows, of, generator=rng) < 0.5
    return some.scatter(1, torch.randint(of, (rows, 1), generator=rng), True) if of else some


def _on_rows(x: Tensor, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`x` with `change` applied to some of its samples."""
    if not len(rows):
        return x
    rows = rows.to(x.device)
    return x.index_copy(0, rows, change(x[rows]))
