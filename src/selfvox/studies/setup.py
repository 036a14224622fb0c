"""How a study begins: its plan kept, its scans prepared, and refused what would not be honest or could not be done."""

from __future__ import annotations

import dataclasses
import fnmatch
from pathlib import Path

from selfvox.commands.prepare import prepare
from selfvox.data.preparation.leakage import seen_scans
from selfvox.data.preparation.store import Store, open_store
from selfvox.errors import DataError, UsageError
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Prepare
from selfvox.studies import cost, fingerprint
from selfvox.studies import design as layout
from selfvox.studies import plan as plans
from selfvox.studies.plan import Plan
from selfvox.studies.run_once import study_lock
from selfvox.studies.stores import (
    STORE,
    card_of,
    fold_store,
    guard,
    make_folds,
    make_own,
    scans_of,
    split_of,
    trainable,
)


def set_up(plan: Plan, out: Path) -> Plan:
    """Keep the plan in `out`, or see that it is the one which lies there; prepare the scans and check the split.

    Seeds, labels and methods may be added to a plan; what is done stays. A plan may be corrected until something is
    begun, and a method that was refused.

    Returns:
        The plan as it is kept: methods that were added come last.

    Raises:
        UsageError: `out` holds another study that was begun, or something else; or more labels are asked for than there
            are.
        DataError: the scans cannot be used, a test scan is among those that train, or the scans or their split are not
            those that something was done with.
    """
    file = out / "plan.yaml"
    there = [each.name for each in out.iterdir()] if out.exists() else []
    foreign = [name for name in there if name != "locks" and not fnmatch.fnmatch(name, ".*.part.*")]
    # asked last: a process that begins meanwhile writes its plan before all else
    if foreign and not file.exists():
        raise UsageError(f"{out}: is not empty and holds no study; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    with study_lock(out, "plan", wait=True):
        if file.exists():
            plan = plans.as_kept(plan, kept := plans.load_plan(file))
            _make_way(plan, kept, out)
        if not file.exists() or plans.load_plan(file) != plan:
            plans.save_plan(plan, file)
        was = fingerprint.before(out)
        given = {name: value for name, value in plan.prepare.items() if value is not None}
        validation = 0 if plan.folds else plan.validation  # each fold has its own
        how = {"test": plan.test, "validation": validation, "seed": plan.split_seed}
        prepare(resolve(Prepare, {**given, **how, "scans": plan.data, "out": out / STORE}))
        store = open_store(out / STORE)
        if plan.folds:
            make_folds(plan, store)
        for name in layout.methods_to_time(plan):
            make_own(plan, name, store, out)
        fingerprint.keep(out, was)
    _check_split(plan, out)
    return plan


def _check_split(plan: Plan, out: Path) -> None:
    """Refuse test scans that are trained on, and labels that are not there."""
    for fold in [None] if plan.folds is None else range(plan.folds):
        split_store = open_store(fold_store(out / STORE, fold))
        _check_labels(plan, split_store)
        _check_twice(
            split_store, any(_pretrains_on_it(plan, name) for name in layout.methods_to_time(plan))
        )
        for name in layout.methods_to_time(plan):
            found = plans.resolve_method(plan, name).pretrain
            if isinstance(found, str):
                guard(split_store, found, card_of(Path(found))["seen"], plan.transductive)
            elif found is not None and "scans" in found:
                there = seen_scans(open_store(scans_of(plan, name, out, fold)).cases)
                guard(split_store, found["scans"], there, plan.transductive)


def _make_way(plan: Plan, before: Plan, out: Path) -> None:
    """Forget what was prepared and found out for what a plan no longer says; nothing that was trained rests on it.

    While nothing is begun, all may change. Afterwards only a method that was never tried out, as where it was refused:
    no twin, pre-training or store of another method is called by it.

    Raises:
        UsageError: something may rest on it.
        BusyError: another process is finding it out.
    """
    shared = _differing(plan, before)
    changed = [
        name for name, value in before.methods.items() if plan.methods.get(name, value) != value
    ]
    known = cost.timed_methods(out)
    begun = {each.parent.name for each in out.glob("cells/*/*")}
    if begun or any(out.glob("pretrain/*")):
        if shared:
            raise UsageError(f"{out}: holds a study of another plan ({shared}); name another --out")
        for name in changed:
            if name in known:
                raise UsageError(
                    f"{out}: holds a study with another method {name}; name another --out, or rename it"
                )
        own = (("scans", ""), ("labelled", ""), ("labelled", "-folds"))
        stores = [f"{kind}/{plans.folder_name(name)}{of}" for name in changed for kind, of in own]
        # such a one was in the plan before, and left out
        added = plan.methods.keys() - before.methods.keys()
        stale = known & {name for name in added if plans.folder_name(name) not in begun}
    elif shared or changed or known - before.methods.keys():
        stores, stale = [f"{STORE}-folds", "scans", "labelled"], known
        if (plan.data.resolve(), plan.prepare) != (before.data.resolve(), before.prepare):
            stores.append(STORE)
    else:
        return
    if stores or stale:
        with study_lock(out, "trial"):
            cost.forget_methods(out, stale)
            fingerprint.forget(out, *stores)


def _differing(plan: Plan, before: Plan) -> str | None:
    """In what all methods of a plan differ from another's; more labels, seeds and methods are no difference."""
    may_grow = {
        "labels",
        "fractions",
        "seeds",
        "pretrain_seeds",
        "methods",
        "reference",
        "equal_compute",
    }
    for each in dataclasses.fields(Plan):
        was, now = getattr(before, each.name), getattr(plan, each.name)
        if isinstance(now, Path):  # it may have been written otherwise
            was, now = was.resolve(), now.resolve()
        if each.name not in may_grow and was != now:
            return f"{each.name}: {was}, not {now}"
    return None


def _check_labels(plan: Plan, store: Store) -> None:
    """Refuse more labels than there are, and shares that are the same number, before anything is trained."""
    split, there = split_of(store), len(trainable(store))
    if plan.labels and max(plan.labels) > there:
        raise UsageError(
            f"labels: {max(plan.labels)} are asked for, but there are {there} subjects to train on beside "
            f"{len(split.validation)} for validation and {len(split.test)} for testing"
        )
    meant: dict[int, float] = {}
    for share in plan.fractions or ():
        count = max(1, round(share * there))
        if meant.setdefault(count, share) != share:
            both = f"{100 * meant[count]:g} % and {100 * share:g} %"
            raise UsageError(
                f"fractions: {both} of {there} subjects to train on are both {count}; leave one out"
            )


def _check_twice(store: Store, without_labels: bool) -> None:
    """Refuse a test scan whose contents are those of a scan that trains; `without_labels`: such scans train too."""
    test = set(split_of(store).test)
    others = [
        case
        for case in store.cases
        if case.subject not in test and (without_labels or case.is_labelled)
    ]
    trains = {case.image_hash: case.id for case in others}
    for case in store.cases:
        if case.subject in test and case.image_hash in trains:
            raise DataError(
                f"{case.id}: a test scan that is the same as {trains[case.image_hash]}, which trains; "
                "remove one, or give both the same subject in a table"
            )


def _pretrains_on_it(plan: Plan, name: str) -> bool:
    """Whether a method is pre-trained on the study's own scans, with a label or without."""
    return isinstance(plans.resolve_method(plan, name).pretrain, dict) and not layout.other_scans(
        plan, name
    )
