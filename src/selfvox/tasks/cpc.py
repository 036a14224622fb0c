"""CPC: which patch follows some layers further on?

van den Oord et al. 2018; in 3D: paper A, section 3.1.
"""

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
from selfvox.models.answer_head import answer_layer
from selfvox.models.encoder import Encoder
from selfvox.ops.gather import gather_rows, mean_over_processes, process_rank
from selfvox.ops.outcome import Batch, Outcome
from selfvox.pretext import Panel, PretextTask
from selfvox.settings.verbs import AtLeastOne

WIDTH = 128  # of a patch's latent and of a context
SMALLEST_PATCH = 8  # voxels
SMALLEST_GAP = 2  # voxels


@dataclass(frozen=True, kw_only=True)
class CPC(PretextTask):
    """Pick, among all patches of the image, the one some layers beyond the context.

    The context is a patch and the inverted pyramid above it. Layers are counted along the first
    axis. Patches overlap, but the target is apart from the context, so that no edge continues from
    one to the other.

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
        "what summarises the pyramid: a GRU, farthest layer first, or convolutions down the layers",
    ] = "gru"
    objective: Annotated[
        Literal["infonce", "pairwise"],
        "log-softmax over all candidates, or each candidate right or wrong by itself",
    ] = "infonce"
    negatives: Annotated[
        Literal["image", "batch"],
        "wrong candidates: all other patches of the image, or of the batch of all devices",
    ] = "image"

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> CPC:
        """Refuse a grid without a patch to predict, and crops with too small patches."""
        smallest_grid = self.first + 2
        if self.grid < smallest_grid:
            option = "overlap" if self.overlap else "grid"
            remedy = " or a smaller overlap" if self.overlap else ""
            raise UsageError(
                f"task.{option}: no patch with others above it has one below that shares no voxel "
                f"with it; use --task.grid {smallest_grid} or more{remedy}"
            )
        if min(self.input_size(crop)) < SMALLEST_PATCH:
            remedy = "a smaller grid or " if self.grid > smallest_grid else ""
            raise UsageError(
                f"task.grid: {self.grid} patches along each axis of a crop of "
                f"{' x '.join(map(str, crop))} voxels get fewer than {SMALLEST_PATCH} voxels each; "
                f"use {remedy}a larger --crop"
            )
        return self

    @property
    def first(self) -> int:
        """Layers to the first patches that neither share a voxel with a patch nor touch it."""
        # less a little: 1 / (1 - 0.8) is 5.000000000000001
        return math.ceil(1 / (1 - self.overlap) - 1e-6)

    def stride(self, edge: int) -> int:
        """Voxels from a patch of this edge to the next, with a gap to the patch `first` further on.

        The gap is a twelfth of a patch, or `SMALLEST_GAP`.
        """
        gap = max(SMALLEST_GAP, edge // 12)
        by_overlap = math.ceil(edge * (1 - self.overlap) - 1e-6)
        by_gap = math.ceil((edge + gap) / self.first)
        return max(by_overlap, by_gap)

    def extent(self, edge: int) -> int:
        """Voxels that a row of patches of this edge covers."""
        return edge + (self.grid - 1) * self.stride(edge)

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Edges of a patch: the largest that fit, multiples of 4."""
        return tuple(
            next((edge for edge in range(size // 4 * 4, 0, -4) if self.extent(edge) <= size), 0)
            for size in crop
        )

    def head(self, encoder: Encoder) -> nn.Module:
        """The context network and the linear maps to the patches ahead."""
        return Predictor(self, encoder)

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Cut each image into overlapping patches, from one random corner on.

        Returns:
            `patches` (batch * grid**d, channel, *patch), the last axis counting fastest, `corner`
            (d,) in voxels, and with negatives of the batch `scan` (batch,), the scan each image is
            from.
        """
        d = images.ndim - 2
        patch = self.input_size(images.shape[2:])
        # one corner for the batch: the patches of all images are one view
        covered = torch.tensor([self.extent(edge) for edge in patch])
        room = torch.tensor(images.shape[2:]) - covered
        corner = (torch.rand(d, generator=rng) * (room + 1)).long()
        patches = images
        for axis, (edge, start) in enumerate(zip(patch, corner.tolist(), strict=True), start=2):
            patches = patches.narrow(axis, start, self.extent(edge))
            patches = patches.unfold(axis, edge, self.stride(edge))
        # (batch, channel, *grid, *patch) -> (batch * position, channel, *patch)
        patches = patches.movedim(1, 1 + d).flatten(0, d)
        batch = {"patches": patches, "corner": corner.to(images.device)}
        if self.negatives == "batch":
            batch["scan"] = torch.arange(len(images), device=images.device)
            if scan is not None:
                batch["scan"] = scan
        return batch

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """InfoNCE, or cross-entropy of each pair; accuracy of the most likely candidate."""
        latents, predictions, target = head(encoder.embed(batch["patches"]))
        # autocast would round the scores to 8 bits
        with torch.autocast(latents.device.type, enabled=False):
            if self.negatives == "image":
                score, answer = _scores_within_images(latents, predictions, target)
            else:
                score, answer = _scores_within_batch(latents, predictions, target, batch["scan"])
        accuracy = (score.argmax(1) == answer).float().mean()
        candidates = (score > float("-inf")).sum(1).float()
        metrics = {"accuracy": accuracy, "chance": candidates.reciprocal().mean()}
        if self.objective != "infonce":
            return Outcome(pairwise_loss(score, answer), metrics)
        metrics["loss_chance"] = candidates.log().mean()
        return Outcome(F.cross_entropy(score, answer), metrics)

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, a context in it (a patch and its pyramid), and the targets further on."""
        d = images.ndim - 2
        patches_per_layer = self.grid ** (d - 1)
        layer = self.grid - 1 - self.first
        middle = _position([self.grid // 2] * (d - 1), self.grid)
        context = pyramid(self.grid, d, layer)[middle]
        steps = self.ahead(layer)
        targets = [(layer + step) * patches_per_layer + middle for step in steps]
        corner = batch["corner"].tolist()
        dark = images.amin(tuple(range(1, images.ndim)), keepdim=True)
        context_images = torch.lerp(dark, images, self._spotlight(context, images, corner))
        target_images = torch.lerp(dark, images, self._spotlight(targets, images, corner))
        steps_text = " and ".join(str(step) for step in steps)
        return [
            [
                Panel("scan", image),
                Panel("context: a patch and those above", context_image),
                Panel(f"target: {steps_text} layers on", target_image),
            ]
            for image, context_image, target_image in zip(
                images, context_images, target_images, strict=True
            )
        ]

    def ahead(self, layer: int) -> range:
        """The steps from this layer to those that are predicted from it."""
        return range(self.first, min(self.first + self.steps, self.grid - layer))

    def _spotlight(self, positions: Sequence[int], images: Tensor, corner: Sequence[int]) -> Tensor:
        """(*space), 1 in these patches and a quarter elsewhere."""
        patch = self.input_size(images.shape[2:])
        light = torch.full(images.shape[2:], 0.25, device=images.device)
        for position in positions:
            window = []
            for axis, edge in enumerate(patch):
                index = position // self.grid ** (len(patch) - 1 - axis) % self.grid
                start = corner[axis] + index * self.stride(edge)
                window.append(slice(start, start + edge))
            light[tuple(window)] = 1
        return light


class Predictor(nn.Module):
    """Latents of all patches, a context for each anchor, and predictions of the patches ahead."""

    targets: Tensor
    anchors: Tensor
    steps: Tensor

    def __init__(self, task: CPC, encoder: Encoder):
        super().__init__()
        d = encoder.spatial_dims
        patches_per_layer = task.grid ** (d - 1)
        layers = task.grid - task.first  # those with a patch to predict
        self.latent = nn.Linear(encoder.width, WIDTH)
        context = PyramidGRU if task.context == "gru" else PyramidConv
        self.context = context(task.grid, d, layers)
        # small weights: an untrained network finds every candidate equally likely
        self.ahead = answer_layer(WIDTH, len(task.ahead(0)) * WIDTH)
        terms = [
            (anchor, step)
            for anchor in range(layers * patches_per_layer)
            for step in task.ahead(anchor // patches_per_layer)
        ]
        self.register_buffer("anchors", torch.tensor([anchor for anchor, _ in terms]))
        self.register_buffer("steps", torch.tensor([step - task.first for _, step in terms]))
        targets = [anchor + step * patches_per_layer for anchor, step in terms]
        self.register_buffer("targets", torch.tensor(targets))
        self.positions = task.grid**d

    def forward(self, embedded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch * position, width) -> latents, predictions and targets, in float32.

        Returns:
            Latents (batch, position, WIDTH), predictions (batch, term, WIDTH), and the position of
            each term's right patch (term,).
        """
        latents = self.latent(embedded).view(-1, self.positions, WIDTH)
        context = self.context(latents)
        by_step = self.ahead(context).view(*context.shape[:2], -1, WIDTH)
        predictions = by_step[:, self.anchors, self.steps]
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
    """Convolutions of each patch and of its neighbours in the layer above; stacked, the pyramid."""

    def __init__(self, grid: int, spatial_dims: int, layers: int):
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.own = nn.ModuleList(conv(WIDTH, WIDTH, 1) for _ in range(layers - 1))
        self.above = nn.ModuleList(
            _convolution_within_layer(spatial_dims) for _ in range(layers - 1)
        )
        self.shape = (grid,) * spatial_dims
        self.layers = layers

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, position, WIDTH) -> (batch, anchor, WIDTH)."""
        x = latents.transpose(1, 2).reshape(len(latents), WIDTH, *self.shape)[:, :, : self.layers]
        for convolve, convolve_above in zip(self.own, self.above, strict=True):
            from_above = convolve_above(x[:, :, :-1])
            # the first layer has none above it
            from_above = torch.cat([torch.zeros_like(from_above[:, :, :1]), from_above], 2)
            x = F.relu(convolve(x) + from_above)
        return x.flatten(2).transpose(1, 2)


def _convolution_within_layer(spatial_dims: int) -> nn.Module:
    """Over the nearest neighbours on all axes but the first; the grid is mirrored at its edges."""
    if spatial_dims == 3:
        return nn.Conv3d(WIDTH, WIDTH, (1, 3, 3), padding=(0, 1, 1), padding_mode="reflect")
    return nn.Conv2d(WIDTH, WIDTH, (1, 3), padding=(0, 1), padding_mode="reflect")


def pyramid(grid: int, spatial_dims: int, layer: int) -> list[list[int]]:
    """The inverted pyramid of each patch of a layer, as positions.

    In the layer `m` above, all patches within `m` steps on the other axes; beyond the grid, they
    are mirrored. The farthest layer is first, the patch itself last.
    """
    pyramids = []
    for centre in itertools.product(range(grid), repeat=spatial_dims - 1):
        positions = []
        for above in range(layer, -1, -1):
            reach = range(-above, above + 1)
            near = [[_mirrored(index + step, grid) for step in reach] for index in centre]
            indices = itertools.product([layer - above], *near)
            positions += [_position(index, grid) for index in indices]
        pyramids.append(positions)
    return pyramids


def pairwise_loss(score: Tensor, answer: Tensor) -> Tensor:
    """Binary cross-entropy of pairs; the right ones weigh as much as all wrong ones.

    Args:
        score: (term, candidate); -inf where there is no candidate.
        answer: (term,) the right candidate.
    """
    of_right = F.softplus(-score.gather(1, answer[:, None])).mean()
    # no choice of elements by a mask, which would wait for the device; softplus of -inf is 0
    of_wrong = F.softplus(score).scatter(1, answer[:, None], 0.0).sum()
    wrong = (score > float("-inf")).sum() - len(score)
    # one mean each: a hundred wrong candidates must not outweigh the right one
    return (of_right + of_wrong / mean_over_processes(wrong)) / 2


def _scores_within_images(
    latents: Tensor, predictions: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores (batch * term, position) of the patches of each image, and the right ones."""
    score = predictions @ latents.transpose(1, 2)
    return score.flatten(0, 1), target.repeat(len(latents))


def _scores_within_batch(
    latents: Tensor, predictions: Tensor, target: Tensor, scan: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores (batch * term, candidate) of the patches of all images, and the right ones.

    Candidates are the patches of the images of all devices, by rank.
    """
    images, positions = latents.shape[:2]
    score = predictions @ gather_rows(latents).flatten(0, 1).T
    number = process_rank() * images + torch.arange(images, device=target.device)
    answer = (positions * number[:, None] + target).flatten()
    # the same position of the same scan, in the batch twice, would be a wrong candidate
    same_scan = scan[:, None] == gather_rows(scan)
    same_scan = same_scan.scatter(1, number[:, None], False)
    ignored = same_scan.repeat_interleave(positions, 1)[:, None]
    return score.masked_fill(ignored, float("-inf")).flatten(0, 1), answer


def _position(index: Sequence[int], grid: int) -> int:
    """A patch's position in the order of `make_batch`, from its index along each axis."""
    return sum(i * grid**axis for axis, i in enumerate(reversed(index)))


def _mirrored(index: int, size: int) -> int:
    """-1 -> 1, and `size` -> `size - 2`: the edge is not repeated."""
    index = abs(index) % (2 * size - 2)
    return min(index, 2 * size - 2 - index)
