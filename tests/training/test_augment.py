"""Augmentation moves an image and its label together and draws from the whole of its ranges."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from selfvox.ops import affine, intensity
from selfvox.training import augment as module
from selfvox.training.augment import (
    LIGHT,
    STRONG,
    Augmentation,
    Change,
    augment,
    augment_whole,
)

SAMPLES = 64
EDGE = 24
LIGHTLY = Augmentation(LIGHT)
STRENGTHS = pytest.mark.parametrize(
    "strength", [None, LIGHT, STRONG], ids=["none", "light", "strong"]
)
CHANGES = ("degrees", "zoom", "gamma", "contrast", "brightness", "blur", "resolution", "noise")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def even(image):
    """Spacings of 1 mm."""
    return torch.ones(len(image), image.ndim - 2)


def centre(x):
    """The inner third along every axis, where no edge is seen."""
    return x[(..., *(slice(EDGE // 3, 2 * EDGE // 3),) * (x.ndim - 2))]


def only(*names):
    """The changes of strong with these names alone."""
    off = {
        name: getattr(STRONG, name)._replace(probability=0.0)
        for name in CHANGES
        if name not in names
    }
    return dataclasses.replace(STRONG, **off)


@pytest.mark.parametrize("strength", [LIGHT, STRONG], ids=["light", "strong"])
@pytest.mark.parametrize("d", [2, 3])
def test_a_bright_cube_stays_on_its_label(d, strength):
    label = torch.zeros(SAMPLES, *(EDGE,) * d, dtype=torch.uint8)
    # off the centre, so that another rotation or zoom moves it to another place
    label[(slice(None), *(slice(5, 13),) * d)] = 4
    image = torch.where(label > 0, 10.0, -10.0)[:, None]
    augmentation = Augmentation(strength, mirror=(0,))
    moved_image, moved_label = augment(image, label, even(image), augmentation, generator())
    assert moved_label.dtype == label.dtype
    # a label that is interpolated has values between
    assert set(moved_label.unique().tolist()) == {0, 4}
    assert not torch.equal(moved_label, label)
    levels = moved_image.flatten(1)
    middle = (levels.amin(1) + levels.amax(1)) / 2
    is_bright = moved_image[:, 0] > middle.view(-1, *(1,) * d)
    is_labelled = moved_label > 0
    overlap = (is_bright & is_labelled).flatten(1).sum(1)
    dice = 2 * overlap / (is_bright.flatten(1).sum(1) + is_labelled.flatten(1).sum(1))
    assert dice.min() > (0.9 if strength is LIGHT else 0.7)


@pytest.mark.parametrize("d", [2, 3])
def test_a_label_comes_from_the_very_voxel_that_its_image_comes_from(d):
    edge = (17, 20, 13)[:d]
    axes = [torch.arange(size).float() for size in edge]
    # channel c is the position along axis c, which linear interpolation keeps exactly
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(SAMPLES, -1, *edge)
    label = torch.randint(1, 200, (SAMPLES, *edge), generator=generator(), dtype=torch.uint8)
    spacing = torch.tensor([1.0, 1.7, 2.5])[:d].expand(SAMPLES, d)
    augmentation = Augmentation(only("degrees", "zoom"), mirror=(0,))
    moved, moved_label = augment(positions, label, spacing, augmentation, generator())
    nearest = moved.round()
    # near the middle between two voxels, rounding decides
    is_clear = ((moved - moved.floor() - 0.5).abs() > 1e-3).all(1)
    # outside, positions are the lowest and labels are background
    is_inside = moved_label > 0
    assert 0.5 < is_inside.float().mean() < 1
    assert (moved.amax(1)[~is_inside] == 0).all()
    sample = torch.arange(SAMPLES).view(-1, *(1,) * d).expand_as(label)
    expected = label[(sample, *nearest.long().unbind(1))]
    is_compared = is_inside & is_clear
    assert torch.equal(moved_label[is_compared], expected[is_compared])


@pytest.mark.parametrize("d", [2, 3])
def test_light_draws_and_does_what_it_always_did(d):
    image = torch.randn(5, 2, *(EDGE,) * d, generator=generator(1))
    label = torch.randint(5, (5, *(EDGE,) * d), generator=generator(2), dtype=torch.uint8)
    actual = augment(image, label, torch.full((5, d), 0.7), LIGHTLY, generator())
    rng = generator()
    planes = list(itertools.combinations(range(d), 2))
    angles = torch.empty(5, len(planes)).uniform_(-15, 15, generator=rng)
    zooms = torch.empty(5, 1, 1).uniform_(0.9, 1.1, generator=rng)
    matrices = affine.rotation_matrices(torch.deg2rad(angles), planes, d) * zooms
    shifts = torch.zeros(5, d)
    expected = affine.resample(image, matrices, shifts)
    expected_label = affine._grid_sample(label[:, None], matrices, shifts, "nearest")[:, 0]
    expected = intensity.scale_contrast(
        expected, torch.empty(5).uniform_(0.75, 1.25, generator=rng)
    )
    expected = intensity.shift_brightness(
        expected, torch.empty(5).uniform_(-0.2, 0.2, generator=rng)
    )
    expected = intensity.add_noise(expected, torch.empty(5).uniform_(0.0, 0.1, generator=rng), rng)
    assert torch.equal(actual[0], expected)
    # a position halfway between two voxels may fall to either
    assert (actual[1] != expected_label).float().mean() < 1e-3


def in_halves(amplitude):
    """One half of each image dark, the other bright: no zoom about the centre changes that."""
    image = torch.full((SAMPLES, 1, EDGE, EDGE), -amplitude)
    image[..., EDGE // 2 :] = amplitude
    return image


def vary(image):
    """Augmented without a rotation, since the spacings differ."""
    label = torch.zeros(len(image), EDGE, EDGE, dtype=torch.uint8)
    return augment(image, label, even(image) * torch.tensor([1.0, 2.0]), LIGHTLY, generator())[0]


def vary_whole(image):
    return augment_whole(image, even(image), LIGHTLY, generator())


@pytest.mark.parametrize("augmented", [vary, vary_whole])
def test_contrast_brightness_and_noise_are_drawn_from_their_ranges(augmented):
    # next to an amplitude of 1000, brightness and noise are nothing
    bright = augmented(in_halves(1000.0)).flatten(1).abs()
    factors = bright.median(1).values / 1000
    assert 0.74 < factors.min() < 0.8
    assert 1.2 < factors.max() < 1.26
    empty = augmented(in_halves(0.0)).flatten(1)
    shifts = empty.mean(1)
    assert -0.21 < shifts.min() < -0.15
    assert 0.15 < shifts.max() < 0.21
    deviations = empty.std(1)
    assert deviations.min() < 0.02
    assert 0.08 < deviations.max() < 0.11


@pytest.mark.parametrize("name", CHANGES)
def test_strong_makes_each_change_as_often_as_it_says_and_leaves_the_other_samples(name):
    count = 600
    image = torch.randn(count, 2, 12, 10, generator=generator(1))
    original = image.clone()
    changed = augment_whole(image, even(image), Augmentation(only(name)), generator())
    assert torch.equal(image, original)
    share = (changed != image).flatten(1).any(1).float().mean().item()
    expected = getattr(STRONG, name).probability
    if name == "resolution":
        # a share of more than 11.5 of 12 voxels, and 9.5 of 10, keeps them all
        expected *= 1 - (1 - 11.5 / 12) / 0.5
    assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count))


def test_strong_rotates_and_zooms_within_its_ranges():
    spacing = torch.tensor([1.0, 2.5]).expand(2000, 2)
    matrices = module._draw_matrices(STRONG, (), spacing, generator())
    in_mm = matrices * (spacing[:, :, None] / spacing[:, None, :])
    zooms = torch.linalg.det(in_mm).sqrt()
    degrees = torch.rad2deg(torch.atan2(in_mm[:, 1, 0], in_mm[:, 0, 0]))
    identity = torch.eye(2).expand_as(in_mm)
    # a rotation and a zoom in mm
    torch.testing.assert_close(
        in_mm @ in_mm.mT / zooms[:, None, None] ** 2, identity, atol=1e-5, rtol=0
    )
    assert [zooms.min(), zooms.max()] == pytest.approx([0.7, 1.4], abs=0.01)
    assert [degrees.min(), degrees.max()] == pytest.approx([-30, 30], abs=1)
    assert (zooms == 1).float().mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("strength", "odd", "is_rotated"),
    [
        (LIGHT, (1.0, 1.2, 1.2), [False, False, True]),
        (STRONG, (1.0, 2.9, 1.0), [True, True, True]),
        (STRONG, (5.0, 0.8, 0.8), [False, False, True]),
    ],
)
def test_a_scan_of_odd_spacing_is_moved_as_without_its_neighbours(strength, odd, is_rotated):
    cube = (1.0, 1.0, 1.0)
    strength = dataclasses.replace(strength, degrees=Change(5.0, 10.0), zoom=Change(1.0, 1.0))

    def matrices(*spacings):
        return module._draw_matrices(strength, (), torch.tensor(spacings), generator())

    mixed = matrices(cube, odd)
    assert torch.equal(mixed[0], matrices(cube, cube)[0])
    assert torch.equal(mixed[1], matrices(odd, odd)[1])
    in_planes = [bool(abs(mixed[1, a, b]) > 1e-3) for a, b in itertools.combinations(range(3), 2)]
    assert in_planes == is_rotated


@STRENGTHS
@pytest.mark.parametrize("mirror", [(), (2,), (0, 1), (0, 1, 2)])
def test_named_axes_are_mirrored_in_half_of_the_samples_and_no_others(strength, mirror):
    ramp = torch.arange(EDGE).float() * 10
    # channel c rises along axis c
    channels = torch.stack(torch.meshgrid(ramp, ramp, ramp, indexing="ij"))
    image = channels.expand(SAMPLES, -1, -1, -1, -1)
    augmentation = Augmentation(strength, mirror)
    moved = centre(augment_whole(image, even(image), augmentation, generator()))
    slopes = [moved[:, axis].diff(dim=1 + axis).flatten(1).mean(1) for axis in range(3)]
    share = (torch.stack(slopes, 1) < 0).float().mean(0)
    for axis in range(3):
        if axis in mirror:
            assert 0.3 < share[axis] < 0.7
        else:
            assert share[axis] == 0
    assert len({tuple(row) for row in (torch.stack(slopes, 1) < 0).tolist()}) == 2 ** len(mirror)


def test_without_augmentation_samples_are_the_crops_or_their_exact_mirror_images():
    image = torch.randn(16, 2, 9, 8, generator=generator())
    label = torch.randint(5, (16, 9, 8), generator=generator(), dtype=torch.uint8)
    as_they_are = augment(image, label, even(image), Augmentation(None), generator())
    assert torch.equal(as_they_are[0], image)
    assert torch.equal(as_they_are[1], label)
    mirrored = augment(image, label, even(image), Augmentation(None, (1,)), generator())
    is_mirrored = (mirrored[1] != label).flatten(1).any(1)
    assert 0 < is_mirrored.sum() < 16
    for number, flipped in enumerate(is_mirrored.tolist()):
        axes = [1] if flipped else []
        torch.testing.assert_close(
            mirrored[0][number], image[number].flip([1 + axis for axis in axes])
        )
        assert torch.equal(mirrored[1][number], label[number].flip(axes))


@pytest.mark.parametrize("strength", [LIGHT, STRONG], ids=["light", "strong"])
def test_the_generator_decides_and_the_batch_is_left_as_it_was(strength):
    image = torch.randn(8, 2, 9, 8, 7, generator=generator())
    label = torch.randint(5, (8, 9, 8, 7), generator=generator(), dtype=torch.uint8)
    given = image.clone(), label.clone()
    augmentation = Augmentation(strength, (0,))
    first, again, other = (
        augment(image, label, even(image), augmentation, generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(image, given[0])
    assert torch.equal(label, given[1])
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.isfinite(first[0]).all()


def test_low_resolution_and_blur_are_those_of_the_finest_axis():
    image = torch.randn(2, 1, 12, 12, generator=generator())
    spacing = torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    halved = dataclasses.replace(only("resolution"), resolution=Change(0.5, 0.5))
    coarse = augment_whole(image, spacing, Augmentation(halved), generator())
    both, first = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 1.0]])
    assert torch.equal(
        coarse[:1], intensity.lower_resolution(image[:1], *intensity.kept_voxels((12, 12), both))
    )
    assert torch.equal(
        coarse[1:], intensity.lower_resolution(image[1:], *intensity.kept_voxels((12, 12), first))
    )
    blurring = dataclasses.replace(only("blur"), blur=Change(0.8, 0.8))
    blurred = augment_whole(image, spacing, Augmentation(blurring), generator())
    widths = torch.tensor([[0.8, 0.8], [0.8, 0.4]])
    torch.testing.assert_close(blurred, intensity.blur(image, widths))


def test_labelled_crops_are_not_mirrored_unless_asked():
    ramp = (torch.arange(EDGE).float() * 10).expand(SAMPLES, 1, EDGE, EDGE)
    label = torch.zeros(SAMPLES, EDGE, EDGE, dtype=torch.uint8)
    moved = centre(augment(ramp, label, even(ramp), LIGHTLY, generator())[0])
    assert (moved[:, 0].diff(dim=2).flatten(1).mean(1) > 0).all()


def test_a_disc_in_millimetres_stays_a_disc():
    spacing = torch.tensor([1.0, 3.0])
    rows, columns = np.indices((96, 96)) - 47.5
    inside = rows**2 + (3 * columns) ** 2 < 30**2
    image = torch.from_numpy(np.where(inside, 100.0, 0.0)).float().expand(SAMPLES, 1, 96, 96)
    moved = augment_whole(image, spacing.expand(SAMPLES, 2), LIGHTLY, generator())
    for picture in moved[:, 0]:
        points = (picture > picture.max() / 2).nonzero().float() * spacing
        variances = torch.linalg.eigvalsh(torch.cov(points.T))
        assert variances[1] / variances[0] < 1.2
