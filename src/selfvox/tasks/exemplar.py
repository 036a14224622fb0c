"""Exemplar: which is the same image, transformed, and which is another? (Dosovitskiy et al. 2014; paper A, 3.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

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
from selfvox.pretext import Panel, PretextTask
from selfvox.settings.verbs import NotNegative, Positive

WIDTH = 128  # of an embedding
NOBODY = -1  # the number of no scan


@dataclass(frozen=True, kw_only=True)
class Exemplar(PretextTask):
    """Place each image nearer to a transformed copy of itself than to another image of the batch, by a margin.

    The copy is turned, flipped and zoomed in one resampling, then changed in brightness and contrast.

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
    bank: Annotated[
        int,
        "embeddings of earlier images of the data set to tell each image from too; 0: only the batch",
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
        "planes to rotate in: auto (those of equal spacing), all, none, or pairs of axes such as xy,xz",
    ] = "auto"

    def __post_init__(self) -> None:
        of = {"margin": "triplet", "distance": "triplet", "temperature": "contrastive"}
        for name, objective in of.items():
            if self.objective != objective and getattr(self, name) != getattr(
                Exemplar, name
            ):  # the default
                raise ValueError(
                    f"{name}: goes with --task.objective {objective}; leave it out, or choose that"
                )

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> Exemplar:
        """Settle the planes: rotating between axes of different spacing would shear the anatomy."""
        if self.planes != "auto":
            read_planes(self.planes, len(crop))
            return self
        return replace(self, planes=plane_names(equal_spacing(*spacings_mm)) or "none")

    @property
    def min_batch(self) -> int:
        """One image has no other, not even where earlier ones are remembered: the first triplet is of the batch."""
        return 2

    @property
    def needs_distinct_scans(self) -> bool:
        """Always."""
        return True

    def head(self, encoder: Encoder) -> nn.Module:
        """One projection for all three: with one for each, their biases alone could solve the task."""
        layers = nn.Linear(encoder.width, 512), nn.ReLU(), nn.Linear(512, WIDTH)
        return Remembering(self.bank, *layers) if self.bank else nn.Sequential(*layers)

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """A transformed copy of each image, and an image of another scan beside it.

        Returns:
            `views` (2N, channel, *space): the images, then their copies; `scan` (2N,), the scan each is from; `other`
            (N,): the row of an image of another scan, or any where there is none; with a bank also `remembered` (N,):
            the row of an embedding there.
        """
        self.check_batch(count := len(images))
        copies = self._transform(images, rng)
        scan = torch.arange(count, device=images.device) if scan is None else scan
        drawn = torch.rand(count, count, generator=rng).to(images.device)
        other = drawn.masked_fill(scan[:, None] == scan, -1).argmax(1)
        batch = {"views": torch.cat([images, copies]), "scan": scan.repeat(2), "other": other}
        if self.bank:
            batch["remembered"] = torch.randint(self.bank, (count,), generator=rng).to(
                images.device
            )
        return batch

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """Triplet or contrastive loss; share of triplets in order, and the spread of the embeddings.

        An image whose whole batch is of its own scan has no first triplet. With a bank, each image has a second one,
        whose other image is from the bank, if it is of another scan. It does not take the place of the first: all
        images in one spot that moves on would be far from their past.
        """
        unit = F.normalize(head(encoder.embed(batch["views"])).float(), dim=1)
        anchor, positive = unit.chunk(2)
        past = head if isinstance(head, Remembering) else None
        scan = batch["scan"].chunk(2)[0]
        other, counted = anchor[batch["other"]], scan[batch["other"]] != scan
        if past is not None:
            of = past.scan[batch["remembered"]]
            other = torch.cat([other, past.bank[batch["remembered"]]])
            counted = torch.cat([counted, (of != scan) & (of != NOBODY)])
        anchors, positives = (
            each.repeat(len(other) // len(anchor), 1) for each in (anchor, positive)
        )
        found = triplet_loss(
            anchors,
            positives,
            other,
            self.margin,
            squared=self.distance == "squared",
            counted=counted,
        )
        if self.objective == "triplet":
            loss = found.loss
        else:
            remembered = () if past is None else (past.bank, past.scan)
            loss = nt_xent(unit, self.temperature, batch["scan"], *remembered).loss
        metrics = {
            "accuracy": found.ordered,
            "chance": counted.any().float() / 2,
            "embedding_std": unit.detach().std(0).mean() * math.sqrt(unit.shape[1]),
        }
        if past is not None and past.training:
            past.remember(anchor, scan)
        return Outcome(loss, metrics)

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, its copy, and the image that it must be told from."""
        copies = batch["views"].chunk(2)[1]
        return [
            [
                Panel("scan", image),
                Panel("near: its copy", copy),
                Panel("far: another scan", images[other]),
            ]
            for image, copy, other in zip(images, copies, batch["other"].tolist(), strict=True)
        ]

    def _transform(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Each image flipped along an axis or not, turned about one, zoomed, brighter or darker; nothing filled in."""
        count, d = len(x), x.ndim - 2
        planes = read_planes(self.planes.replace("auto", "all"), d)

        def uniform(low: float, high: float, columns: int = 1) -> Tensor:
            return torch.empty(count, columns).uniform_(low, high, generator=rng)

        flips = _one_of(count, d, rng) & (uniform(0, 1) < 0.5)
        angles = torch.deg2rad(uniform(-self.angle, self.angle)) * _one_of(count, len(planes), rng)
        scale = torch.exp(uniform(-1, 1) * math.log(self.zoom))
        x = resample(x, *view_maps(x.shape[2:], angles, planes, flips, scale, uniform(-1, 1, d)))
        return shift_brightness(
            scale_contrast(x, uniform(0.6, 1.4)[:, 0]), uniform(-0.3, 0.3)[:, 0]
        )


class Remembering(nn.Sequential):
    """A head with a bank of the embeddings it made last, the oldest overwritten first (Wang et al. 2020).

    The bank, and the scan that each row is from, are saved with the head. It starts as random points of the unit
    sphere, so it is never empty; these are nobody's.
    """

    bank: Tensor
    scan: Tensor
    oldest: Tensor

    def __init__(self, size: int, *layers: nn.Module):
        super().__init__(*layers)
        self.register_buffer("bank", F.normalize(torch.randn(size, WIDTH), dim=1))
        self.register_buffer("scan", torch.full((size,), NOBODY))
        self.register_buffer("oldest", torch.tensor(0))

    def remember(self, embedded: Tensor, scan: Tensor) -> None:
        """Put embeddings (N, WIDTH) of scans (N,), and those of all other devices, into the bank; of many, the last."""
        new, size = gather_embeddings(embedded), len(self.bank)
        rows = (self.oldest + torch.arange(len(new), device=new.device)) % size
        self.bank[rows[-size:]] = new[-size:]
        self.scan[rows[-size:]] = gather_embeddings(scan)[-size:]
        self.oldest.copy_((self.oldest + len(new)) % size)


def _one_of(rows: int, of: int, rng: torch.Generator) -> Tensor:
    """(rows, of) booleans: one drawn at random in each row."""
    chosen = torch.zeros(rows, of, dtype=torch.bool)
    return chosen.scatter(1, torch.randint(of, (rows, 1), generator=rng), True) if of else chosen
