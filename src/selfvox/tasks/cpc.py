"""CPC: which patch comes further on, after what was seen? (van den Oord et al. 2018; paper A, section 3.1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfvox.errors import UsageError
from selfvox.models.encoder import Encoder
from selfvox.ops.outcome import Batch, Outcome
from selfvox.pretext import Panel, PretextTask
from selfvox.settings.verbs import AtLeastOne

WIDTH = 128  # of a patch's latent and of a context
SMALLEST_PATCH = 8  # voxels
SMALLEST_GAP = 2  # voxels


@dataclass(frozen=True, kw_only=True)
class CPC(PretextTask):
    """Pick, among all patches of the image, the one that lies some layers beyond what was seen.

    Seen are a patch and the inverted pyramid above it. Layers are counted along the first axis. Patches overlap, but
    what is asked for lies apart from what was seen, so that no edge goes on from one to the other.

    Good for texture and local anatomy, and for scans with unequal spacings; costs the most.
    """

    grid: Annotated[int, "patches along each axis", pydantic.Field(ge=2)] = 4
    overlap: Annotated[
        float,
        "largest share of a patch's edge that it has in common with the next",
        pydantic.Field(ge=0, lt=1),
    ] = 0.5
    steps: Annotated[int, "layers to predict, where the grid has as many", AtLeastOne] = 2
    context: Annotated[
        Literal["gru", "conv"],
        "what sums up the pyramid: a GRU, farthest layer first, or convolutions down the layers",
    ] = "gru"
    objective: Annotated[
        Literal["infonce", "pairwise"],
        "log-softmax over all candidates, or each candidate right or wrong by itself",
    ] = "infonce"
    negatives: Annotated[
        Literal["image", "batch"],
        "wrong candidates: all other patches of the image, or of the whole batch",
    ] = "image"

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> CPC:
        """This task, if such a crop holds the grid, and the grid a patch to predict from a pyramid."""
        least = self.first + 2
        if self.grid < least:
            name, remedy = ("overlap", " or a smaller overlap") if self.overlap else ("grid", "")
            raise UsageError(
                f"task.{name}: no patch with others above it has one below that shares no voxel with it; use "
                f"--task.grid {least} or more{remedy}"
            )
        if min(self.input_size(crop)) < SMALLEST_PATCH:
            remedy = "a smaller grid or " if self.grid > least else ""
            raise UsageError(
                f"task.grid: {self.grid} patches along each axis of a crop of {' x '.join(map(str, crop))} voxels get "
                f"fewer than {SMALLEST_PATCH} voxels each; use {remedy}a larger --crop"
            )
        return self

    @property
    def first(self) -> int:
        """How many layers on lie the first patches that share no voxel with a patch, nor touch it."""
        return math.ceil(1 / (1 - self.overlap) - 1e-6)

    def stride(self, edge: int) -> int:
        """Voxels from a patch of this edge to the next; `first` patches on, a gap of a twelfth of a patch is left."""
        gap = max(SMALLEST_GAP, edge // 12)
        return max(
            math.ceil(edge * (1 - self.overlap) - 1e-6), math.ceil((edge + gap) / self.first)
        )

    def extent(self, edge: int) -> int:
        """Voxels that a row of patches of this edge covers."""
        return edge + (self.grid - 1) * self.stride(edge)

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Edges of a patch: the largest that fit, multiples of 4."""
        return tuple(
            next((edge for edge in range(size // 4 * 4, 0, -4) if self.extent(edge) <= size), 0)
            for size in crop
        )

    def head(self, encoder: Encoder) -> nn.Module:  # noqa: D102
        return Predictor(self, encoder)

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Cut each image into overlapping patches, from one random corner on.

        Returns:
            `patches` (batch * grid**d, channel, *patch), the last axis counting fastest, `corner` (d,) in voxels, and
            with negatives of the batch `scan` (batch,), the scan each image is from.
        """
        d, patch = images.ndim - 2, self.input_size(images.shape[2:])
        room = torch.tensor(images.shape[2:]) - torch.tensor([self.extent(edge) for edge in patch])
        corner = (torch.rand(d, generator=rng) * (room + 1)).long()
        cut = images
        for axis, (edge, start) in enumerate(zip(patch, corner.tolist(), strict=True), start=2):
            cut = cut.narrow(axis, start, self.extent(edge)).unfold(axis, edge, self.stride(edge))
        # unfolded: (batch, channel, *grid, *patch)
        batch = {"patches": cut.movedim(1, 1 + d).flatten(0, d), "corner": corner.to(images.device)}
        if self.negatives == "batch":
            batch["scan"] = (
                torch.arange(len(images), device=images.device) if scan is None else scan
            )
        return batch

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """InfoNCE, or cross-entropy of each pair by itself; accuracy of the most likely candidate."""
        latents, predictions, target = head(encoder.embed(batch["patches"]))
        images, positions = latents.shape[:2]
        # autocast would round the scores to 8 bits
        with torch.autocast(latents.device.type, enabled=False):
            if self.negatives == "image":
                score = predictions @ latents.transpose(1, 2)
                answer = target.repeat(images)
            else:
                score = predictions @ latents.flatten(0, 1).T
                answer = (
                    positions * torch.arange(images, device=target.device)[:, None] + target
                ).flatten()
                # the same place of the same scan, seen twice, would be a wrong candidate
                again = (batch["scan"][:, None] == batch["scan"]).fill_diagonal_(False)
                score = score.masked_fill(
                    again.repeat_interleave(positions, 1)[:, None], float("-inf")
                )
        score = score.flatten(0, 1)
        accuracy = (score.argmax(1) == answer).float().mean()
        chance = (score > float("-inf")).sum(1).float().reciprocal().mean()
        loss = (
            F.cross_entropy(score, answer)
            if self.objective == "infonce"
            else pairwise(score, answer)
        )
        return Outcome(loss, {"accuracy": accuracy, "chance": chance})

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, what one of its patches knows of it (itself and the pyramid above), and what lies farther on."""
        d = images.ndim - 2
        row, layer = self.grid ** (d - 1), self.grid - 1 - self.first
        middle = _number([self.grid // 2] * (d - 1), self.grid)
        seen = pyramid(self.grid, d, layer)[middle]
        asked = [(layer + step) * row + middle for step in self.ahead(layer)]
        context, targets = (
            self._spot(places, images, batch["corner"].tolist()) for places in (seen, asked)
        )
        dark = images.amin(tuple(range(1, images.ndim)), keepdim=True)
        words = " and ".join(str(step) for step in self.ahead(layer))
        return [
            [
                Panel("scan", image),
                Panel("seen: a patch and those above", before),
                Panel(f"asked: {words} layers on", after),
            ]
            for image, before, after in zip(
                images,
                torch.lerp(dark, images, context),
                torch.lerp(dark, images, targets),
                strict=True,
            )
        ]

    def ahead(self, layer: int) -> range:
        """The steps from this layer to those that are predicted from it."""
        return range(self.first, min(self.first + self.steps, self.grid - layer))

    def _spot(self, places: Sequence[int], images: Tensor, corner: Sequence[int]) -> Tensor:
        """(*space), 1 in these patches and little elsewhere."""
        light, patch = (
            torch.full(images.shape[2:], 0.25, device=images.device),
            self.input_size(images.shape[2:]),
        )
        for place in places:
            index = [place // self.grid**axis % self.grid for axis in reversed(range(len(patch)))]
            starts = [
                at + i * self.stride(edge) for at, i, edge in zip(corner, index, patch, strict=True)
            ]
            light[
                tuple(slice(start, start + edge) for start, edge in zip(starts, patch, strict=True))
            ] = 1
        return light


class Predictor(nn.Module):
    """Latents of all patches, a context for each anchor, and from it one linear map per step ahead."""

    targets: Tensor
    anchors: Tensor
    steps: Tensor

    def __init__(self, task: CPC, encoder: Encoder):
        super().__init__()
        d, grid = encoder.spatial_dims, task.grid
        row, layers = grid ** (d - 1), grid - task.first
        self.latent = nn.Linear(encoder.width, WIDTH)
        self.context = (PyramidGRU if task.context == "gru" else PyramidConv)(grid, d, layers)
        # small weights: an untrained network finds every candidate equally likely
        self.ahead = nn.Linear(WIDTH, len(task.ahead(0)) * WIDTH)
        nn.init.normal_(self.ahead.weight, std=1e-3)
        nn.init.zeros_(self.ahead.bias)
        terms = [
            (anchor, step) for anchor in range(layers * row) for step in task.ahead(anchor // row)
        ]
        self.register_buffer("anchors", torch.tensor([anchor for anchor, _ in terms]))
        self.register_buffer("steps", torch.tensor([step - task.first for _, step in terms]))
        self.register_buffer(
            "targets", torch.tensor([anchor + step * row for anchor, step in terms])
        )
        self.positions = grid**d

    def forward(self, embedded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch * position, width) -> latents, predictions (batch, term, WIDTH), and each term's right position."""
        latents = self.latent(embedded).view(-1, self.positions, WIDTH)
        context = self.context(latents)
        predictions = self.ahead(context).view(*context.shape[:2], -1, WIDTH)[
            :, self.anchors, self.steps
        ]
        return latents.float(), predictions.float(), self.targets


class PyramidGRU(nn.Module):
    """A GRU over each anchor's pyramid, farthest layer first, the anchor itself last (paper A)."""

    def __init__(self, grid: int, spatial_dims: int, layers: int):
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.layers = layers
        for layer in range(layers):
            self.register_buffer(
                f"pyramid{layer}", torch.tensor(pyramid(grid, spatial_dims, layer))
            )

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, position, WIDTH) -> (batch, anchor, WIDTH)."""
        contexts = []
        for layer in range(self.layers):  # the pyramids of a layer are of one length
            sequences = latents[:, self.get_buffer(f"pyramid{layer}")]
            last = self.gru(sequences.flatten(0, 1))[1][0]
            contexts.append(last.view(*sequences.shape[:2], WIDTH))
        return torch.cat(contexts, 1)


class PyramidConv(nn.Module):
    """Convolutions that see a patch itself and, of the layer above, its neighbours too: stacked, the pyramid."""

    def __init__(self, grid: int, spatial_dims: int, layers: int):
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d

        def across() -> nn.Module:
            if spatial_dims == 3:
                return nn.Conv3d(WIDTH, WIDTH, (1, 3, 3), padding=(0, 1, 1), padding_mode="reflect")
            return nn.Conv2d(WIDTH, WIDTH, (1, 3), padding=(0, 1), padding_mode="reflect")

        self.own = nn.ModuleList(conv(WIDTH, WIDTH, 1) for _ in range(layers - 1))
        self.above = nn.ModuleList(across() for _ in range(layers - 1))
        self.shape, self.layers = (grid,) * spatial_dims, layers

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, position, WIDTH) -> (batch, anchor, WIDTH)."""
        x = latents.transpose(1, 2).reshape(len(latents), WIDTH, *self.shape)[:, :, : self.layers]
        for own, above in zip(self.own, self.above, strict=True):
            higher = above(x[:, :, :-1])
            # nothing lies above the first layer
            x = F.relu(own(x) + torch.cat([torch.zeros_like(higher[:, :, :1]), higher], 2))
        return x.flatten(2).transpose(1, 2)


def pyramid(grid: int, spatial_dims: int, layer: int) -> list[list[int]]:
    """The inverted pyramid of each patch of a layer: positions from the farthest layer on, the patch itself last.

    In the layer `m` above, all patches within `m` steps on the other axes; beyond the grid, they are mirrored.
    """
    found = []
    for centre in itertools.product(range(grid), repeat=spatial_dims - 1):
        places = []
        for above in range(layer, -1, -1):
            near = [[_mirrored(at + by, grid) for by in range(-above, above + 1)] for at in centre]
            places += [_number(index, grid) for index in itertools.product([layer - above], *near)]
        found.append(places)
    return found


def pairwise(score: Tensor, answer: Tensor) -> Tensor:
    """Binary cross-entropy of right and wrong pairs, the right ones weighing as much as all wrong ones.

    Args:
        score: (term, candidate); -inf is no candidate.
        answer: (term,) the right candidate.
    """
    right = F.one_hot(answer, score.shape[1]).bool()
    wrong = ~right & (score > float("-inf"))
    return (F.softplus(-score[right]).mean() + F.softplus(score[wrong]).mean()) / 2


def _number(index: Sequence[int], grid: int) -> int:
    """A patch's position in the order of `make_batch`."""
    return sum(i * grid**axis for axis, i in enumerate(reversed(index)))


def _mirrored(index: int, size: int) -> int:
    """-1 -> 1, and `size` -> `size - 2`: the edge is not repeated."""
    index = abs(index) % (2 * size - 2)
    return min(index, 2 * size - 2 - index)
