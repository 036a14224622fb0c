"""The restorer: an image of the size of its input, by the decoder that a segmenter has."""

import pytest
import torch

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.restorer import Restorer
from selfvox.models.segmenter import Segmenter


def make(d, channels=2):
    torch.manual_seed(0)
    spec = plan_encoder({"channels": [4, 8, 16], "blocks": 1}, (16,) * d, (1.0,) * d)
    encoder = build_encoder(spec, d, channels)
    return encoder, Restorer(encoder)


@pytest.mark.parametrize("shape", [(16, 24), (13, 10), (8, 12, 9)])
def test_an_image_is_that_of_the_padded_input_cut_to_its_size(shape):
    encoder, restorer = make(len(shape))
    torch.nn.init.normal_(restorer.decoder.seg_layers[-1].weight)
    images = torch.randn(2, 2, *shape)
    padded = images
    for axis, edge in enumerate(shape, start=2):
        last = padded.narrow(axis, edge - 1, 1)
        padded = torch.cat([padded, *[last] * (-edge % 4)], axis)
    expected = restorer.decoder(encoder(padded))
    assert expected.shape[2:] == tuple(-(-edge // 4) * 4 for edge in shape)
    for axis, edge in enumerate(shape, start=2):
        expected = expected.narrow(axis, 0, edge)
    torch.testing.assert_close(restorer(encoder, images), expected)


@pytest.mark.parametrize("d", [2, 3])
def test_its_decoder_is_a_segmenters_up_to_the_output(d):
    encoder, restorer = make(d)
    segmenter = Segmenter(encoder, 3, encoder.norm)
    shapes = {name: value.shape for name, value in restorer.decoder.state_dict().items()}
    expected = {name: value.shape for name, value in segmenter.decoder.state_dict().items()}
    different = {name for name in expected if shapes.pop(name) != expected[name]}
    assert not shapes
    assert different == {"seg_layers.1.weight", "seg_layers.1.bias"}
