"""Synthetic scans show exactly their labels, and depend on the seed and the number alone."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from selfvox.data import phantom
from selfvox.data.formats.image import read_image, read_label
from selfvox.data.sources import find_dataset

needs_template = pytest.mark.skipif(
    phantom._template_folder() is None, reason="nilearn is not installed"
)


def window_dice(image: np.ndarray, truth: np.ndarray) -> float:
    """The best Dice that any range of brightness reaches."""
    body = image > 0
    edges = np.quantile(image[body], np.linspace(0, 1, 21))
    within = [
        body & (image >= low) & (image <= high)
        for low in edges[:-1]
        for high in edges[1:]
        if high > low
    ]
    return max(2 * (guess & truth).sum() / (guess.sum() + truth.sum()) for guess in within)


@pytest.mark.parametrize("size", [(40, 36), (32, 32, 32), (24, 40, 31)])
def test_the_label_of_shapes_is_what_the_brightness_shows(size):
    for seed in range(5):
        drawn = phantom.draw_shapes(np.random.default_rng(seed), size)
        visible = np.argmin(np.abs(drawn.image[0][..., None] - [500, 250, 750, 0]), -1) % 3
        visible[drawn.image[0] < 120] = 0
        assert (visible == drawn.label).mean() > 0.998
        for value in (1, 2):
            assert ndimage.label(drawn.label == value)[1] == 1


def test_an_ellipsoid_has_the_volume_of_its_radii():
    share = [
        (phantom.draw_shapes(np.random.default_rng(seed), (64, 64, 64)).label == 1).mean()
        for seed in range(10)
    ]
    assert 4 / 3 * np.pi * 0.08**3 < min(share) <= max(share) < 4 / 3 * np.pi * 0.12**3


def test_shapes_have_the_requested_channels_and_spacing():
    drawn = phantom.draw_shapes(
        np.random.default_rng(0), (40, 40, 10), channels=3, spacing_mm=(1, 1, 4)
    )
    assert drawn.image.shape == (3, 40, 40, 10)
    np.testing.assert_array_equal(np.linalg.norm(drawn.affine[:3, :3], axis=0), (1, 1, 4))
    levels = [[channel[drawn.label == value].mean() for value in (1, 2)] for channel in drawn.image]
    assert len({tuple(np.round(pair)) for pair in levels}) == 3
    assert (
        phantom.draw_shapes(np.random.default_rng(0), (9, 9)).affine.tolist() == np.eye(4).tolist()
    )


@needs_template
def test_a_lesion_changes_the_brain_where_its_label_says_and_nowhere_else(monkeypatch):
    for seed in range(3):
        diseased = phantom.draw_brain(np.random.default_rng(seed))
        with monkeypatch.context() as patched:
            patched.setattr(phantom, "_draw_lesion", lambda rng, image, *args, **options: image)
            healthy = phantom.draw_brain(np.random.default_rng(seed))
        assert not (healthy.label == phantom.LESION).any()
        change = np.abs(diseased.image - healthy.image)[0] / healthy.image.max()
        assert np.median(change[diseased.label == phantom.LESION]) > 0.05
        far = ndimage.distance_transform_edt(diseased.label != phantom.LESION) > 3
        assert np.quantile(change[far], 0.9999) < 0.04


@needs_template
def test_brains_contain_both_classes_and_differ_among_subjects():
    brains = [phantom.draw_brain(np.random.default_rng([0, number])) for number in range(6)]
    for drawn in brains:
        assert set(np.unique(drawn.label)) == {0, phantom.WHITE, phantom.LESION}
        brain = drawn.image[0] > 0
        assert 0.15 < brain.mean() < 0.35  # 1.2 to 2.9 litres of box, as heads have
        assert brain[drawn.label > 0].mean() > 0.99
        assert not any(brain.take(end, axis).any() for axis in range(3) for end in (0, -1))
    masks = [drawn.image[0] > 0 for drawn in brains]
    for first, second in itertools.pairwise(masks):
        assert 0.75 < 2 * (first & second).sum() / (first.sum() + second.sum()) < 0.99


@needs_template
def test_brightness_alone_finds_no_lesion():
    brains = [phantom.draw_brain(np.random.default_rng([0, number])) for number in range(4)]
    assert max(window_dice(drawn.image[0], drawn.label == phantom.LESION) for drawn in brains) < 0.5


@pytest.mark.parametrize("kind", ["shapes", pytest.param("brains", marks=needs_template)])
def test_written_scans_are_the_drawn_ones_and_the_same_each_time(kind, tmp_path):
    paths = phantom.write(tmp_path / "a", kind, count=3, labelled=2, seed=5)
    repeated = phantom.write(tmp_path / "b", kind, count=2, seed=5)
    reseeded = phantom.write(tmp_path / "c", kind, count=1, seed=6)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        f"a/images/sub-00{n}.nii.gz" for n in (1, 2, 3)
    ]
    assert find_dataset(tmp_path / "a").classes == phantom.CLASSES[kind]
    assert [case.label is None for case in find_dataset(tmp_path / "a").cases] == [
        False,
        False,
        True,
    ]
    assert sorted(path.name for path in (tmp_path / "a/labels").iterdir()) == [
        "sub-001.nii.gz",
        "sub-002.nii.gz",
    ]
    assert len({path.read_bytes() for path in (*paths, *reseeded)}) == 4
    for first, second in zip(paths, repeated, strict=False):
        assert first.read_bytes() == second.read_bytes()
    draw = phantom.draw_shapes if kind == "shapes" else phantom.draw_brain
    for number, path in enumerate(paths[:2], 1):
        drawn = draw(np.random.default_rng([5, number]))
        stored = read_image(path)
        assert np.abs(stored.data - drawn.image).max() <= 0.5
        np.testing.assert_allclose(stored.affine, drawn.affine)
        label = tmp_path / "a/labels" / path.name
        np.testing.assert_array_equal(read_label(label, stored, {0, 1, 2}), drawn.label)


def test_without_nilearn_shapes_are_written_with_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(phantom.importlib.util, "find_spec", lambda name: None)
    messages = []
    monkeypatch.setattr(phantom, "echo", messages.append)
    (path,) = phantom.write(tmp_path, "brains", count=1)
    assert read_image(path).shape == (32, 32, 32)
    assert "nilearn" in messages[0]


def test_the_template_is_read_without_importing_nilearn():
    code = """
import sys
from selfvox.data import phantom

phantom._template_folder() and phantom._template()
print({"nilearn", "torch"} & set(sys.modules))
"""
    script = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert script.stdout == "set()\n"
