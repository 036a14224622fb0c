"""Resizing and cropping against `F.interpolate` and loops."""

import pytest
import torch
import torch.nn.functional as F

from selfvox.ops import resize


def test_a_random_crop_reaches_every_offset_and_only_those():
    x = torch.arange(6.0)[None, None, :, None].expand(2, 1, 6, 3)
    rng = torch.Generator().manual_seed(0)
    starts = {tuple(resize.random_crop(x, (4, 3), rng)[0, 0, :, 0].tolist()) for _ in range(50)}
    assert starts == {(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5)}


@pytest.mark.parametrize(
    ("shape", "size"), [((4, 7), (8, 20)), ((4, 5, 3), (16, 5, 7)), ((2, 2, 2), (2, 3, 2))]
)
def test_maps_are_enlarged_as_by_interpolate(shape, size):
    x = torch.randn(2, 3, *shape, requires_grad=True)
    actual = resize.enlarge(x, size)
    expected = F.interpolate(x, size, mode="trilinear" if len(size) == 3 else "bilinear")
    assert torch.allclose(actual, expected, atol=1e-5)
    assert torch.autograd.gradcheck(
        lambda x: resize.enlarge(x, size), x.detach().double()[:1].requires_grad_()
    )
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(maps, x, upstream)[0] for maps in (actual, expected)]
    assert torch.allclose(*gradients, atol=1e-4)


def test_maps_are_enlarged_in_fp32_under_autocast_and_keep_their_type():
    x = torch.randn(2, 3, 4, 7)
    with torch.autocast("cpu", torch.bfloat16):
        actual = resize.enlarge(x, (8, 20))
    assert torch.equal(actual, resize.enlarge(x, (8, 20)))
    halved = resize.enlarge(x.bfloat16(), (8, 20))
    assert torch.equal(halved, resize.enlarge(x.bfloat16().float(), (8, 20)).bfloat16())


@pytest.mark.parametrize(
    ("shape", "size"),
    [((6, 8), (3, 8)), ((6, 8), (3, 12)), ((4, 6, 8), (8, 3, 8)), ((4, 4), (4, 4))],
)
def test_shrunk_axes_are_averaged_and_grown_ones_interpolated(shape, size):
    x = torch.randn(2, 1, *shape, dtype=torch.float64)
    expected = x
    for axis, (old, new) in enumerate(zip(shape, size, strict=True), start=2):
        rows = expected.movedim(axis, -1)
        if new < old:
            rows = rows.unflatten(-1, (new, old // new)).mean(-1)
        elif new > old:
            flat = rows.flatten(0, -2)[:, None]
            rows = F.interpolate(flat, new, mode="linear")[:, 0].view(*rows.shape[:-1], new)
        expected = rows.movedim(-1, axis)
    torch.testing.assert_close(resize.resize(x, size), expected)


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 1)])
def test_padding_repeats_the_last_voxel_up_to_the_multiple(shape):
    images = torch.randn(2, 3, *shape)
    padded = resize.pad_to_multiple(images, (4, 4, 2)[: len(shape)])
    assert padded.shape[2:] == (8, 8, 2)[: len(shape)]
    index = [
        torch.arange(edge).clamp(max=old - 1)
        for edge, old in zip(padded.shape[2:], shape, strict=True)
    ]
    expected = images
    for axis, rows in enumerate(index, start=2):
        expected = expected.index_select(axis, rows)
    assert torch.equal(padded, expected)
    assert resize.pad_to_multiple(images, (1,) * len(shape)) is images
