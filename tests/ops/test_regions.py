"""Regions: declared, made of labels as a loop makes them, and made labels again."""

import numpy as np
import pytest
import torch

from selfvox.errors import UsageError
from selfvox.ops.losses import dice_cross_entropy_regions, soft_dice_regions
from selfvox.ops.regions import (
    check_region_names,
    decode_regions,
    membership_matrix,
    parse_regions,
    region_labels,
    regions_from_json,
    regions_to_json,
)

BRATS = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
CLASSES = (0, 1, 2, 4)


def random_label(shape=(5, 6, 7)):
    return np.random.default_rng(0).choice(np.array(CLASSES, np.uint8), shape)


def test_regions_are_read_as_they_are_declared():
    assert parse_regions("WT=1,2,4;TC=1,4;ET=4") == BRATS
    assert parse_regions(" WT = 4, 2,1 ;TC=1,4; ET=4; ") == BRATS
    assert list(parse_regions("ET=4;WT=1,4")) == ["ET", "WT"]
    assert regions_from_json(regions_to_json(BRATS)) == BRATS


@pytest.mark.parametrize(
    "text",
    [
        "",
        ";",
        "WT",
        "WT=",
        "=1",
        "WT=1,",
        "WT=a",
        "WT=-1",
        "WT=0,1",
        "WT=1;WT=2",
        "A\nB=1",
        "WT=123456",
    ],
)
def test_another_form_is_refused_with_an_example_or_a_remedy(text):
    with pytest.raises(UsageError, match=r"^regions: ") as refusal:
        parse_regions(text)
    assert any(word in str(refusal.value) for word in ("WT=1,2,4", "its own name", "leave it out"))


def test_masks_equal_loops():
    label = random_label()
    masks = membership_matrix(BRATS, 4)[:, label]
    for number, values in enumerate(BRATS.values()):
        for index in np.ndindex(label.shape):
            assert masks[(number, *index)] == (int(label[index]) in values)
    assert torch.equal(
        torch.from_numpy(membership_matrix(BRATS, 4))[:, torch.from_numpy(label).long()],
        torch.from_numpy(masks),
    )


@pytest.mark.parametrize(
    "regions",
    [
        BRATS,
        {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)},
        {"a": (1,), "b": (2,), "c": (3,)},
        {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,), "RC": (4,)},
    ],
)
def test_a_label_made_regions_and_label_again_is_itself(regions):
    values = sorted({0, *(value for value in regions.values() for value in value)})
    label = np.random.default_rng(0).choice(np.array(values, np.uint16), (6, 7, 8))
    labels = region_labels(regions, values)
    assert np.array_equal(
        decode_regions(membership_matrix(regions, max(values))[:, label].astype(float), labels),
        label,
    )


def test_later_regions_are_written_over_earlier_ones_as_a_loop_does():
    rng = np.random.default_rng(1)
    actual = rng.random((3, 4, 5, 6)).astype(np.float32)
    label = decode_regions(torch.from_numpy(actual), region_labels(BRATS, CLASSES))
    for index in np.ndindex(label.shape):
        expected = 0
        for probability, value in zip(actual[(slice(None), *index)], (2, 1, 4), strict=True):
            expected = value if probability > 0.5 else expected
        assert label[index] == expected


@pytest.mark.parametrize(
    ("regions", "classes", "reason"),
    [
        ({"ET": (4,), "WT": (1, 2, 4)}, CLASSES, "ET has no class"),
        ({"A": (1, 2), "B": (2, 1)}, (0, 1, 2), "A has no class"),
        ({"WT": (1, 2)}, (0, 1, 2), "WT has several classes (1, 2)"),
        ({"WT": (1,)}, (0, 1, 2), "class 2 is in none"),
        ({"WT": (1,), "X": (2,)}, (0, 1), "no class 2"),
    ],
)
def test_regions_that_no_label_could_be_made_of_are_refused(regions, classes, reason):
    with pytest.raises(UsageError) as refusal:
        region_labels(regions, classes)
    assert reason in str(refusal.value)


def test_the_loss_of_regions_equals_loops():
    generator = torch.Generator().manual_seed(0)
    logits, target = (
        torch.randn(2, 3, 4, 5, generator=generator),
        torch.rand(2, 3, 4, 5, generator=generator) > 0.5,
    )
    dice, entropy = 0.0, 0.0
    for region in range(3):
        overlap = first_mask = second_mask = 0.0
        for place in np.ndindex(2, 4, 5):
            x, t = (
                float(logits[place[0], region, place[1], place[2]]),
                bool(target[place[0], region, place[1], place[2]]),
            )
            p = 1 / (1 + np.exp(-x))
            overlap, first_mask, second_mask = overlap + p * t, first_mask + p, second_mask + t
            entropy -= np.log(p if t else 1 - p) / logits.numel()
        dice += (2 * overlap + 1e-5) / (first_mask + second_mask + 1e-5) / 3
    assert float(soft_dice_regions(logits, target)) == pytest.approx(-dice, rel=1e-5)
    assert float(dice_cross_entropy_regions(logits, target)) == pytest.approx(
        entropy - dice, rel=1e-5
    )


def test_a_region_that_is_empty_and_not_found_scores_one():
    logits = torch.full((1, 1, 8), -50.0)
    assert float(
        soft_dice_regions(logits, torch.zeros(1, 1, 8, dtype=torch.bool))
    ) == pytest.approx(-1)


def test_a_region_is_not_called_like_a_class_of_other_voxels():
    names = {0: "background", 1: "kidney", 2: "tumour"}
    check_region_names({"tumour": (2,), "both": (1, 2)}, names)
    with pytest.raises(UsageError, match=r"kidney is the name of class 1 too.*'whole kidney'"):
        check_region_names({"kidney": (1, 2), "tumour": (2,)}, names)
