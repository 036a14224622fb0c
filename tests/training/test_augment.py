"""Augmentation moves an image and its label together and draws from the whole of its ranges."""

import numpy as np
import pytest
import torch

from selfvox.training.augment import augment, augment_whole

SAMPLES = 64
EDGE = 24


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def centre(x):
    """The inner third along every axis, where no mirrored edge is seen."""
    return x[(..., *(slice(EDGE // 3, 2 * EDGE // 3),) * (x.ndim - 2))]


@pytest.mark.parametrize("d", [2, 3])
def test_a_bright_cube_stays_on_its_label(d):
    label = torch.zeros(SAMPLES, *(EDGE,) * d, dtype=torch.uint8)
    # off the centre, so that another rotation or zoom moves it to another place
    label[(slice(None), *(slice(4, 12),) * d)] = 4
    image = torch.where(label > 0, 10.0, -10.0)[:, None]
    planes = [(0, 1)] if d == 2 else [(0, 1), (0, 2), (1, 2)]
    moved_image, moved_label = augment(image, label, planes, generator())
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
    assert dice.min() > 0.9


def in_halves(amplitude):
    """One half of each image dark, the other bright: no zoom about the centre changes that."""
    image = torch.full((SAMPLES, 1, EDGE, EDGE), -amplitude)
    image[..., EDGE // 2 :] = amplitude
    return image


def vary(image):
    """Augmented without a rotation."""
    label = torch.zeros(len(image), EDGE, EDGE, dtype=torch.uint8)
    return augment(image, label, [], generator())[0]


def vary_whole(image):
    return augment_whole(image, torch.ones(len(image), 2), generator())


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


def test_whole_scans_are_flipped_along_every_axis_in_half_of_the_cases():
    ramp = torch.arange(EDGE).float() * 10
    # channel c rises along axis c
    channels = torch.stack(torch.meshgrid(ramp, ramp, ramp, indexing="ij"))
    image = channels.expand(SAMPLES, -1, -1, -1, -1)
    moved = centre(augment_whole(image, torch.ones(SAMPLES, 3), generator()))
    slopes = [moved[:, axis].diff(dim=1 + axis).flatten(1).mean(1) for axis in range(3)]
    is_flipped = torch.stack(slopes, 1) < 0
    assert ((is_flipped.float().mean(0) > 0.3) & (is_flipped.float().mean(0) < 0.7)).all()
    assert len({tuple(row) for row in is_flipped.tolist()}) == 8


def test_labelled_crops_are_not_flipped():
    ramp = (torch.arange(EDGE).float() * 10).expand(SAMPLES, 1, EDGE, EDGE)
    label = torch.zeros(SAMPLES, EDGE, EDGE, dtype=torch.uint8)
    moved = centre(augment(ramp, label, [(0, 1)], generator())[0])
    assert (moved[:, 0].diff(dim=2).flatten(1).mean(1) > 0).all()


def test_a_disc_in_millimetres_stays_a_disc():
    spacing = torch.tensor([1.0, 3.0])
    rows, columns = np.indices((96, 96)) - 47.5
    inside = rows**2 + (3 * columns) ** 2 < 30**2
    image = torch.from_numpy(np.where(inside, 100.0, 0.0)).float().expand(SAMPLES, 1, 96, 96)
    moved = augment_whole(image, spacing.expand(SAMPLES, 2), generator())
    for picture in moved[:, 0]:
        points = (picture > picture.max() / 2).nonzero().float() * spacing
        variances = torch.linalg.eigvalsh(torch.cov(points.T))
        assert variances[1] / variances[0] < 1.2
