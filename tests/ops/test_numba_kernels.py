"""Compiled loops against torch's own operations, and where they must not be taken."""

import pytest
import torch

from selfvox.ops import intensity, numba_kernels


def test_where_no_folder_can_keep_it_the_code_is_made_again(monkeypatch):
    monkeypatch.setattr(numba_kernels, "private_folder", lambda name: None)
    code = numba_kernels.compiled(lambda a: a + 1)
    assert code(2) == 3
    assert not code.stats.cache_path


@pytest.mark.parametrize("shape", [(9, 14), (17, 8, 13), (1, 5, 2)])
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


@pytest.mark.parametrize("shape", [(9, 14), (17, 8, 13), (1, 5, 4)])
def test_the_compiled_interpolation_of_an_axis_is_that_of_torch(shape):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, *shape, generator=rng).transpose(2, 3)  # not in one piece
    for axis in range(2, x.ndim):
        size = (3, x.shape[axis])
        low, high = torch.randint(x.shape[axis], (2, *size), generator=rng)
        share = torch.rand(size, generator=rng)
        # torch's own operations are taken in fp64
        expected = intensity._interpolate_axis(x.double(), low, high, share, axis)
        actual = numba_kernels.interpolate_axis(x, low, high, share, axis)
        torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=0)
        assert torch.equal(intensity._interpolate_axis(x, low, high, share, axis), actual)


def test_a_blurred_image_that_wants_its_gradient_gets_it():
    x = torch.randn(1, 1, 6, 6, requires_grad=True)
    intensity.blur(x, torch.ones(1)).square().sum().backward()
    assert x.grad is not None
