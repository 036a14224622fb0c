"""Intensity changes of image batches on their device, each sample by its own strength.

`x` is (batch, channel, *space); a strength is (batch,). Only `add_noise` and `redraw_intensity`
draw random numbers, from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfvox.ops import numba_kernels
from selfvox.ops.transfer import copy_together


def shift_brightness(x: Tensor, shift: Tensor) -> Tensor:
    """Add `shift` to every voxel."""
    return x + _per_sample(shift, x)


def scale_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale every channel about its own mean."""
    mean = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
    return torch.lerp(mean.expand_as(x), x, _per_sample(factor, x))


def standardise(x: Tensor, flat: float = 1e-2) -> Tensor:
    """Give every channel of every sample mean 0 and variance 1.

    `flat` is added to the variance that is divided by: the noise of empty air stays small.
    """
    centred, variance = _centred(x)
    return centred / (variance + flat).sqrt()


def remove_plane(x: Tensor) -> Tensor:
    """Take the least-squares plane off every channel of every sample, except for its mean.

    Centred coordinates of a grid are orthogonal, so each axis has its slope by itself.
    """
    for axis in range(2, x.ndim):
        edge = x.shape[axis]
        coordinate = torch.arange(edge, dtype=x.dtype, device=x.device) - (edge - 1) / 2
        others = [other for other in range(2, x.ndim) if other != axis]
        profile = x.mean(others)
        slope = (profile * coordinate).sum(2, keepdim=True) / coordinate.square().sum().clamp(min=1)
        shape = [*x.shape[:2], *(edge if other == axis else 1 for other in range(2, x.ndim))]
        x = x - (slope * coordinate).view(shape)
    return x


def redraw_intensity(x: Tensor, rng: torch.Generator) -> Tensor:
    """Replace each sample's brightness and contrast by random ones, and take its slope away.

    A jitter alone would only blur a brightness that drifts through the scan, so each sample loses
    its plane, since the slope tells where in a coil's field it is, and is standardised. Then its
    contrast is scaled by 0.6 to 1.4 and its brightness shifted by -0.3 to 0.3.
    """
    factor, shift = torch.rand(2, len(x), generator=rng).to(x.device)
    # in this order: a slope would count as contrast
    x = scale_contrast(standardise(remove_plane(x)), 0.6 + 0.8 * factor)
    return shift_brightness(x, 0.6 * shift - 0.3)


def add_noise(x: Tensor, sigma: Tensor, rng: torch.Generator) -> Tensor:
    """Add Gaussian noise of standard deviation `sigma`.

    `rng` is on the CPU, so that every device adds the same noise.

    One field of twice a sample's size is drawn. Each sample reads it from its own random offset,
    half of them negated: drawing as many numbers as all samples have, and copying them to a device,
    would delay every training step.
    """
    size = x[0].numel()
    field = torch.randn(2 * size, generator=rng)
    offset = torch.randint(size + 1, (len(x),), generator=rng)
    sign = torch.randint(2, (len(x),), generator=rng) * 2 - 1
    field, offset, sign = copy_together(x.device, field, offset, sign)
    noise = field.to(x.dtype).unfold(0, size, 1).index_select(0, offset).view_as(x)
    return noise.mul_(_per_sample(sign * sigma.to(sign.device), x)).add_(x)


def change_gamma(x: Tensor, power: Tensor, inverted: Tensor) -> Tensor:
    """Raise every channel, from its lowest value 0 to its highest 1, to a power.

    Its mean and standard deviation are kept, as in nnU-Net.

    Args:
        x: the images.
        power: (batch,); below 1 dark shades move apart, above 1 bright ones.
        inverted: (batch,) booleans: raise what the channel lacks to its highest value instead.
    """
    flat = x.flatten(2)
    lowest = flat.amin(2, keepdim=True)  # `aminmax` takes five times as long as both
    highest = flat.amax(2, keepdim=True)
    is_inverted = inverted.to(x.device)[:, None, None]
    base = torch.where(is_inverted, highest, lowest)
    # negative where inverted, so that the quotient is in 0 ... 1
    span = torch.where(is_inverted, lowest - highest, highest - lowest)
    share = (flat - base).div_(torch.where(span == 0, 1, span)).clamp_(0, 1)
    # a third of the time of `pow`; the logarithm of 0 is -inf, and its exponential 0
    raised = share.log_().mul_(_per_sample(power, flat)).exp_()
    centred = raised.sub_(raised.mean(2, keepdim=True))
    mean = flat.mean(2, keepdim=True)
    # the sign turns an inverted channel back
    gain = _length(flat - mean) / _length(centred).clamp(min=1e-6) * span.sign()
    return centred.mul_(gain).add_(mean).view_as(x)


def _length(flat: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(flat, dim=2, keepdim=True)
    return length


def kept_voxels(shape: Sequence[int], share: Tensor) -> list[Tensor]:
    """Which voxels `lower_resolution` keeps, as three tensors for each axis.

    Args:
        shape: of the images (*space).
        share: of the voxels along each axis, (batch, d) in 0 ... 1, on the CPU; 1 leaves it as it
            is.
    """
    return [
        values
        for axis, size in enumerate(shape)
        for values in _kept_along_axis(size, share[:, axis])
    ]


def lower_resolution(x: Tensor, *kept: Tensor) -> Tensor:
    """Keep some voxels along each axis and interpolate linearly between them.

    The nearest voxels are kept, not averaged: a scan with gaps between its slices looks so.

    Args:
        x: the images.
        kept: of `kept_voxels`, on their device.
    """
    for axis in range(2, x.ndim):
        lower, upper, share = kept[3 * axis - 6 : 3 * axis - 3]
        x = _interpolate_axis(x, lower, upper, share, axis)
    return x


def _kept_along_axis(size: int, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each voxel of an axis: the kept voxels before and behind it, and how close the latter is.

    All are (batch, size). As `F.interpolate`: "nearest-exact" down, then "linear" up.
    """
    kept = (share.double() * size).round().clamp(1, size)[:, None]
    # in float64: a float32 position may be rounded to the other side of a voxel
    step = size / kept
    position = (torch.arange(size) + 0.5) / step - 0.5
    position = torch.minimum(position.clamp(min=0), kept - 1)
    before = position.floor()
    behind = torch.minimum(before + 1, kept - 1)
    lower, upper = (((number + 0.5) * step).floor().long() for number in (before, behind))
    return lower, upper, (position - before).float()


def blur(x: Tensor, sigma: Tensor, radius: int = 2) -> Tensor:
    """Gaussian blur of `sigma` voxels, one axis after the other; edges are mirrored.

    The kernel has `2 * radius + 1` weights that sum to one: right for sigma up to about half the
    radius.

    Args:
        x: the images.
        sigma: (batch,), or (batch, d) for another width along each axis.
        radius: of the kernel, in voxels.
    """
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    # no division by 0: a width of 0 leaves the image as it is
    widths = sigma.view(len(x), -1).expand(-1, x.ndim - 2).clamp(min=1e-3)
    weights = torch.exp(-(offsets**2) / (2 * widths[:, :, None] ** 2))
    weights = weights / weights.sum(2, keepdim=True)
    for axis in range(2, x.ndim):
        x = _correlate(x, weights[:, axis - 2], axis)
    return x


def sobel_magnitude(x: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient, scaled to mean 0 and standard deviation 1 in each channel.

    Flat images give 0.
    """
    # made on the device: 1, 2, 1 and -1, 0, 1
    slope = torch.arange(-1, 2, device=x.device, dtype=x.dtype)[None]
    smooth = 2 - slope.abs()
    squares = torch.zeros_like(x)
    for gradient_axis in range(2, x.ndim):
        gradient = x
        for axis in range(2, x.ndim):
            gradient = _correlate(gradient, slope if axis == gradient_axis else smooth, axis)
        squares = squares.addcmul_(gradient, gradient)
    centred, variance = _centred(squares.sqrt_())
    return centred / variance.sqrt().clamp(min=1e-6)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` less each channel's mean, and its variance; takes a third of `torch.var_mean`'s time."""
    space = tuple(range(2, x.ndim))
    centred = x - x.mean(space, keepdim=True)
    return centred, centred.square().mean(space, keepdim=True)


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.device, x.dtype).view(-1, *(1,) * (x.ndim - 1))


def _correlate(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Correlate one axis with a short kernel per sample (or one for all) mirrored at the edges."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad:
        return numba_kernels.correlate(x, weights.expand(len(x), -1), axis)
    radius = weights.shape[1] // 2
    size = x.shape[axis]
    # by index: F.pad refuses to reflect an axis of two slices by two voxels
    padded = x.index_select(axis, _mirrored_indices(size, radius, x.device))
    total = padded.narrow(axis, 0, size) * _per_sample(weights[:, 0], x)
    for offset in range(1, weights.shape[1]):
        total.addcmul_(padded.narrow(axis, offset, size), _per_sample(weights[:, offset], x))
    return total


def _mirrored_indices(size: int, radius: int, device: torch.device) -> Tensor:
    """Indices of an axis, mirrored `radius` voxels beyond both ends, which are not repeated."""
    period = max(1, 2 * size - 2)
    at = torch.arange(-radius, size + radius, device=device).abs() % period
    return torch.minimum(at, period - at)


def _interpolate_axis(x: Tensor, lower: Tensor, upper: Tensor, share: Tensor, axis: int) -> Tensor:
    """`numba_kernels.interpolate_axis` on any device."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad:
        return numba_kernels.interpolate_axis(x, lower, upper, share, axis)
    shape = (len(x), *(1,) * (axis - 1), x.shape[axis], *(1,) * (x.ndim - 1 - axis))
    low, high = (x.take_along_dim(at.to(x.device).view(shape), axis) for at in (lower, upper))
    return torch.lerp(low, high, share.to(x.device, x.dtype).view(shape))
