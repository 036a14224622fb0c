"""Exemplar: which is the same image, transformed, and which is another?

Dosovitskiy et al. 2014; in 3D: paper A, section 3.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfvox.models.encoder import Encoder
from selfvox.ops.affine import resample, view_maps
from selfvox.ops.gather import gather_embeddings
from selfvox.ops.intensity import scale_contrast, shift_brightness
from selfvox.ops.losses import nt_xent, triplet_loss
from selfvox.ops.outcome import Batch, Outcome
from selfvox.ops.planes import equal_spacing, plane_names, read_planes
from selfvox.ops.transfer import copy_together
from selfvox.pretext import Panel, PretextTask
from selfvox.settings.verbs import NotNegative, Positive

WIDTH = 128  # of an embedding
NO_SCAN = -1  # in a bank: of a row that is from no scan


@dataclass(frozen=True, kw_only=True)
class Exemplar(PretextTask):
    """Embed each image nearer to a transformed copy of itself than to another image of the batch.

    The copy is rotated, flipped and zoomed in one resampling, then changed in brightness and
    contrast.

    Good for small batches of large crops, where SimCLR has too few images to compare with.
    """

    objective: Annotated[
        Literal["triplet", "contrastive"],
        "one other image each, at a margin; or NT-Xent against the whole batch",
    ] = "triplet"
    margin: Annotated[
        float, "by how much the other image must be farther away (triplet)", Positive
    ] = 1.0
    distance: Annotated[
        Literal["squared", "plain"],
        "Euclidean distance on the unit sphere: squared, 0 to 4, or plain, 0 to 2",
    ] = "squared"
    temperature: Annotated[float, "divides the cosine similarities (contrastive)", Positive] = 0.1
    positives: Annotated[
        Literal["crop", "subject"],
        "what the copy shows: the same crop, or the same place in another scan of the person, "
        "where there is one",
    ] = "crop"
    bank: Annotated[
        int,
        "embeddings of earlier images to compare each image with too; 0: only the batch",
        NotNegative,
    ] = 0
    angle: Annotated[
        float, "largest rotation about an axis, in degrees", pydantic.Field(gt=0, le=180)
    ] = 30.0
    zoom: Annotated[
        float,
        "largest magnification; its inverse is the smallest",
        pydantic.Field(gt=1, le=4, allow_inf_nan=False),
    ] = 1.25
    planes: Annotated[
        str,
        "planes to rotate in: auto (those of equal spacing), all, none, or pairs of axes such as "
        "xy,xz",
    ] = "auto"

    def __post_init__(self) -> None:
        options_by_objective = {
            "triplet": ("margin", "distance"),
            "contrastive": ("temperature",),
        }
        for objective, options in options_by_objective.items():
            for option in options:
                default = getattr(Exemplar, option)
                if objective != self.objective and getattr(self, option) != default:
                    raise ValueError(
                        f"{option}: goes with --task.objective {objective}; leave it out, or "
                        "choose that"
                    )

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> Exemplar:
        """Settle the planes: rotating between axes of different spacing would shear the anatomy."""
        if self.planes != "auto":
            read_planes(self.planes, len(crop))
            return self
        return replace(self, planes=plane_names(equal_spacing(*spacings_mm)) or "none")

    @property
    def min_batch(self) -> int:
        """Two: the first triplet of an image is of the batch, even with a bank."""
        return 2

    @property
    def needs_distinct_scans(self) -> bool:
        """Always."""
        return True

    @property
    def pairs_scans(self) -> bool:
        """Where the copy is of another scan of the person."""
        return self.positives == "subject"

    def head(self, encoder: Encoder) -> nn.Module:
        """One projection for all images.

        With one each for images, copies and others, their biases alone could solve the task.
        """
        layers = [nn.Linear(encoder.width, 512), nn.ReLU(), nn.Linear(512, WIDTH)]
        return MemoryHead(self.bank, *layers) if self.bank else nn.Sequential(*layers)

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """A transformed copy of each image, and an image of another scan to compare with.

        Returns:
            `views` (2N, channel, *space): the images, then their copies; `scan` (2N,), the scan
            each is from; `other` (N,): the row of an image of another scan, or any where there is
            none; with a bank also `remembered` (N,): the row of an embedding there.
        """
        return self.make_pair_batch(images, images, rng, scan)

    def make_pair_batch(
        self, images: Tensor, partners: Tensor, rng: torch.Generator, scan: Tensor | None = None
    ) -> Batch:
        """The same, with the copy of each image made from its partner."""
        count = len(images)
        self.check_batch(count)
        # the order of the draws is part of a run's seed
        transformation = self._draw_transformation(partners, rng)
        # the largest of random numbers: an equal chance for each image of another scan
        score = torch.rand(count, count, generator=rng)
        drawn = [*transformation, score]
        if self.bank:
            drawn.append(torch.randint(self.bank, (count,), generator=rng))
        matrices, shifts, factor, shift, score, *remembered = copy_together(images.device, *drawn)
        copies = shift_brightness(
            scale_contrast(resample(partners, matrices, shifts), factor), shift
        )
        if scan is None:
            scan = torch.arange(count, device=images.device)
        # -1 is below every draw
        negative = score.masked_fill(scan[:, None] == scan, -1).argmax(1)
        batch = {"views": torch.cat([images, copies]), "scan": scan.repeat(2), "other": negative}
        if self.bank:
            batch["remembered"] = remembered[0]
        return batch

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """Triplet or contrastive loss; share of triplets in order, and spread of the embeddings.

        An image of a batch that is all of its own scan has no first triplet. With a bank, each
        image has a second one, if the row drawn there is of another scan. It does not replace the
        first: all images in one point that moves would be far from their past.
        """
        unit = F.normalize(head(encoder.embed(batch["views"])).float(), dim=1)
        memory = head if isinstance(head, MemoryHead) else None
        triplets = self._triplets(unit, memory, batch)
        loss = triplets.loss
        if self.objective == "contrastive":
            loss = self._contrastive_loss(unit, memory, batch["scan"])
        metrics = {
            "accuracy": triplets.ordered,
            # 0 where no triplet counts, as the accuracy then is
            "chance": triplets.counted.any().float() / 2,
            "embedding_std": unit.detach().std(0).mean() * math.sqrt(unit.shape[1]),
        }
        if memory is not None and memory.training:
            # only now: the loss compares with embeddings of earlier steps
            memory.remember(unit.chunk(2)[0], batch["scan"].chunk(2)[0])
        return Outcome(loss, metrics)

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, its copy, and the image that it is compared with."""
        copies = batch["views"].chunk(2)[1]
        compared = images[batch["other"]]
        near = "near: the same person" if self.pairs_scans else "near: its copy"
        return [
            [
                Panel("scan", image),
                Panel(near, copy),
                Panel("far: another scan", negative),
            ]
            for image, copy, negative in zip(images, copies, compared, strict=True)
        ]

    def _triplets(self, unit: Tensor, memory: MemoryHead | None, batch: Batch) -> _Triplets:
        """Each image with its copy and another of the batch; with a bank, then one of the bank."""
        anchor, positive = unit.chunk(2)
        scan = batch["scan"].chunk(2)[0]
        negative = anchor[batch["other"]]
        counted = scan[batch["other"]] != scan
        if memory is not None:
            rows = batch["remembered"]
            negative = torch.cat([negative, memory.bank[rows]])
            remembered_scan = memory.scan[rows]
            counted = torch.cat([counted, (remembered_scan != scan) & (remembered_scan != NO_SCAN)])
            anchor = anchor.repeat(2, 1)
            positive = positive.repeat(2, 1)
        loss, ordered = triplet_loss(
            anchor,
            positive,
            negative,
            self.margin,
            squared=self.distance == "squared",
            counted=counted,
        )
        return _Triplets(loss, ordered, counted)

    def _contrastive_loss(self, unit: Tensor, memory: MemoryHead | None, scan: Tensor) -> Tensor:
        if memory is None:
            return nt_xent(unit, self.temperature, scan).loss
        return nt_xent(unit, self.temperature, scan, memory.bank, memory.scan).loss

    def _draw_transformation(
        self, x: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each image flipped along an axis or not, rotated about one, zoomed, brighter or darker.

        What comes into view from beyond the edges is mirrored.

        Returns:
            Matrices and shifts for `resample`, the factor of the contrast, and the shift of the
            brightness; on the CPU.
        """
        count = len(x)
        d = x.ndim - 2
        planes = read_planes(self.planes.replace("auto", "all"), d)

        def uniform(low: float, high: float, columns: int = 1) -> Tensor:
            return torch.empty(count, columns).uniform_(low, high, generator=rng)

        flips = _choose_column(count, d, rng) & (uniform(0, 1) < 0.5)
        angles = torch.deg2rad(uniform(-self.angle, self.angle))
        angles = angles * _choose_column(count, len(planes), rng)
        # uniform in the logarithm: magnified as often as reduced
        scale = torch.exp(uniform(-1, 1) * math.log(self.zoom))
        position = uniform(-1, 1, d)
        matrices, shifts = view_maps(x.shape[2:], angles, planes, flips, scale, position)
        factor = uniform(0.6, 1.4)[:, 0]
        return matrices, shifts, factor, uniform(-0.3, 0.3)[:, 0]


class _Triplets(NamedTuple):
    loss: Tensor
    ordered: Tensor  # share of those counted with the positive nearer than the negative
    counted: Tensor  # booleans


class MemoryHead(nn.Sequential):
    """A head with a bank of its latest embeddings, the oldest overwritten first (Wang et al. 2020).

    The bank, and the scan that each row is from, are saved with the head. It starts as random
    points of the unit sphere, of no scan, so it is never empty.
    """

    bank: Tensor
    scan: Tensor
    oldest: Tensor

    def __init__(self, size: int, *layers: nn.Module):
        super().__init__(*layers)
        # buffers: saved with a checkpoint, and not trained
        self.register_buffer("bank", F.normalize(torch.randn(size, WIDTH), dim=1))
        self.register_buffer("scan", torch.full((size,), NO_SCAN))
        self.register_buffer("oldest", torch.tensor(0))

    def remember(self, embedded: Tensor, scan: Tensor) -> None:
        """Put the embeddings (N, WIDTH) of scans (N,), those of all devices, into the bank.

        Of more than fit, the last are kept.
        """
        size = len(self.bank)
        embedded = gather_embeddings(embedded)
        rows = (self.oldest + torch.arange(len(embedded), device=embedded.device)) % size
        # a row twice among the indices would be written in no fixed order
        self.bank[rows[-size:]] = embedded[-size:]
        self.scan[rows[-size:]] = gather_embeddings(scan)[-size:]
        self.oldest.copy_((self.oldest + len(embedded)) % size)


def _choose_column(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """(rows, columns) booleans: one true in each row, drawn at random."""
    chosen = torch.zeros(rows, columns, dtype=torch.bool)
    if not columns:
        return chosen
    return chosen.scatter(1, torch.randint(columns, (rows, 1), generator=rng), True)
