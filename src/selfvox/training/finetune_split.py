"""Who trains, validates and tests in a fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from selfvox.data.preparation.split import (
    Split,
    choose_subset,
    default_validation,
    make_folds,
    make_split,
)
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Finetune
from selfvox.training.downstream import DownstreamTask


def choose_split(
    store: Store, task: DownstreamTask, settings: Finetune, fold: int | None = None
) -> Split:
    """The store's split or a new one, its training subjects reduced to the requested number.

    Args:
        store: the prepared scans.
        task: decides which of them are usable.
        settings: of the verb.
        fold: which of `settings.folds` validates, from 1 on.

    Raises:
        UsageError: more labels, or more folds, than there are subjects.
    """
    cases = [case for case in store.cases if task.usable(case)]
    subjects = {case.subject for case in cases}
    strata = task.strata(cases)
    full = store.split()
    if fold is not None:
        test = () if full is None else full.test
        return _ensemble_split(settings, fold, subjects - set(test), test, strata)
    if settings.fold is not None:
        if full is not None:
            echo(
                f"fold {settings.fold} of all {len(subjects)} subjects; the store's own split is "
                "not used"
            )
        full = _fold_split(settings.fold, subjects, settings.labels, strata)
    elif full is None:
        full = _new_split(subjects, settings.labels, strata)
    usable = Split(
        train=tuple(subject for subject in full.train if subject in subjects),
        validation=tuple(subject for subject in full.validation if subject in subjects),
        test=full.test,
        seed=full.seed,
    )
    seed = settings.seed if settings.subset_seed is None else settings.subset_seed
    chosen = choose_subset(usable, seed, settings.labels, settings.fraction, strata)
    return dataclasses.replace(usable, train=chosen, seed=seed)


def count_validation(subjects: int, labels: int | None) -> int:
    """How many of the labelled subjects validate where the store has no split.

    Args:
        subjects: with a label.
        labels: of them that were requested for training.
    """
    spare = subjects - (labels or 1)
    return max(0, min(spare, default_validation(subjects)))


def cases_of(store: Store, task: DownstreamTask, subjects: Iterable[str]) -> list[StoredCase]:
    """The cases of these subjects that the task can learn from."""
    names = set(subjects)
    return [case for case in store.cases if case.subject in names and task.usable(case)]


def _fold_split(
    fold: str, subjects: set[str], labels: int | None, strata: Mapping[str, int]
) -> Split:
    """One fold is the test set, and a new split is made of the other subjects."""
    number, count = map(int, fold.split("/"))
    # the same folds for every --seed, so that all runs of a fold can be compared
    folds = make_folds(strata or dict.fromkeys(subjects, 0), count, seed=0)
    test = folds[number - 1]
    return dataclasses.replace(_new_split(subjects - set(test), labels, strata), test=test)


def _ensemble_split(
    settings: Finetune,
    fold: int,
    subjects: set[str],
    test: tuple[str, ...],
    strata: Mapping[str, int],
) -> Split:
    """The requested number of subjects is dealt to the folds: one validates, the others train.

    Only test subjects of the store are in no fold: of few labels, none is set aside.
    """
    assert settings.folds is not None
    seed = settings.seed if settings.subset_seed is None else settings.subset_seed
    labelled = Split(train=tuple(sorted(subjects)), validation=(), test=test, seed=seed)
    chosen = choose_subset(labelled, seed, settings.labels, settings.fraction, strata)
    # the same folds for every --seed, as of --fold
    classes = {subject: strata.get(subject, 0) for subject in chosen}
    validation = make_folds(classes, settings.folds, seed=0)[fold - 1]
    train = tuple(subject for subject in chosen if subject not in validation)
    return dataclasses.replace(labelled, train=train, validation=validation)


def _new_split(subjects: set[str], labels: int | None, strata: Mapping[str, int]) -> Split:
    """A fifth of the subjects validate, or fewer, if the requested labels leave fewer."""
    # seed 0: runs of all seeds validate on the same subjects
    return make_split(subjects, 0, count_validation(len(subjects), labels), 0, strata)
