"""Intensity changes against scipy and closed forms; each sample by its own strength."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from selfvox.ops import intensity

SHAPES = [(9, 12), (7, 8, 10)]


@pytest.fixture(params=SHAPES, ids=["2D", "3D"])
def x(request):
    return torch.randn(3, 2, *request.param, generator=torch.Generator().manual_seed(0)) * 3 + 5


def test_brightness_adds_its_shift(x):
    shift = torch.tensor([0.0, 1.5, -2.0])
    for original, changed, by in zip(x, intensity.shift_brightness(x, shift), shift, strict=True):
        assert torch.equal(changed, original + by)


def test_contrast_keeps_the_mean_and_scales_the_deviation_of_every_channel(x):
    factor = torch.tensor([1.0, 0.5, 2.0])
    changed, space = intensity.scale_contrast(x, factor), tuple(range(2, x.ndim))
    assert torch.allclose(changed.mean(space), x.mean(space), atol=1e-4)
    assert torch.allclose(changed.std(space), x.std(space) * factor[:, None], rtol=1e-4)


def test_noise_has_the_deviation_asked_for_and_comes_from_the_generator():
    x, sigma = torch.randn(3, 1, 40, 40, 40), torch.tensor([0.0, 0.1, 2.0])
    first, repeated, second = (
        intensity.add_noise(x, sigma, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, repeated)
    assert not torch.equal(first[1:], second[1:])
    added = (first - x).flatten(1)
    assert torch.allclose(added.std(1), sigma, rtol=0.02)
    assert torch.allclose(added.mean(1), torch.zeros(3), atol=0.03)


def test_standardise_leaves_no_trace_of_level_and_contrast_and_air_stays_dark(x):
    for channel in intensity.standardise(x).flatten(0, 1):
        assert [float(channel.mean()), float(channel.var(correction=0))] == pytest.approx(
            [0, 1], abs=0.01
        )
    assert intensity.standardise(torch.randn(2, 1, 8, 8) * 0.01 - 3).abs().max() < 0.5


def test_no_two_samples_get_the_same_noise():
    noise = intensity.add_noise(
        torch.zeros(6, 1, 16, 16, 16), torch.ones(6), torch.Generator().manual_seed(0)
    )
    alike = torch.corrcoef(noise.flatten(1)) - torch.eye(6)
    assert alike.abs().max() < 5 / math.sqrt(16**3)


def test_noise_is_read_from_one_field_drawn_on_the_cpu():
    x, sigma = torch.randn(5, 2, 6, 7), torch.rand(5)
    actual = intensity.add_noise(x, sigma, torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    field = torch.randn(2 * 84, generator=rng).tolist()
    places = torch.randint(85, (5,), generator=rng).tolist()
    signs = torch.randint(2, (5,), generator=rng).tolist()
    for image, changed, width, place, sign in zip(
        x, actual, sigma.tolist(), places, signs, strict=True
    ):
        added = [width * (1 if sign else -1) * value for value in field[place : place + 84]]
        assert torch.allclose((changed - image).flatten(), torch.tensor(added), atol=1e-5)


def test_blur_equals_scipy(x):
    sigma = torch.tensor([0.3, 0.7, 1.0])
    for sample, width, actual in zip(
        x.numpy(), sigma.tolist(), intensity.blur(x, sigma).numpy(), strict=True
    ):
        for channel, blurred in zip(sample, actual, strict=True):
            expected = ndimage.gaussian_filter(channel, width, radius=2, mode="mirror")
            assert np.allclose(blurred, expected, atol=1e-4)


def test_blur_of_no_width_changes_nothing(x):
    assert torch.allclose(intensity.blur(x, torch.zeros(3)), x)


def test_sobel_equals_scipy(x):
    for sample, actual in zip(
        x.double().numpy(), intensity.sobel_magnitude(x).numpy(), strict=True
    ):
        for channel, edges in zip(sample, actual, strict=True):
            slopes = [ndimage.sobel(channel, axis, mode="mirror") for axis in range(channel.ndim)]
            magnitude = np.sqrt(sum(slope**2 for slope in slopes))
            assert np.allclose(edges, (magnitude - magnitude.mean()) / magnitude.std(), atol=1e-4)


def test_sobel_of_a_flat_image_is_zero():
    assert torch.equal(
        intensity.sobel_magnitude(torch.full((2, 1, 8, 8, 8), 1234.5)), torch.zeros(2, 1, 8, 8, 8)
    )


@pytest.mark.parametrize("change", ["shift_brightness", "scale_contrast", "blur"])
def test_the_input_is_left_as_it_was(x, change):
    original = x.clone()
    getattr(intensity, change)(x, torch.tensor([0.5, 0.6, 0.7]))
    intensity.sobel_magnitude(x)
    intensity.add_noise(x, torch.ones(3), torch.Generator())
    assert torch.equal(x, original)
