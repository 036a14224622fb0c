"""What pictures share: the colour of a class, its outline, the slice that is shown, the file."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from selfvox import plotting


def volume_of(levels: dict[int, dict[int, int]]) -> np.ndarray:
    """A mask (4, 5, 7) with so many voxels of a class (by value) on a level (by number)."""
    mask = np.zeros((4, 5, 7), np.uint8)
    for level, counts in levels.items():
        values = [value for value, count in counts.items() for _ in range(count)]
        mask[:, :, level].flat[: len(values)] = values
    return mask


def drawn(mask, classes, **options):
    axes = Figure().subplots()
    plotting.outline(axes, mask, classes, **options)
    return axes.collections


def test_the_level_shown_has_most_of_all_classes_and_a_lesion_before_its_organ():
    organ_alone = {1: 20}
    lesion = {1: 2, 2: 8}
    mask = volume_of({1: organ_alone, 3: lesion, 5: {1: 8, 2: 1}})
    # shares of organ and lesion: 20/30 at level 1, 2/30 + 8/9 at level 3, 8/30 + 1/9 at level 5
    assert plotting.informative_level(mask) == 3
    assert plotting.informative_level(np.where(mask == 2, 0, mask)) == 1
    # of many classes, the level with all of them, not that of the highest one alone
    several = {value: 2 for value in range(1, 8)}
    mask = volume_of({2: {9: 20}, 4: {**several, 9: 10}})
    assert plotting.informative_level(mask) == 4


def test_of_an_empty_mask_the_middle_is_shown():
    assert plotting.informative_level(np.zeros((4, 5, 7), np.uint8)) == 3


def test_a_slice_is_shown_with_anterior_up_and_right_to_the_right():
    volume = np.zeros((4, 5, 7))
    volume[3, 4, 2] = 1  # rightmost, most anterior
    shown = plotting.axial_slice(volume, 2)
    assert shown.shape == (5, 4)
    assert shown[0, 3] == 1
    picture = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(plotting.axial_slice(picture, 0), picture)


def test_an_outline_encloses_the_voxels_of_its_class():
    mask = np.zeros((9, 9), int)
    mask[2:5, 3:8] = 2
    (contours,) = drawn(mask, [0, 1, 2])
    (path,) = contours.get_paths()
    # contours run half-way between voxel centres
    assert path.get_extents().extents.tolist() == [2.5, 1.5, 7.5, 4.5]


def test_a_class_has_the_same_colour_whichever_classes_are_outlined():
    mask = np.zeros((9, 9), int)
    mask[1:4, 1:4] = 1
    mask[5:8, 5:8] = 3
    together = [to_hex(contours.get_edgecolor()[0]) for contours in drawn(mask, [1, 3])]
    alone = [to_hex(contours.get_edgecolor()[0]) for contours in drawn(mask, [3])]
    assert together == [plotting.CLASS_COLOURS[0], plotting.CLASS_COLOURS[2]]
    assert alone == together[1:]
    assert plotting.class_colour(6) == plotting.class_colour(1)


def test_a_region_is_outlined_in_the_colour_that_is_given():
    mask = np.eye(5, dtype=int)
    (contours,) = drawn(mask, [1], colour="#000000", linestyle="dashed")
    assert to_hex(contours.get_edgecolor()[0]) == "#000000"
    assert contours.get_linestyle()[0][1] is not None


def test_the_same_figure_is_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        figure = Figure()
        figure.subplots().plot([0, 1])
        plotting.save_figure(figure, tmp_path / "new" / name, dpi=50)
    first, second = sorted((tmp_path / "new").iterdir())
    assert first.read_bytes() == second.read_bytes()
    assert b"matplotlib" not in first.read_bytes().lower()


def test_a_figure_that_fails_leaves_no_file(tmp_path):
    figure = Figure()
    with pytest.raises(ValueError, match="nonsense"):
        plotting.save_figure(figure, tmp_path / "a.nonsense")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_letters_of_a_slice_name_the_directions_of_its_edges(axis):
    directions = (("L", "R"), ("P", "A"), ("I", "S"))  # of low and high voxels, in RAS
    left, top = plotting.plane_letters(axis)
    for letter, edge in ((left, np.s_[:, 0]), (top, np.s_[0, :])):
        (along,) = [number for number, pair in enumerate(directions) if letter in pair]
        volume = np.zeros((4, 5, 6), bool)
        end = directions[along].index(letter) * (volume.shape[along] - 1)
        volume[tuple(end if number == along else slice(None) for number in range(3))] = True
        assert plotting.upright(volume.take(2, axis))[edge].all()
        assert not plotting.upright(volume.take(2, axis)).all()
