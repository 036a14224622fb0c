"""An image from an image: an encoder, and the decoder that a segmenter has."""

from __future__ import annotations

from torch import Tensor, nn

from selfvox.models.encoder import Encoder
from selfvox.models.segmenter import resize_output, unet_decoder
from selfvox.ops.resize import pad_to_multiple


class Restorer(nn.Module):
    """The decoder of a segmenter, with an image of the encoder's input channels as its output.

    Args:
        encoder: the decoder takes its maps; it is passed to `forward` too, and not owned.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        decoder = unet_decoder(encoder, encoder.in_channels, encoder.norm)
        # small weights: an untrained network draws about 0
        nn.init.normal_(decoder.seg_layers[-1].weight, std=1e-3)
        self.decoder: nn.Module = decoder

    def forward(self, encoder: Encoder, x: Tensor) -> Tensor:
        """(batch, channel, *space) -> an image of that shape, float32."""
        padded = pad_to_multiple(x, encoder.strides[-1])
        image = resize_output(self.decoder(encoder(padded)), padded.shape[2:])
        for axis, edge in enumerate(x.shape[2:], start=2):
            image = image.narrow(axis, 0, edge)
        # the loss is computed in float32
        return image.float()
