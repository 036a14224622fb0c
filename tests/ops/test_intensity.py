"""Intensity changes against scipy and closed forms; each sample by its own strength."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

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


def test_blur_of_few_slices_mirrors_them_on_any_device():
    sigma = torch.tensor([1.0])
    for slices in (1, 2, 3):
        x = torch.randn(1, 1, slices, 6, 7)
        expected = ndimage.gaussian_filter(x[0, 0].numpy(), 1.0, radius=2, mode="mirror")
        # float64 takes the way of other devices than the CPU
        for image in (x, x.double()):
            assert np.allclose(intensity.blur(image, sigma)[0, 0], expected, atol=1e-5)


def test_blur_of_no_width_changes_nothing(x):
    assert torch.allclose(intensity.blur(x, torch.zeros(3)), x)


def test_blur_may_have_another_width_along_each_axis(x):
    widths = torch.tensor([0.3, 0.7, 1.0])[: x.ndim - 2]
    blurred = intensity.blur(x, widths.expand(3, -1))
    for channel, actual in zip(x.flatten(0, 1).numpy(), blurred.flatten(0, 1), strict=True):
        expected = ndimage.gaussian_filter(channel, widths.tolist(), radius=2, mode="mirror")
        assert np.allclose(actual, expected, atol=1e-4)


def test_gamma_raises_to_a_power_and_keeps_mean_deviation_and_order(x):
    power = torch.tensor([1.0, 0.7, 1.5])
    inverted = torch.tensor([False, True, False])
    changed = intensity.change_gamma(x, power, inverted)
    assert torch.allclose(changed[0], x[0], atol=1e-4)
    for channel, actual, number in zip(
        x.flatten(0, 1).double(), changed.flatten(0, 1).double(), (0, 0, 1, 1, 2, 2), strict=True
    ):
        # upside down where inverted
        upright = -channel if inverted[number] else channel
        share = (upright - upright.min()) / (upright.max() - upright.min())
        raised = share ** power[number].item()
        raised = -raised if inverted[number] else raised
        expected = (raised - raised.mean()) / raised.std() * channel.std() + channel.mean()
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
        assert torch.equal(actual.flatten().argsort()[:3], channel.flatten().argsort()[:3])


def test_gamma_of_a_flat_channel_changes_nothing():
    flat = torch.full((2, 1, 8, 8), -3.5)
    inverted = torch.tensor([False, True])
    assert torch.equal(intensity.change_gamma(flat, torch.tensor([0.7, 1.5]), inverted), flat)


def lower_resolution(x, share):
    return intensity.lower_resolution(x, *intensity.kept_voxels(x.shape[2:], share))


@pytest.mark.parametrize("kept", [0.5, 0.65, 0.9, 1.0])
def test_low_resolution_is_nearest_down_and_linear_up(x, kept):
    size = [round(edge * kept) for edge in x.shape[2:]]
    small = functional.interpolate(x, size=size, mode="nearest-exact")
    linear = "bilinear" if x.ndim == 4 else "trilinear"
    expected = functional.interpolate(small, size=x.shape[2:], mode=linear)
    actual = lower_resolution(x, torch.full((3, x.ndim - 2), kept))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_each_sample_and_axis_has_its_own_resolution(x):
    kept = torch.tensor([[0.5, 1.0, 0.7], [1.0, 1.0, 1.0], [0.8, 0.6, 1.0]])[:, : x.ndim - 2]
    actual = lower_resolution(x, kept)
    for number in range(3):
        alone = lower_resolution(x[number : number + 1], kept[number : number + 1])
        assert torch.equal(actual[number : number + 1], alone)
    assert torch.equal(actual[1], x[1])


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


@pytest.mark.parametrize("shape", [(9, 8), (7, 8, 1), (5, 4, 6)])
def test_the_plane_removed_is_that_of_least_squares(shape):
    images = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0)).double()
    grid = torch.cartesian_prod(*[torch.arange(float(edge)) for edge in shape]).double()
    design = torch.cat([grid - grid.mean(0), torch.ones(len(grid), 1)], 1).double()
    values = images.flatten(2).flatten(0, 1).T
    solution = torch.linalg.lstsq(design, values, driver="gelsd").solution
    expected = values - design[:, :-1] @ solution[:-1]
    actual = intensity.remove_plane(images).flatten(2).flatten(0, 1).T
    torch.testing.assert_close(actual, expected)
