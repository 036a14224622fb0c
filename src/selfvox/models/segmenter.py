"""A segmentation network from any encoder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from selfvox.models.encoder import Encoder
from selfvox.models.unet import he_initialise, kernel_edges, norm_layer
from selfvox.ops.resize import enlarge


class Segmenter(nn.Module):
    """A U-Net: any encoder, and nnU-Net's decoder of its maps.

    Args:
        encoder: computes the maps.
        classes: how many, the background included.
        norm: normalisation of the decoder: instance, group or batch.
        linear: one linear layer per map in place of the decoder, for a linear probe.
    """

    def __init__(
        self, encoder: Encoder, classes: int, norm: str = "instance", linear: bool = False
    ):
        super().__init__()
        self.encoder = encoder
        self.classes = classes
        self.decoder: nn.Module
        if linear:
            self.decoder = LinearReadout(encoder, classes)
        else:
            self.decoder = unet_decoder(encoder, classes, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) -> logits (batch, class, *space)."""
        return self.decode(self.encoder(x), x.shape[2:])

    def decode(self, maps: list[Tensor], size: Sequence[int]) -> Tensor:
        """Logits of the input's size from the encoder's maps."""
        return self.resize_logits(self.decoder(maps), size)

    def resize_logits(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """The decoder's logits at the input's size."""
        return resize_output(logits, size)


class LinearReadout(nn.Module):
    """Logits of each voxel, linear in the features of all levels at its position."""

    def __init__(self, encoder: Encoder, classes: int):
        super().__init__()
        conv = nn.Conv3d if encoder.spatial_dims == 3 else nn.Conv2d
        self.layers = nn.ModuleList(conv(channels, classes, 1) for channels in encoder.channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps, finest first -> logits (batch, class, *space) of the finest map's size."""
        size = maps[0].shape[2:]
        # the linear layer before the enlargement: the order is free, and this one is cheap
        logits = [layer(features) for layer, features in zip(self.layers, maps, strict=True)]
        return torch.stack([enlarge(level, size) for level in logits]).sum(0)


def resize_output(output: Tensor, size: Sequence[int]) -> Tensor:
    """What a decoder gives (batch, output, *space), at the size of the input."""
    if output.shape[2:] == tuple(size):
        return output
    # the encoder's finest map is coarser than its input
    mode = "trilinear" if len(size) == 3 else "bilinear"
    return F.interpolate(output, size=tuple(size), mode=mode)


OUTPUT_LAYERS = "seg_layers."  # their prefix among the tensors of a decoder


def unet_decoder(encoder: Encoder, outputs: int, norm: str) -> UNetDecoder:
    """nnU-Net's decoder with the output of the finest level alone, freshly initialised.

    Args:
        encoder: the decoder takes its maps.
        outputs: channels of its output: classes, or those of an image.
        norm: instance, group or batch.
    """
    d = encoder.spatial_dims
    norm_op, norm_kwargs = norm_layer(norm, d)
    # the decoder only reads these; given the encoder itself, it would own it a second time
    encoder_like = SimpleNamespace(
        output_channels=list(encoder.channels),
        strides=_strides_between_levels(encoder.strides),
        kernel_sizes=kernel_edges(encoder.kernels, len(encoder.channels), d),
        conv_op=nn.Conv3d if d == 3 else nn.Conv2d,
        conv_bias=True,
        norm_op=norm_op,
        norm_op_kwargs=norm_kwargs,
        dropout_op=None,
        dropout_op_kwargs=None,
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    decoder = UNetDecoder(encoder_like, outputs, encoder.decoder_blocks, deep_supervision=False)
    # its outputs at the coarser levels are for deep supervision, which is not used here
    unused = [nn.Identity()] * (len(encoder.channels) - 2)
    decoder.seg_layers = nn.ModuleList([*unused, decoder.seg_layers[-1]])
    return decoder.apply(he_initialise)


def _strides_between_levels(strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Strides relative to the level above, from those relative to the input."""
    steps = [list(strides[0])]
    for fine, coarse in itertools.pairwise(strides):
        steps.append([b // a for a, b in zip(fine, coarse, strict=True)])
    return steps
