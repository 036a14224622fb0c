"""Mirror images: the mean over all of them, mirrored back."""

import itertools

import pytest
import torch

from selfvox.ops.flips import flips, mean_of_classes, mean_over_flips, named_axes


def random_image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def naive_flip(x, mirrored):
    """Mirror the axes of space, voxel by voxel."""
    space = x.shape[1:]
    result = torch.empty_like(x)
    for at in itertools.product(*map(range, space)):
        source = [n - 1 - i if m else i for i, n, m in zip(at, space, mirrored, strict=True)]
        result[(slice(None), *at)] = x[(slice(None), *source)]
    return result


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_the_mean_over_flips_is_that_of_a_naive_loop(axes):
    image = random_image(2, 3, 4, 5)
    weight = random_image(3, 2, 3, 3, 3)

    def predict(x):
        return torch.conv3d(x[None], weight, padding=1)[0].softmax(0)

    total = torch.zeros(3, 3, 4, 5)
    for mirrored in itertools.product(
        *([False, True] if axis in axes else [False] for axis in range(3))
    ):
        total += naive_flip(predict(naive_flip(image, mirrored)), mirrored)
    expected = total / 2 ** len(axes)
    assert not torch.allclose(predict(image), expected, atol=1e-3)
    assert torch.allclose(mean_over_flips(predict, image, axes), expected, atol=1e-6)
    whole = mean_of_classes(lambda x: predict(x[0])[None, :, 0, 0, 0], image[None], axes)
    corners = [
        predict(naive_flip(image, [axis in chosen for axis in range(3)]))[:, 0, 0, 0]
        for chosen in flips(axes)
    ]
    assert torch.allclose(whole[0], torch.stack(corners).mean(0), atol=1e-6)


def test_a_prediction_that_mirrors_with_the_image_stays_what_it_was():
    image = random_image(2, 3, 4, 5)
    pointwise = random_image(3, 2, 1, 1, 1)

    def predict(x):
        return torch.conv3d(x[None], pointwise)[0].softmax(0)

    assert torch.allclose(mean_over_flips(predict, image, (0, 1, 2)), predict(image), atol=1e-6)


def test_axes_have_the_names_of_volumes_and_pictures():
    assert named_axes(("up-down", "left-right"), 3) == (0, 2)
    assert named_axes(("up-down",), 2) == (0,)
    assert named_axes((), 3) == ()
    assert flips((0, 2)) == [(), (0,), (2,), (0, 2)]
