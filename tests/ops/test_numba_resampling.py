"""Compiled maps of images and labels against torch's own and against loops over voxels."""

import math

import numpy as np
import pytest
import torch

from selfvox.ops import affine, numba_resampling

SHAPES = [(9, 14), (1, 6), (17, 8, 13), (1, 9, 12), (5, 1, 1), (2, 2, 2)]


def maps(count, d, rng):
    """Affine maps: sheared, mirrored, stretched, and moved by several times the image's size."""
    matrices = 1.5 * torch.randn(count, d, d, generator=rng)
    return matrices, torch.empty(count, d).uniform_(-40, 40, generator=rng)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_compiled_resampling_is_that_of_grid_sample_mirrored_edges_included(
    shape, threads, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, *shape, generator=rng)
    matrices, shifts = maps(40, len(shape), rng)
    actual = numba_resampling.resample_linearly(x, matrices, shifts)
    expected = affine._grid_sample(x, matrices, shifts, "bilinear")
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)
    assert (actual - expected).abs().mean() < 3e-5


def test_images_that_do_not_lie_in_one_piece_are_read_right():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4, 9, 3, 12, 10, generator=rng).transpose(1, 2)[:, :, 1:, ::2]
    matrices, shifts = maps(4, 3, rng)
    assert torch.equal(
        numba_resampling.resample_linearly(x, matrices, shifts),
        numba_resampling.resample_linearly(x.contiguous(), matrices, shifts),
    )


def test_the_map_that_moves_nothing_gives_the_image():
    for shape in SHAPES:
        x, d = torch.randn(2, 2, *shape), len(shape)
        actual = numba_resampling.resample_linearly(
            x, torch.eye(d).expand(2, d, d), torch.zeros(2, d)
        )
        torch.testing.assert_close(actual, x, atol=1e-6, rtol=0)


def test_two_calls_give_the_same_bits_whatever_the_threads(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    x, (matrices, shifts) = torch.randn(6, 2, 12, 13, 14, generator=rng), maps(6, 3, rng)
    actual = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        actual.append(numba_resampling.resample_linearly(x, matrices, shifts))
    assert all(torch.equal(result, actual[0]) for result in actual)


def test_an_image_that_wants_its_gradient_gets_it():
    x = torch.randn(1, 1, 6, 6, requires_grad=True)
    affine.resample(x, torch.eye(2)[None], torch.full((1, 2), 0.5)).sum().backward()
    assert x.grad is not None


def nearest_voxel(position, size, mirror):
    """Of one axis, by the definition; None outside."""
    if not mirror and not -0.5 <= position < size - 0.5:
        return None
    number = math.floor(position + 0.5)
    while not 0 <= number < size:
        number = -1 - number if number < 0 else 2 * size - 1 - number
    return number


@pytest.mark.parametrize("fill", [None, 7])
@pytest.mark.parametrize("shape", [(9, 14), (1, 6), (7, 4, 5), (1, 1, 5)])
def test_the_nearest_voxel_is_that_of_a_loop_over_voxels(shape, fill):
    rng = torch.Generator().manual_seed(0)
    d = len(shape)
    labels = torch.randint(5, (6, 1, *shape), generator=rng, dtype=torch.uint8)
    matrices = torch.randn(6, d, d, generator=rng)
    shifts = torch.empty(6, d).uniform_(-5, 5, generator=rng)
    actual = numba_resampling.resample_nearest(labels, matrices, shifts, fill)
    assert actual.dtype == labels.dtype
    middle = (np.array(shape) - 1) / 2
    compared = 0
    for number in range(6):
        matrix, shift = matrices[number].double().numpy(), shifts[number].double().numpy()
        for voxel in np.ndindex(*shape):
            position = matrix @ (voxel - middle) + middle + shift
            position[np.array(shape) == 1] = 0  # such an axis is the same everywhere
            # halfway between two voxels, rounding decides
            if (np.abs(position + 0.5 - np.round(position + 0.5)) < 1e-4).any():
                continue
            compared += 1
            source = [
                nearest_voxel(at, size, fill is None)
                for at, size in zip(position, shape, strict=True)
            ]
            expected = fill if None in source else labels[(number, 0, *source)]
            assert actual[(number, 0, *voxel)] == expected
    assert compared > 0.9 * labels.numel()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64])
@pytest.mark.parametrize("shape", [(24, 31), (17, 8, 13)])
def test_labels_and_images_are_filled_as_by_torch_whatever_the_type(shape, dtype):
    rng = torch.Generator().manual_seed(0)
    d = len(shape)
    matrices, shifts = maps(8, d, rng)
    matrices = matrices / 2
    shifts = shifts / 4
    labels = torch.randint(1, 250, (8, 1, *shape), generator=rng).to(dtype)
    moved = numba_resampling.resample_nearest(labels, matrices, shifts, 0)
    by_torch = affine._grid_sample(labels, matrices, shifts, "nearest", torch.zeros(8, 1))
    # a position halfway between two voxels may fall to either
    assert (moved.long() != by_torch.long()).float().mean() < 1e-3
    assert 0.05 < (moved.long() == 0).float().mean() < 0.95
    images = torch.randn(8, 2, *shape, generator=rng)
    fill = torch.randn(8, 2, generator=rng)
    actual = numba_resampling.resample_linearly(images, matrices, shifts, fill)
    expected = affine._grid_sample(images, matrices, shifts, "bilinear", fill)
    assert ((actual - expected).abs() > 1e-3).float().mean() < 1e-3
    # what is background in the label is background in the image
    is_filled = (actual == fill.view(8, 2, *(1,) * d)).all(1)
    assert torch.equal(is_filled, (moved[:, 0].long() == 0))


def test_a_picture_is_resampled_as_a_volume_of_one_layer():
    rng = torch.Generator().manual_seed(0)
    pictures = torch.randn(4, 2, 9, 12, generator=rng)
    labels = torch.randint(9, (4, 1, 9, 12), generator=rng, dtype=torch.uint8)
    matrices, shifts = maps(4, 2, rng)
    volume_matrices = torch.eye(3).repeat(4, 1, 1)
    volume_matrices[:, 1:, 1:] = matrices
    volume_shifts = torch.cat([torch.zeros(4, 1), shifts], 1)
    assert torch.equal(
        numba_resampling.resample_linearly(pictures, matrices, shifts),
        numba_resampling.resample_linearly(pictures[:, :, None], volume_matrices, volume_shifts)[
            :, :, 0
        ],
    )
    assert torch.equal(
        numba_resampling.resample_nearest(labels, matrices, shifts, 0),
        numba_resampling.resample_nearest(labels[:, :, None], volume_matrices, volume_shifts, 0)[
            :, :, 0
        ],
    )
