"""What is built upon an encoder: a U-Net that segments, and its prediction over a whole scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from selfvox.models.encoder import Encoder, he_initialise, norm_layer
from selfvox.spatial import enlarge

SLICES_AT_ONCE = 16


class Segmenter(nn.Module):
    """A U-Net: any encoder, and nnU-Net's decoder upon its maps.

    Args:
        encoder: gives the maps.
        classes: how many, the background included.
        norm: normalisation of the decoder: instance, group or batch.
        linear: put one linear layer upon each map in place of the decoder, for a linear probe.
    """

    def __init__(self, encoder: Encoder, classes: int, norm: str = "instance", linear: bool = False):
        super().__init__()
        self.encoder, self.classes = encoder, classes
        d = encoder.spatial_dims
        if linear:
            self.decoder: nn.Module = Readout(encoder, classes)
            return
        layer, layer_kwargs = norm_layer(norm, d)
        steps = [encoder.strides[0]] + [
            tuple(b // a for a, b in zip(fine, coarse, strict=True))
            for fine, coarse in zip(encoder.strides, encoder.strides[1:], strict=False)
        ]
        # the decoder only reads these; given the encoder itself, it would own it a second time
        shape = SimpleNamespace(
            output_channels=list(encoder.channels),
            strides=[list(step) for step in steps],
            kernel_sizes=[[3] * d] * len(encoder.channels),
            conv_op=nn.Conv3d if d == 3 else nn.Conv2d,
            conv_bias=True,
            norm_op=layer,
            norm_op_kwargs=layer_kwargs,
            dropout_op=None,
            dropout_op_kwargs=None,
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        decoder = UNetDecoder(shape, classes, 2, deep_supervision=False)
        # its outputs at the coarser levels are for deep supervision, which we do not use
        decoder.seg_layers = nn.ModuleList([nn.Identity()] * (len(steps) - 2) + [decoder.seg_layers[-1]])
        self.decoder = decoder.apply(he_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) -> logits (batch, class, *space)."""
        return self.decode(self.encoder(x), x.shape[2:])

    def decode(self, maps: list[Tensor], size: Sequence[int]) -> Tensor:
        """Logits of the input's size from the encoder's maps."""
        return self.resized(self.decoder(maps), size)

    def resized(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """The decoder's logits at the input's size."""
        if logits.shape[2:] == tuple(size):
            return logits
        # an encoder whose finest map is coarser than its input
        return F.interpolate(logits, size=tuple(size), mode="trilinear" if len(size) == 3 else "bilinear")


class Readout(nn.Module):
    """What a linear map tells of each voxel from the maps of all levels at its place."""

    def __init__(self, encoder: Encoder, classes: int):
        super().__init__()
        conv = nn.Conv3d if encoder.spatial_dims == 3 else nn.Conv2d
        self.layers = nn.ModuleList(conv(channels, classes, 1) for channels in encoder.channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps, finest first -> logits (batch, class, *space) of the finest map's size."""
        size = maps[0].shape[2:]
        # read before it is enlarged: both are linear, so the order is free, and this one is cheap
        read = [layer(each) for layer, each in zip(self.layers, maps, strict=True)]
        return torch.stack([enlarge(each, size) for each in read]).sum(0)


@torch.no_grad()
def segment_whole(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: Sequence[int],
    overlap: float = 0.5,
    slice_axis: int | None = None,
    overlapping: bool = False,
) -> Tensor:
    """Class probabilities of a whole scan from overlapping windows, weighted towards their centres (MONAI).

    Args:
        network: (batch, channel, *window) -> logits.
        image: (channel, *space).
        window: edges of the windows in voxels; a smaller scan is mirrored at its edges, like the crops of training.
        overlap: share by which neighbours overlap.
        slice_axis: a 2D network's: each slice along this axis of the volume is a picture of its own.
        overlapping: the outputs are regions, each with a probability of its own.

    Returns:
        (class, *space) float32, summing to one over the classes; or (region, *space).
    """
    pictures = image[None] if slice_axis is None else image.movedim(1 + slice_axis, 0)
    padded, before = pad_to_window(pictures, window)
    logits = sliding_window_inference(
        padded,
        roi_size=tuple(window),
        # two at a time: a CPU convolution of a single small sample leaves the fast path
        sw_batch_size=(2 if image.device.type == "cpu" else 4) if slice_axis is None else SLICES_AT_ONCE,
        predictor=lambda x: _beside_its_copy(network, x).float(),
        overlap=overlap,
        mode="gaussian",
    )
    for axis in range(len(window)):
        logits = logits.narrow(2 + axis, before[axis], pictures.shape[2 + axis])
    probabilities: Tensor = logits.sigmoid() if overlapping else logits.softmax(1)
    return probabilities[0] if slice_axis is None else probabilities.movedim(0, 1 + slice_axis)


def pad_to_window(images: Tensor, window: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Images (batch, channel, *space), extended to hold a window, and how many voxels went before each axis."""
    # mirrored up to the window here, since MONAI pads with a constant that training never showed
    short = [max(0, want - have) for want, have in zip(window, images.shape[2:], strict=True)]
    before = [room - room // 2 for room in short]
    padded = images
    for axis in range(len(window)):
        padded = _mirror(padded, 2 + axis, before[axis], short[axis] - before[axis])
    return padded, before


def _beside_its_copy(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`network(x)`, where a small volume alone on the CPU is computed twice.

    Two took 40 ms of an encoder and one 97 ms at 32 voxels cubed in fp32; as long at 48, and at 64 twice as long.
    """
    fp32_on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if fp32_on_cpu and len(x) == 1 and x.ndim == 5 and x[0, 0].numel() <= 40**3:
        return network(x.expand(2, *x.shape[1:]))[:1]
    return network(x)


def _mirror(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Extend one axis by mirroring, edge voxel included, as often as it takes."""
    size = x.shape[axis]
    positions = torch.arange(-before, size + after, device=x.device) % (2 * size)
    return x.index_select(axis, torch.minimum(positions, 2 * size - 1 - positions))
