"""Intensity changes of image batches on their device, each sample by its own strength.

`x` is (batch, channel, *space); a strength is (batch,). Nothing here draws random numbers except `add_noise`, whose
generator is passed in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from selfvox.ops import numba_kernels


def brightness(x: Tensor, shift: Tensor) -> Tensor:
    """Add `shift` to every voxel."""
    return x + _per_sample(shift, x)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Stretch every channel about its own mean."""
    mean = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
    return torch.lerp(mean.expand_as(x), x, _per_sample(factor, x))


def standardise(x: Tensor, flat: float = 1e-2) -> Tensor:
    """Give every channel of every sample mean 0 and variance 1.

    `flat` is added to the variance that is divided by: the noise of empty air stays small.
    """
    away, variance = _centred(x)
    return away / (variance + flat).sqrt()


def add_noise(x: Tensor, sigma: Tensor, rng: torch.Generator) -> Tensor:
    """Add Gaussian noise of standard deviation `sigma`; `rng` lies on the CPU, so that every device adds the same.

    One field of twice a sample's size is drawn. Each sample reads it from a place of its own, half of them negated: to
    draw, and to carry to a device, as many numbers as all samples have would hold a training step up.
    """
    size = x[0].numel()
    field = torch.randn(2 * size, generator=rng).to(x.device, x.dtype)
    place = torch.randint(size + 1, (len(x),), generator=rng).to(x.device)
    sign = torch.randint(2, (len(x),), generator=rng) * 2 - 1
    noise = field.unfold(0, size, 1)[place].view_as(x)
    return noise.mul_(_per_sample(sign.to(sigma.device) * sigma, x)).add_(x)


def blur(x: Tensor, sigma: Tensor, radius: int = 2) -> Tensor:
    """Gaussian blur of `sigma` voxels, one axis after the other; edges are mirrored.

    The kernel has `2 * radius + 1` weights that sum to one: right for sigma up to about half the radius.
    """
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-(offsets**2) / (2 * sigma[:, None].clamp(min=1e-3) ** 2))
    weights = weights / weights.sum(1, keepdim=True)
    for axis in range(2, x.ndim):
        x = _correlate(x, weights, axis)
    return x


def sobel(x: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient, each channel scaled to mean 0 and standard deviation 1; flat images give 0."""
    smooth, slope = x.new_tensor([[1.0, 2.0, 1.0]]), x.new_tensor([[-1.0, 0.0, 1.0]])
    squares = torch.zeros_like(x)
    for along in range(2, x.ndim):
        part = x
        for axis in range(2, x.ndim):
            part = _correlate(part, slope if axis == along else smooth, axis)
        squares = squares.addcmul_(part, part)
    away, variance = _centred(squares.sqrt_())
    return away / variance.sqrt().clamp(min=1e-6)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` less the mean of each channel, and its variance, in a third of the time of `torch.var_mean`."""
    space = tuple(range(2, x.ndim))
    away = x - x.mean(space, keepdim=True)
    return away, away.square().mean(space, keepdim=True)


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.device, x.dtype).view(-1, *(1,) * (x.ndim - 1))


def _correlate(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Correlate one axis with a short kernel per sample (or one for all) mirrored at the edges."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad:
        return numba_kernels.correlate(x, weights.expand(len(x), -1), axis)
    radius, size = weights.shape[1] // 2, x.shape[axis]
    pad = [0, 0] * (x.ndim - 1 - axis) + [radius, radius]
    padded = F.pad(
        x.flatten(0, 1)[:, None], pad + [0] * (2 * (x.ndim - 2) - len(pad)), mode="reflect"
    )
    padded = padded.view(*x.shape[:2], *padded.shape[2:])
    total = padded.narrow(axis, 0, size) * _per_sample(weights[:, 0], x)
    for offset in range(1, weights.shape[1]):
        total.addcmul_(padded.narrow(axis, offset, size), _per_sample(weights[:, offset], x))
    return total
