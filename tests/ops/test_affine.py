"""Affine maps against scipy and closed forms."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from selfvox.ops import affine, rotations

SHAPES = [(7, 9), (6, 7, 8)]


def random_maps(count, d, rng):
    planes = list(itertools.combinations(range(d), 2))
    angles = torch.empty(count, len(planes)).uniform_(-3, 3, generator=rng)
    matrices = affine.rotation_matrices(angles, planes, d)
    stretch = torch.empty(count, 1, d).uniform_(0.6, 1.3, generator=rng)
    return matrices * stretch, torch.empty(count, d).uniform_(-2, 2, generator=rng)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0)])
def test_resample_equals_scipy_mirrored_edges_included(shape, mode, order):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, *shape, generator=rng)
    matrices, shifts = random_maps(5, len(shape), rng)
    if mode == "nearest":
        # channels as samples: a label has none
        flat = affine.resample_label(
            x.flatten(0, 1), matrices.repeat_interleave(2, 0), shifts.repeat_interleave(2, 0)
        )
        actual = flat.view_as(x)
    else:
        actual = affine.resample(x, matrices, shifts)
    centre = (np.array(shape) - 1) / 2
    for sample, m, shift, images in zip(
        x.numpy(), matrices.numpy(), shifts.numpy(), actual.numpy(), strict=True
    ):
        for channel, image in zip(sample, images, strict=True):
            offset = centre - m @ centre + shift
            expected = ndimage.affine_transform(channel, m, offset, order=order, mode="reflect")
            wrong = np.abs(image - expected) > 1e-4
            # nearest: a position halfway between two voxels may fall to either
            assert wrong.mean() <= (0.01 if mode == "nearest" else 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_resample_by_an_exact_rotation_is_that_rotation(shape, rotation_matrix):
    d = len(shape)
    edge = shape[0]
    x = torch.randn(2, 1, *(edge,) * d)
    for rotation in rotations.rotation_group(d):
        m = torch.tensor(rotation_matrix(rotation), dtype=torch.float32).expand(2, d, d)
        assert torch.allclose(
            affine.resample(x, m, torch.zeros(2, d)), rotation.apply(x), atol=1e-5
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_mixed_precision_does_not_move_voxels(shape):
    def resampled():
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(3, 1, *shape, generator=rng)
        return affine.resample(x, *random_maps(3, len(shape), rng))

    expected = resampled()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resampled(), expected)


def test_rotation_matrices_compose_in_the_order_given():
    angles = torch.tensor([[0.3, -0.5, 1.1]])
    planes = [(0, 1), (0, 2), (1, 2)]
    expected = np.eye(3)
    for (a, b), angle in zip(planes, angles[0].tolist(), strict=True):
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b] = -np.sin(angle)
        turn[b, a] = np.sin(angle)
        expected = turn @ expected
    assert np.allclose(affine.rotation_matrices(angles, planes, 3)[0], expected, atol=1e-6)


@pytest.mark.parametrize("d", [2, 3])
def test_images_in_bf16_are_resampled_as_in_fp32(d):
    x = torch.randn(3, 2, *(24,) * d).bfloat16()
    matrices = affine.rotation_matrices(torch.full((3, 1), 0.4), [(0, 1)], d)
    shifts = torch.rand(3, d) * 4
    torch.testing.assert_close(
        affine.resample(x, matrices, shifts),
        affine.resample(x.float(), matrices, shifts).bfloat16(),
    )


@pytest.mark.parametrize("d", [2, 3])
def test_view_maps_flip_then_zoom_then_rotate_and_stay_inside(d):
    rng = torch.Generator().manual_seed(0)
    shape = (8, 12, 10)[:d]
    planes = list(itertools.combinations(range(d), 2))
    angles = torch.randn(5, len(planes), generator=rng)
    flips = torch.rand(5, d, generator=rng) < 0.5
    position = 2 * torch.rand(5, d, generator=rng) - 1
    scale = torch.tensor([[0.5], [0.8], [1.0], [1.2], [2.0]])
    matrices, shifts = affine.view_maps(shape, angles, planes, flips, scale, position)
    turns = affine.rotation_matrices(angles, planes, d)
    for i in range(5):
        for axis in range(d):
            unit = torch.eye(d)[axis] * scale[i] * (-1 if flips[i, axis] else 1)
            assert torch.allclose(matrices[i] @ torch.eye(d)[axis], turns[i] @ unit, atol=1e-6)
        room = [max(0.0, 1 - float(scale[i])) * edge / 2 for edge in shape]
        assert shifts[i].tolist() == pytest.approx(
            [a * b for a, b in zip(position[i].tolist(), room, strict=True)]
        )
