"""Passes take turns with the mirror images of a scan, and are mirrored back."""

import itertools

import pytest
import torch

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.classifier import Classifier
from selfvox.models.segmenter import Segmenter
from selfvox.ops.flips import flips
from selfvox.uncertainty.class_passes import run_class_passes
from selfvox.uncertainty.mc_dropout import Dropout, DropoutMasks
from selfvox.uncertainty.mirrored_passes import run_mirrored_class_passes, run_mirrored_passes
from selfvox.uncertainty.passes import SubNetworks, run_passes

DROPOUT = Dropout(0.3, 0.2, "element", 0)


def encoder(d):
    torch.manual_seed(0)
    spec = plan_encoder({"name": "plain", "channels": (4, 8), "blocks": 1}, (16,) * d, (1.0,) * d)
    return build_encoder(spec, d, 1)


def random_image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def collected(net, image, window, passes, slice_axis, run, *axes):
    """Probabilities (pass, class, *space), each voxel written once."""
    probabilities = torch.full((len(passes), net.classes, *image.shape[1:]), torch.nan)

    def take(number, part, values):
        place = (list(passes).index(number), slice(None), *part)
        assert probabilities[place].isnan().all()
        probabilities[place] = values

    with torch.inference_mode(), SubNetworks(net, DROPOUT) as networks:
        run(networks, image, window, 0.5, passes, take, slice_axis, *axes)
    return probabilities


@pytest.mark.parametrize(
    ("shape", "slice_axis", "axes"),
    [
        ((21, 13, 18), None, (0, 2)),
        ((20, 17), None, (0, 1)),
        ((5, 18, 17), 0, (1,)),
        ((18, 17, 5), 2, (0, 1)),
    ],
)
def test_each_pass_is_that_of_a_mirror_image_mirrored_back(shape, slice_axis, axes):
    d = len(shape) if slice_axis is None else 2
    net = Segmenter(encoder(d), 3).eval()
    image = random_image(1, *shape)
    passes = range(3, 3 + 2 ** len(axes) + 1)
    window = (16,) * d
    actual = collected(net, image, window, passes, slice_axis, run_mirrored_passes, axes)
    sets = flips(axes)
    for place, number in enumerate(passes):
        mirrored = [1 + axis for axis in sets[number % len(sets)]]
        expected = collected(net, image.flip(mirrored), window, [number], slice_axis, run_passes)
        torch.testing.assert_close(actual[place], expected[0].flip(mirrored), atol=1e-5, rtol=0)
    # all turns were taken, and they differ
    assert {number % len(sets) for number in passes} == set(range(len(sets)))


@torch.inference_mode()
def test_each_pass_of_a_classifier_is_that_of_a_mirror_image():
    net = Classifier(encoder(2), 3, False).eval()
    torch.nn.init.normal_(net.head[-1].weight, std=0.5)
    image = random_image(1, 1, 16, 16)
    masks = DropoutMasks(net.encoder, net.head, DROPOUT)
    actual = run_mirrored_class_passes(net, masks, image, range(6), (0, 1))
    for number, axes in zip(range(6), itertools.cycle([[], [2], [3], [2, 3]]), strict=False):
        expected = run_class_passes(net, masks, image.flip(axes), [number])
        torch.testing.assert_close(actual[number], expected[0], atol=1e-6, rtol=0)
