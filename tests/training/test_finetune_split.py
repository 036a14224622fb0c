"""Who trains, validates and tests in a fine-tuning: the folds do not depend on what else is set."""

from types import SimpleNamespace

import pytest

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
