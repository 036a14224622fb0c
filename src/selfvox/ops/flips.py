"""Mirror images of a scan: their axes by name, and the mean prediction over all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from selfvox.settings.verbs import MIRRORS

VOLUME = MIRRORS  # prepared volumes are oriented so: x, y, z
PICTURE = ("up-down", "left-right")  # rows, columns


def named_axes(names: Sequence[str], spatial_dims: int) -> tuple[int, ...]:
    """The axes of a prepared scan that have these names."""
    order = VOLUME if spatial_dims == 3 else PICTURE
    return tuple(axis for axis, name in enumerate(order) if name in names)


def flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All sets of axes to mirror: 2 to the power of their number, that of no axis first."""
    sizes = range(len(axes) + 1)
    return [chosen for size in sizes for chosen in itertools.combinations(axes, size)]


def flip(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Mirror (channel, *space) along axes of space."""
    return x.flip([1 + axis for axis in axes])


def mean_over_flips(
    predict: Callable[[Tensor], Tensor], image: Tensor, axes: Sequence[int]
) -> Tensor:
    """Mean of the predictions of all mirror images, each mirrored back.

    Args:
        predict: (channel, *space) -> (class, *space).
        image: (channel, *space).
        axes: of space.
    """
    total = predict(image)
    # the first set mirrors nothing
    mirrored = flips(axes)[1:]
    for chosen in mirrored:
        # in place: these are the largest arrays of a prediction
        total += flip(predict(flip(image, chosen)), chosen)
    return total.div_(1 + len(mirrored)) if mirrored else total


def mean_of_classes(
    predict: Callable[[Tensor], Tensor], image: Tensor, axes: Sequence[int]
) -> Tensor:
    """Mean of what is predicted of a whole image and its mirror images.

    Args:
        predict: (1, channel, *space) -> (1, class).
        image: (1, channel, *space).
        axes: of space.
    """
    return torch.stack([predict(flip(image[0], chosen)[None]) for chosen in flips(axes)]).mean(0)
