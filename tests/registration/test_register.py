import sys

import numpy as np
import pytest
from scipy import ndimage

from selfvox.data.phantom import draw_shapes
from selfvox.errors import DataError, UsageError
from selfvox.ops.metrics import dice_per_class
from selfvox.registration.register import (
    Registration,
    centred_positions,
    folded_share,
    register,
    similarity,
    warp_image,
    warp_label,
)

SIZES = {2: (48, 40), 3: (28, 32, 24)}


def texture(shape, seed=0):
    """A body with smooth structure, dark outside."""
    rng = np.random.default_rng(seed)
    at = np.indices(shape) / np.array(shape).reshape(-1, *(1,) * len(shape)) - 0.45
    inside = (at**2).sum(0) < 0.12
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    image = np.where(inside, 2 + noise / noise.std(), 0).astype(np.float32)
    label = np.where(inside, 1 + (noise > 0), 0).astype(np.uint8)
    return image[None], label


def smooth_field(shape, largest, seed=1):
    rng = np.random.default_rng(seed)
    field = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 6) for _ in shape])
    return field * largest / abs(field).max()


@pytest.mark.parametrize("d", [2, 3])
def test_a_known_smooth_deformation_is_undone(d):
    image, label = texture(SIZES[d])
    truth = np.indices(SIZES[d]) + smooth_field(SIZES[d], 3.0) + 1.5
    fixed = warp_image(image, truth)
    fixed_label = warp_label(label, truth)
    registration = register(image, fixed, (1.0,) * d, (1.0,) * d)
    before = dice_per_class(label, fixed_label, 3)
    after = dice_per_class(warp_label(label, registration.positions()), fixed_label, 3)
    assert min(after) > 0.85
    assert min(after) > max(before) + 0.1
    inside = fixed_label > 0
    error = np.linalg.norm(registration.positions() - truth, axis=0)[inside]
    assert np.median(error) < 0.5  # voxels
    assert folded_share(registration.displacement) == 0


def test_shifts_keep_their_sign_on_every_axis_and_spacings_their_axis():
    image, _ = texture((28, 32, 24))
    moving = np.zeros((1, 34, 40, 30), np.float32)
    moving[:, 5:33, 2:34, 6:30] = image
    every_second = moving[:, :, ::2]
    registration = register(every_second, image, (1.0, 2.0, 1.0), (1.0, 1.0, 1.0))
    centre = np.array([[13.0], [15.0], [11.0]])
    found = registration.matrix[:3, :3] @ centre + registration.matrix[:3, 3:]
    np.testing.assert_allclose(found[:, 0], [13 + 5, (15 + 2) / 2, 11 + 6], atol=0.7)
    np.testing.assert_allclose(np.diag(registration.matrix), [1, 0.5, 1, 1], atol=0.06)


def test_a_scan_registered_to_itself_stays_where_it_is_and_twice_gives_the_same_numbers():
    scan = draw_shapes(np.random.default_rng([0, 1]), (24, 24, 24))
    first = register(scan.image, scan.image, (1.0,) * 3, (1.0,) * 3)
    second = register(scan.image, scan.image, (1.0,) * 3, (1.0,) * 3)
    np.testing.assert_allclose(first.matrix, np.eye(4), atol=0.05)
    assert min(dice_per_class(warp_label(scan.label, first.positions()), scan.label, 3)) > 0.9
    np.testing.assert_array_equal(first.displacement, second.displacement)
    np.testing.assert_array_equal(first.matrix, second.matrix)


def test_image_and_label_move_alike():
    _, label = texture((10, 12, 14))
    shift = Registration(np.eye(4), np.zeros((3, 10, 12, 14), np.float32))
    shift.displacement[0] = 2
    shift.displacement[2] = -4
    image = label[None].astype(np.float32)
    for strength, (along_x, along_z) in {0.5: (1, -2), 1.0: (2, -4)}.items():
        positions = shift.positions(strength)
        naive = np.empty_like(label)
        for x, y, z in np.ndindex(label.shape):
            naive[x, y, z] = label[min(x + along_x, 9), y, max(z + along_z, 0)]
        np.testing.assert_array_equal(warp_label(label, positions), naive)
        np.testing.assert_array_equal(warp_image(image, positions)[0], naive)


def test_the_centres_coincide_before_registration():
    positions = centred_positions((9, 5), (5, 5), (1.0, 2.0), (2.0, 1.0))
    np.testing.assert_allclose(positions[:, 2, 2], [4, 2])
    np.testing.assert_allclose(positions[:, 0, 4], [0, 3])


def test_folding_is_counted_where_the_determinant_is_not_positive():
    displacement = np.zeros((2, 10, 6))
    assert folded_share(displacement) == 0
    displacement[0] = -2 * np.arange(10)[:, None]  # x - 2x runs backwards
    assert folded_share(displacement) == 1
    displacement[1] = -2 * np.arange(6)  # both axes backwards: a turn, not a fold
    assert folded_share(displacement) == 0


def test_similarity_is_the_correlation():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(2, 5, 6))
    second = first + rng.normal(size=(2, 5, 6))
    expected = [np.corrcoef(first[n].ravel(), second[n].ravel())[0, 1] for n in range(2)]
    assert similarity(first, second) == pytest.approx(np.mean(expected))
    assert similarity(first, np.ones_like(first)) == 0


def test_a_thin_scan_is_refused():
    image, _ = texture((4, 20, 20))
    with pytest.raises(DataError, match="fewer than 5 voxels"):
        register(image, image, (1.0,) * 3, (1.0,) * 3)


def test_the_optimiser_prints_nothing(capfd):
    image, _ = texture((16, 16))
    register(image, image, (1.0, 1.0), (1.0, 1.0))
    assert capfd.readouterr() == ("", "")


def test_without_greedy_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "picsl_greedy", None)
    image, _ = texture((16, 16))
    with pytest.raises(UsageError, match=r"selfvox\[atlas\]"):
        register(image, image, (1.0, 1.0), (1.0, 1.0))
