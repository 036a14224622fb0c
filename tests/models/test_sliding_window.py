"""Whole scans from overlapping windows."""

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference

from selfvox.models.sliding_window import number_of_windows, segment_parts, segment_scan


def identity(x):
    return x


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((20, 13), (8, 8)),
        ((12, 17, 9), (8, 8, 8)),
        ((5, 6, 7), (8, 8, 8)),  # smaller than the window
        ((20, 3), (8, 8)),  # smaller along one axis, and by more than a mirror image
        ((8, 8, 8), (8, 8, 8)),
    ],
)
def test_a_whole_scan_through_the_identity_is_the_scan(shape, window, overlap):
    image = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    actual = segment_scan(identity, image, window, overlap)
    assert torch.allclose(actual, image.softmax(0), atol=1e-5)


def test_a_scan_smaller_than_the_window_is_mirrored_as_crops_are():
    image = torch.randn(1, 5, 3, 8)
    windows = []

    def look(x):
        windows.append(x.clone())  # the sliding window weighs its windows in place
        return x

    segment_scan(look, image, (8, 8, 8))
    expected = np.pad(image.numpy(), [(0, 0), (2, 1), (3, 2), (0, 0)], mode="symmetric")
    assert np.array_equal(windows[0][0].numpy(), expected)


def test_windows_are_weighted_towards_their_centres():
    window = torch.zeros(2, 8, 8)
    window[1, :, -1] = 8.0  # a network that errs at the right edge of its window

    def errs(x):
        return window.repeat(len(x), 1, 1, 1)

    actual = segment_scan(errs, torch.zeros(1, 8, 12), (8, 8), overlap=0.5)
    # column 7 is the edge of the first window and near the centre of the second
    assert actual[1, 2:6, 7].max() < 0.52
    assert actual[1, :, 11].min() > 0.99


@pytest.mark.parametrize(("edge", "batches"), [(16, [2]), (48, [1])])
def test_a_small_volume_alone_on_the_cpu_is_computed_twice(edge, batches):
    batches_seen = []

    def network(x):
        batches_seen.append(len(x))
        return torch.cat([x, -x], 1)

    image = torch.randn(1, edge, edge, edge)
    actual = segment_scan(network, image, (edge,) * 3)
    assert batches_seen == batches
    torch.testing.assert_close(actual, torch.cat([image, -image]).softmax(0))


@pytest.mark.parametrize(("overlap", "windows"), [(0.0, 2), (0.5, 3), (0.75, 5)])
def test_neighbouring_windows_share_what_the_overlap_says(overlap, windows):
    count = 0

    def network(x):
        nonlocal count
        count += len(x)
        return x

    segment_scan(network, torch.randn(1, 16, 8), (8, 8), overlap)
    assert count == windows


def three_classes(x):
    """Logits that depend on the whole window."""
    return torch.cat([x, -x, x * x.mean() - x.amax()], 1)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5])
@pytest.mark.parametrize(
    ("shape", "window", "axis"),
    [
        ((21, 13, 17), (8, 8, 8), None),
        ((9, 8, 30), (8, 8, 8), None),
        ((5, 19, 11), (8, 8), 0),
        ((19, 11, 5), (8, 8), 2),
    ],
)
def test_sums_in_a_moving_slab_are_those_of_monai_over_the_whole_scan(shape, window, axis, overlap):
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    pictures = image[None] if axis is None else image.movedim(1 + axis, 0)
    logits = sliding_window_inference(
        pictures,
        roi_size=window,
        sw_batch_size=2 if axis is None else 16,
        predictor=three_classes,
        overlap=overlap,
        mode="gaussian",
    )
    expected = logits.softmax(1)
    expected = expected[0] if axis is None else expected.movedim(0, 1 + axis)
    actual = segment_scan(three_classes, image, window, overlap, axis)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("axis", "window"), [(None, (8, 8, 8)), (1, (8, 8))])
def test_parts_are_handed_out_once_and_before_the_scan_is_complete(axis, window):
    image = torch.randn(1, 30, 12, 12)
    counted = []
    seen = torch.zeros(image.shape[1:], dtype=torch.int64)
    when = []
    parts = segment_parts(
        three_classes, image, window, slice_axis=axis, count_windows=counted.append
    )
    for part, probabilities in parts:
        seen[part] += 1
        assert probabilities.shape[1:] == seen[part].shape
        when.append(sum(counted))
    assert (seen == 1).all()
    assert sum(counted) == number_of_windows(image.shape[1:], window, 0.5, axis)
    assert when[0] < sum(counted) / 3


def test_the_number_of_windows_is_that_of_a_scan_smaller_than_the_window_too():
    counted = []
    image = torch.randn(1, 5, 9, 20)
    segment_scan(three_classes, image, (8, 8, 8), count_windows=counted.append)
    assert sum(counted) == number_of_windows((5, 9, 20), (8, 8, 8), 0.5)
