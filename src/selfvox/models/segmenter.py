"""A segmentation network from any encoder."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from selfvox.models.encoder import Encoder
from selfvox.models.unet import he_initialise, norm_layer
from selfvox.ops.resize import enlarge


class Segmenter(nn.Module):
    """A U-Net: any encoder, and nnU-Net's decoder upon its maps.

    Args:
        encoder: gives the maps.
        classes: how many, the background included.
        norm: normalisation of the decoder: instance, group or batch.
        linear: put one linear layer upon each map in place of the decoder, for a linear probe.
    """

    def __init__(
        self, encoder: Encoder, classes: int, norm: str = "instance", linear: bool = False
    ):
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
        decoder.seg_layers = nn.ModuleList(
            [nn.Identity()] * (len(steps) - 2) + [decoder.seg_layers[-1]]
        )
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
        return F.interpolate(
            logits, size=tuple(size), mode="trilinear" if len(size) == 3 else "bilinear"
        )


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
