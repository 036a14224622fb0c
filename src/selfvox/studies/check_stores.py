"""What is refused of a study's scans: too few labels, and test scans that are trained on."""

from __future__ import annotations

from pathlib import Path

from selfvox.data.preparation.leakage import content_hashes, seen_scans
from selfvox.data.preparation.likeness import CoarsePictures
from selfvox.data.preparation.store import Store, open_store
from selfvox.errors import DataError, UsageError
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Finetune
from selfvox.studies.design import fold_numbers, sees_other_scans
from selfvox.studies.plan import Method, Plan
from selfvox.studies.stores import (
    STORE,
    check_leakage,
    encoder_card,
    fold_store,
    pretrain_store,
    split_of,
    trainable_subjects,
)
from selfvox.training.finetune_request import check_options, kind_of_truth


def check_stores(plan: Plan, out: Path) -> None:
    """Refuse test scans that are trained on, and more labels than there are."""
    methods = plan.trained_methods
    trains_unlabelled = any(_pretrains_on_study(plan, method) for method in methods)
    for fold in fold_numbers(plan):
        store = open_store(fold_store(out / STORE, fold))
        _check_labels(plan, store)
        _check_truth(plan, store, out)
        check_duplicates(store, trains_unlabelled)
        for method in methods:
            _check_method_leakage(plan, method, store, out, fold)


def _pretrains_on_study(plan: Plan, method: Method) -> bool:
    """Whether a method is pre-trained on the study's training scans, labelled or not."""
    return isinstance(method.pretrain, dict) and not sees_other_scans(plan, method)


def _check_method_leakage(
    plan: Plan, method: Method, store: Store, out: Path, fold: int | None
) -> None:
    """Refuse an encoder, or scans to pre-train on, that contain test scans of `store`."""
    if isinstance(method.pretrain, str):
        card = encoder_card(Path(method.pretrain))
        check_leakage(store, method.pretrain, card.seen, plan.transductive)
    elif method.pretrain is not None and method.scans_as is not None:
        # test subjects of a split of their own are not pre-trained on
        cases = open_store(pretrain_store(plan, method, out, fold)).without_test_subjects()
        check_leakage(store, method.pretrain["scans"], seen_scans(cases), plan.transductive)


def _check_labels(plan: Plan, store: Store) -> None:
    """Refuse targets, more labels than there are, and two shares that are as many subjects."""
    if not any(case.has_label or case.grade is not None for case in store.cases):
        raise UsageError(
            f"data: {plan.data} has targets, and a study compares segmentations or classes; "
            "compare runs by `selfvox evaluate`"
        )
    split = split_of(store)
    count = len(trainable_subjects(store))
    if plan.labels and max(plan.labels) > count:
        raise UsageError(
            f"labels: {max(plan.labels)} are more than the {count} labelled subjects to train on "
            f"(and {len(split.validation)} for validation, {len(split.test)} for testing); "
            "use fewer, or more scans"
        )
    shares: dict[int, float] = {}
    for share in plan.fractions or ():
        labels = max(1, round(share * count))
        first = shares.setdefault(labels, share)
        if first != share:
            raise UsageError(
                f"fractions: {100 * first:g} % and {100 * share:g} % of {count} subjects to train "
                f"on are both {labels}; remove one"
            )


def _check_truth(plan: Plan, store: Store, out: Path) -> None:
    """Refuse methods and settings that need label images where there are only grades."""
    truth = kind_of_truth(store.cases)
    assert truth is not None
    for method in plan.untrained_methods:
        if truth != "labels":
            raise UsageError(
                f"methods.{method.name}: segments, but {plan.data} has no label images; remove it"
            )
    for method in plan.trained_methods:
        values = {"labelled": plan.data, "out": out, "encoder": "-", **method.finetune}
        try:
            check_options(resolve(Finetune, values), plan.data, truth)
        except UsageError as error:
            raise UsageError(f"methods.{method.name}.finetune.{error}") from None


def check_duplicates(store: Store, trains_unlabelled: bool) -> None:
    """Refuse a test scan that is also trained on, as the same voxels or as a resampled copy.

    Args:
        store: with a split.
        trains_unlabelled: a method is pre-trained on the store's scans without labels too.
    """
    test = set(split_of(store).test)
    training = [
        case
        for case in store.cases
        if case.subject not in test and (trains_unlabelled or case.is_labelled)
    ]
    trained_on = {digest: case.id for case in training for digest in content_hashes(case)}
    pictures = CoarsePictures(case.coarse_picture for case in training)
    for case in store.cases:
        if case.subject not in test:
            continue
        same = content_hashes(case) & trained_on.keys()
        copy = pictures.find(case.coarse_picture)
        if same:
            relation = f"identical to {trained_on[min(same)]}"
        elif copy is not None:
            relation = f"like a resampled copy of {training[copy].id}"
        else:
            continue
        raise DataError(
            f"{case.id}: this test scan is {relation}, which is trained on; remove one, or give "
            "both the same subject in a table"
        )
