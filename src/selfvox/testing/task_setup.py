"""What the checks of tasks run: a task with options, a small network, images and a batch."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.encoder import Encoder
from selfvox.ops.outcome import Batch
from selfvox.pretext import PretextTask
from selfvox.settings.options import as_dict, options, resolve

CROPS = {2: (32, 48), 3: (32, 40, 32)}  # voxels; of unequal edges, multiples of 8


def configured(task: PretextTask, spatial_dims: int, **changed: Any) -> PretextTask:
    """The task with some options changed, configured for the crops of the checks."""
    return with_options(task, changed).configure(CROPS[spatial_dims], (1.0,) * spatial_dims)


def with_options(task: PretextTask, changed: Mapping[str, Any]) -> PretextTask:
    """The task with some options changed, and all checked as on the command line."""
    return resolve(type(task), {**as_dict(task), **changed}, prefix="task.")


def make_network(
    task: PretextTask, spatial_dims: int, channels: int = 1
) -> tuple[Encoder, nn.Module]:
    """A small encoder for a task, and the task's head, always with the same weights."""
    torch.manual_seed(0)
    spacing_mm = (1.0,) * spatial_dims
    # small, so that all checks take seconds
    network = {"channels": [4, 8, 16], "blocks": 1}
    spec = plan_encoder(network, CROPS[spatial_dims], spacing_mm)
    encoder = build_encoder(spec, spatial_dims, channels)
    return encoder, task.head(encoder)


def make_images(spatial_dims: int, count: int = 4, channels: int = 1, seed: int = 0) -> Tensor:
    """Noise images (count, channels, *crop)."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, *CROPS[spatial_dims], generator=rng)


def make_batch(task: PretextTask, images: Tensor, seed: int = 0) -> Batch:
    """The task's question about the images, drawn from a seed."""
    return task.make_batch(images, torch.Generator().manual_seed(seed))


def changed_options(task: PretextTask) -> Iterator[dict[str, Any]]:
    """Each option of the task, changed: numbers up and down, every choice, yes and no."""
    values = as_dict(task)
    for option in options(type(task)):
        value = values[option.name]
        choices = [choice for kind in option.kinds for choice in typing.get_args(kind)]
        if isinstance(value, bool):
            yield {option.name: not value}
        elif isinstance(value, int):
            yield from ({option.name: number} for number in (value + 1, value // 2) if number)
        elif isinstance(value, float):
            numbers = (0.5 * value, 2 * value) if value else (1.0,)
            yield from ({option.name: number} for number in numbers)
        elif isinstance(value, str) and all(isinstance(choice, str) for choice in choices):
            yield from ({option.name: choice} for choice in choices if choice != value)
