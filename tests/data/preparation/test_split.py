"""Splits by subject: seeded, fixed, nested, and safe on disk."""

import itertools
import json
import random

import pytest

from selfvox.data.preparation import split as splits
from selfvox.data.preparation.split import Split
from selfvox.errors import DataError, UsageError

SUBJECTS = [f"sub-{number:02d}" for number in range(1, 31)]


@pytest.fixture
def split() -> Split:
    return splits.make_split(SUBJECTS, test=8, validation=5, seed=3)


def test_every_subject_has_exactly_one_use(split):
    assert sorted((*split.train, *split.validation, *split.test)) == SUBJECTS
    assert (len(split.train), len(split.validation), len(split.test)) == (17, 5, 8)


def test_the_order_and_repetition_of_the_subjects_do_not_matter(split):
    listed = SUBJECTS * 3
    random.Random(0).shuffle(listed)
    assert splits.make_split(listed, test=8, validation=5, seed=3) == split


def test_another_seed_splits_otherwise(split):
    drawn = {
        splits.make_split(SUBJECTS, test=8, validation=5, seed=seed).test for seed in range(20)
    }
    assert len(drawn) == 20


def test_every_subject_is_tested_equally_often_over_many_seeds():
    times = dict.fromkeys(SUBJECTS, 0)
    for seed in range(600):
        for subject in splits.make_split(SUBJECTS, test=6, validation=0, seed=seed).test:
            times[subject] += 1
    spread = sum(
        (count - 120) ** 2 / (120 * 0.8) for count in times.values()
    )  # about chi-squared, 29 degrees of freedom
    assert 10 < spread < 60


def test_the_test_subjects_do_not_depend_on_the_number_of_validation_subjects(split):
    assert splits.make_split(SUBJECTS, test=8, validation=0, seed=3).test == split.test


def test_a_seed_gives_the_same_split_in_every_version():
    assert splits.make_split(["a", "b", "c", "d", "e"], test=1, validation=1, seed=0) == Split(
        train=("c", "d", "e"), validation=("a",), test=("b",), seed=0
    )


def test_a_larger_subset_contains_every_smaller_one_by_count_and_by_fraction(split):
    for seed in range(10):
        subsets = [splits.choose_subset(split, seed, count=count) for count in range(1, 18)]
        subsets += [
            splits.choose_subset(split, seed, fraction=fraction / 40) for fraction in range(1, 41)
        ]
        subsets.sort(key=len)
        for smaller, larger in itertools.pairwise(subsets):
            assert set(smaller) <= set(larger) <= set(split.train)


def test_subsets_of_two_seeds_differ(split):
    assert len({splits.choose_subset(split, seed, count=5) for seed in range(10)}) == 10


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 1), (0.1, 2), (0.5, 8), (1.0, 17)])
def test_a_fraction_is_rounded_to_whole_subjects_and_never_to_none(split, fraction, count):
    assert splits.choose_subset(split, 0, fraction=fraction) == splits.choose_subset(
        split, 0, count=count
    )


def test_without_a_number_all_training_subjects_are_taken(split):
    assert splits.choose_subset(split, 7) == split.train


@pytest.mark.parametrize(
    "number",
    [
        {"count": 18},
        {"count": 0},
        {"count": -1},
        {"fraction": 0.0},
        {"fraction": 1.1},
        {"fraction": float("nan")},
    ],
)
def test_more_labels_than_there_are_or_none_are_refused(split, number):
    with pytest.raises(UsageError) as refusal:
        splits.choose_subset(split, 0, **number)
    assert "\n" not in str(refusal.value)


def test_a_count_and_a_fraction_together_are_refused(split):
    with pytest.raises(UsageError, match="not both"):
        splits.choose_subset(split, 0, count=3, fraction=0.5)


@pytest.mark.fault("C16", "more test subjects than there are", "refused")
@pytest.mark.parametrize(("test", "validation"), [(30, 0), (20, 10), (-1, 3), (2, -1)])
def test_a_split_that_leaves_nobody_to_train_is_refused(test, validation):
    with pytest.raises(UsageError):
        splits.make_split(SUBJECTS, test=test, validation=validation, seed=0)


def test_a_subject_in_two_parts_is_refused():
    with pytest.raises(DataError, match="ann is in train and in test"):
        Split(train=("ann", "bob"), validation=(), test=("ann",), seed=0)


def test_a_split_is_read_back_as_it_was_written(split, tmp_path):
    splits.write_split(split, tmp_path / "split.json")
    assert splits.read_split(tmp_path / "split.json") == split


def test_a_subject_moved_by_hand_is_noticed_and_a_split_without_checksum_is_not(split, tmp_path):
    path = tmp_path / "split.json"
    splits.write_split(split, path)
    content = json.loads(path.read_text())
    content["train"].append(content["test"].pop())
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="changed since it was saved"):
        splits.read_split(path)
    del content["sha256"]
    path.write_text(json.dumps(content))
    assert len(splits.read_split(path).train) == 18


@pytest.mark.fault("K-man", "a damaged split.json", "refused with the file")
@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("test", ["sub-01", "sub-01"], "twice in test"),
        ("validation", "sub-01", "not a list"),
        ("train", [1, 2], "not a list of subjects"),
        ("seed", "3", "whole number"),
        ("seed", True, "whole number"),
        ("holdout", [], "not a split"),
    ],
)
def test_a_damaged_split_is_refused_in_one_line_that_names_the_file(
    split, tmp_path, key, value, reason
):
    path = tmp_path / "split.json"
    splits.write_split(split, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(DataError, match=reason) as refusal:
        splits.read_split(path)
    assert "split.json" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", ["[]", "{}", "", '{"train": []}', "null"])
def test_a_file_that_is_not_a_split_is_refused(tmp_path, content):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(DataError):
        splits.read_split(tmp_path / "split.json")


GRADES = {
    f"eye-{number:03d}": (0, 0, 0, 2, 2, 1, 3, 4, 2, 0)[number * 7 % 10] for number in range(73)
}


@pytest.mark.parametrize("count", [2, 5, 10])
def test_every_subject_is_tested_in_exactly_one_fold_and_folds_are_alike(count):
    for seed in range(5):
        folds = splits.make_folds(GRADES, count, seed)
        assert sorted(subject for fold in folds for subject in fold) == sorted(GRADES)
        for grade in set(GRADES.values()):
            shares = [sum(GRADES[subject] == grade for subject in fold) for fold in folds]
            assert max(shares) - min(shares) <= 1
        assert max(map(len, folds)) - min(map(len, folds)) <= 1
        assert folds != splits.make_folds(GRADES, count, seed + 1)


def test_folds_do_not_depend_on_the_order_of_the_subjects():
    turned = dict(reversed(GRADES.items()))
    assert splits.make_folds(turned, 5, 0) == splits.make_folds(GRADES, 5, 0)


@pytest.mark.parametrize("count", [0, 1, 74])
def test_an_impossible_number_of_folds_is_refused(count):
    with pytest.raises(UsageError, match="use 2 to 73"):
        splits.make_folds(GRADES, count, 0)


def test_parts_and_subsets_have_the_shares_of_the_classes_and_stay_nested():
    split = splits.make_split(GRADES, test=20, validation=13, seed=1, classes=GRADES)
    subsets = [
        splits.choose_subset(split, 0, count=count, classes=GRADES) for count in range(1, 41)
    ]
    pairs = [(split.test, tuple(GRADES)), *((subset, split.train) for subset in subsets)]
    for subset, subjects in pairs:
        for grade in set(GRADES.values()):
            share = sum(GRADES[subject] == grade for subject in subjects) / len(subjects)
            count = sum(GRADES[subject] == grade for subject in subset)
            assert abs(count - len(subset) * share) < 1.5
    for smaller, larger in itertools.pairwise(subsets):
        assert set(smaller) < set(larger)
