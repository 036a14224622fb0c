"""Compiled loops against torch's own operations, and where they must not be taken."""

import pytest
import torch

from selfvox.ops import affine, intensity, numba_kernels

SHAPES = [(9, 14), (1, 6), (17, 8, 13), (1, 9, 12), (5, 1, 1), (2, 2, 2)]


def maps(count, d, rng):
    """Any affine map: turned, sheared, flipped, stretched, and moved by several times the image's size."""
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
    actual = numba_kernels.resample_linearly(x, matrices, shifts)
    expected = affine._grid_sample(x, matrices, shifts, "bilinear")
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)
    assert (actual - expected).abs().mean() < 3e-5


def test_images_that_do_not_lie_in_one_piece_are_read_right():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4, 9, 3, 12, 10, generator=rng).transpose(1, 2)[:, :, 1:, ::2]
    matrices, shifts = maps(4, 3, rng)
    assert torch.equal(
        numba_kernels.resample_linearly(x, matrices, shifts),
        numba_kernels.resample_linearly(x.contiguous(), matrices, shifts),
    )


def test_the_map_that_moves_nothing_gives_the_image():
    for shape in SHAPES:
        x, d = torch.randn(2, 2, *shape), len(shape)
        actual = numba_kernels.resample_linearly(x, torch.eye(d).expand(2, d, d), torch.zeros(2, d))
        torch.testing.assert_close(actual, x, atol=1e-6, rtol=0)


def test_two_calls_give_the_same_bits_whatever_the_threads(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    x, (matrices, shifts) = torch.randn(6, 2, 12, 13, 14, generator=rng), maps(6, 3, rng)
    actual = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        actual.append(numba_kernels.resample_linearly(x, matrices, shifts))
    assert all(torch.equal(result, actual[0]) for result in actual)


def test_an_image_that_wants_its_gradient_gets_it():
    x = torch.randn(1, 1, 6, 6, requires_grad=True)
    affine.resample(x, torch.eye(2)[None], torch.full((1, 2), 0.5)).sum().backward()
    assert x.grad is not None


def test_labels_keep_their_values():
    labels = torch.randint(5, (2, 1, 9, 9, 9)).float()
    moved = affine.resample(labels, *maps(2, 3, torch.Generator().manual_seed(0)), mode="nearest")
    assert set(moved.unique().tolist()) <= set(labels.unique().tolist())


def test_where_no_folder_can_keep_it_the_code_is_made_anew(monkeypatch):
    real, cache_flags = numba_kernels.numba.njit, []

    def njit(function, *, cache=False, **options):
        cache_flags.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(function, **options)

    monkeypatch.setattr(numba_kernels.numba, "njit", njit)
    assert numba_kernels._compiled(lambda a: a + 1)(2) == 3
    assert cache_flags == [True, False]


@pytest.mark.parametrize("shape", [(9, 14), (17, 8, 13), (3, 5, 4)])
@pytest.mark.parametrize("size", [3, 5])
def test_the_compiled_correlation_is_that_of_torch_mirrored_edges_included(shape, size):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, *shape, generator=rng).transpose(2, 3)  # not in one piece
    weights = torch.randn(3, size, generator=rng)
    for axis in range(2, x.ndim):
        # torch's own operations are taken in fp64
        expected = intensity._correlate(x.double(), weights.double(), axis)
        torch.testing.assert_close(
            numba_kernels.correlate(x, weights, axis).double(), expected, atol=1e-5, rtol=0
        )
        assert torch.equal(
            intensity._correlate(x, weights, axis), numba_kernels.correlate(x, weights, axis)
        )


def test_a_blurred_image_that_wants_its_gradient_gets_it():
    x = torch.randn(1, 1, 6, 6, requires_grad=True)
    intensity.blur(x, torch.ones(1)).square().sum().backward()
    assert x.grad is not None
