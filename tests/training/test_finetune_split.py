"""Who trains, validates and tests in a fine-tuning: the folds do not depend on what else is set."""

from types import SimpleNamespace

import pytest

from selfvox.data.preparation.split import Split
from selfvox.errors import UsageError
from selfvox.training.finetune_split import choose_split

SUBJECTS = [f"sub-{number:02}" for number in range(12)]
STORE = SimpleNamespace(
    cases=[SimpleNamespace(subject=subject) for subject in SUBJECTS], split=lambda: None
)
TASK = SimpleNamespace(usable=lambda case: True, strata=lambda cases: {})


def fold(number, labels=None, seed=0):
    settings = SimpleNamespace(
        fold=f"{number}/3", labels=labels, fraction=None, seed=seed, subset_seed=None
    )
    return choose_split(STORE, TASK, settings)


def without_split(count, labels=None, seed=0):
    store = SimpleNamespace(cases=STORE.cases[:count], split=lambda: None)
    settings = {"fold": None, "labels": labels, "fraction": None, "subset_seed": None}
    return choose_split(store, TASK, SimpleNamespace(seed=seed, **settings))


@pytest.mark.parametrize(
    ("count", "labels", "validating"),
    [
        (1, None, 0),
        (4, None, 0),
        (5, None, 1),
        (9, None, 1),
        (10, None, 2),
        (10, 9, 1),
        (10, 10, 0),
    ],
)
def test_without_a_split_a_fifth_validates_but_nobody_of_fewer_than_five(count, labels, validating):
    split = without_split(count, labels)
    assert len(split.validation) == validating
    assert len(split.train) == (count - validating if labels is None else labels)
    assert without_split(count, labels, seed=1).validation == split.validation


@pytest.mark.parametrize("labels", [None, 1, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_fold_tests_the_same_subjects_whatever_the_labels_and_the_seed(labels, seed):
    for number in (1, 2, 3):
        assert fold(number, labels, seed).test == fold(number).test


def test_every_subject_is_tested_in_one_fold_and_trains_in_none_of_its_own():
    splits = [fold(number) for number in (1, 2, 3)]
    assert sorted(subject for split in splits for subject in split.test) == SUBJECTS
    for split in splits:
        assert not set(split.test) & {*split.train, *split.validation}


def ensemble(number, store=STORE, **chosen):
    settings = {"folds": 3, "labels": None, "fraction": None, "seed": 0, "subset_seed": None}
    return choose_split(store, TASK, SimpleNamespace(**settings | chosen), number)


@pytest.mark.parametrize("labels", [None, 7])
def test_of_an_ensemble_every_labelled_subject_validates_once_and_trains_otherwise(labels):
    splits = [ensemble(number, labels=labels) for number in (1, 2, 3)]
    everyone = sorted(subject for split in splits for subject in split.validation)
    assert len(everyone) == len(set(everyone)) == labels or everyone == SUBJECTS
    for split in splits:
        assert sorted({*split.train, *split.validation}) == everyone
        assert not set(split.train) & set(split.validation)
        assert split.test == ()


def test_test_subjects_of_the_store_are_in_no_fold_of_an_ensemble():
    full = Split(train=tuple(SUBJECTS[:8]), validation=(), test=tuple(SUBJECTS[8:]), seed=0)
    store = SimpleNamespace(cases=STORE.cases, split=lambda: full)
    for number in (1, 2, 3):
        split = ensemble(number, store)
        assert split.test == full.test
        assert sorted({*split.train, *split.validation}) == SUBJECTS[:8]


def test_more_folds_than_labels_are_refused():
    with pytest.raises(UsageError, match="3 folds of 2 subjects are impossible; use 2 to 2"):
        ensemble(1, labels=2)
