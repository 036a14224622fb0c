"""The axes that `--mirror` names, and the classes that forbid it."""

import pytest

from selfvox.data.sampling.crop_size import SLICE_AXES
from selfvox.errors import UsageError
from selfvox.training.mirror import axis_names, check_sides, mirror_axes


def test_axes_are_named_as_the_images_lie():
    assert axis_names(3) == ("left-right", "front-back", "up-down")
    assert axis_names(3, SLICE_AXES["axial"]) == ("left-right", "front-back")
    assert axis_names(3, SLICE_AXES["coronal"]) == ("left-right", "up-down")
    assert axis_names(3, SLICE_AXES["sagittal"]) == ("front-back", "up-down")
    # rows are numbered from the top, columns from the left
    assert axis_names(2) == ("up-down", "left-right")


def test_a_setting_names_axes():
    names = axis_names(2)
    assert mirror_axes((), names) == ()
    assert mirror_axes(("none",), names) == ()
    assert mirror_axes(("all",), names) == (0, 1)
    assert mirror_axes(("left-right",), names) == (1,)
    assert mirror_axes(("left-right", "up-down"), names) == (0, 1)


def test_an_axis_that_the_images_do_not_have_is_refused():
    with pytest.raises(UsageError, match=r"mirror: .* no axis front-back; use none, all, or some"):
        mirror_axes(("front-back",), axis_names(2))


def test_left_and_right_classes_must_not_be_mirrored_into_each_other():
    names = axis_names(3)
    classes = ["background", "Left hippocampus", "right hippocampus"]
    with pytest.raises(UsageError, match="'Left hippocampus' where 'right hippocampus' is; leave"):
        check_sides((0,), names, classes)
    check_sides((1, 2), names, classes)


@pytest.mark.parametrize(
    "pair",
    [
        ("Left-Hippocampus", "Right-Hippocampus"),
        ("kidney_l", "kidney_R"),
        ("R hippocampus", "L hippocampus"),
        ("lh.precuneus", "rh.precuneus"),
        ("hippocampusRight", "hippocampusLeft"),
        ("leftkidney", "rightkidney"),
        ("L", "R"),
    ],
)
def test_words_for_a_side_are_recognised_however_they_are_joined(pair):
    with pytest.raises(UsageError, match=f"shows '{pair[0]}' where '{pair[1]}' is"):
        check_sides((0,), axis_names(3), ["background", *pair])


def test_a_class_of_one_side_alone_is_warned_of(capsys):
    names = axis_names(3)
    check_sides((0,), names, ["background", "left ventricle", "myocardium", "Kidney-R"])
    printed = capsys.readouterr().err
    assert printed.startswith("warning: left ventricle, Kidney-R: named after one side")
    check_sides((1, 2), names, ["left ventricle"])
    # ventricles of a heart, vertebrae, and words with these letters
    check_sides((0,), names, ["LV", "RV", "L1", "L5", "R1", "l2", "r2", "cleft", "bright", "liver"])
    assert capsys.readouterr().err == ""
