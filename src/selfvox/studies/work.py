"""The work of a study: stores, pre-trainings and cells, each done once however many processes share the folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selfvox import files
from selfvox.data import split as splits
from selfvox.data import strict_json
from selfvox.data.naming import natural
from selfvox.data.prepare import channels_of, prepare, prepared
from selfvox.data.recipe import Recipe
from selfvox.data.seen import Seen, leaked, seen
from selfvox.data.store import Store, StoredCase, grades, open_store
from selfvox.errors import BusyError, DataError, UsageError
from selfvox.inference import classes
from selfvox.inference.evaluate import evaluate
from selfvox.inference.predict import predict
from selfvox.options import resolve
from selfvox.progress import told_to
from selfvox.settings import Evaluate, Finetune, Predict, Preparation, Prepare, Pretrain
from selfvox.studies import agreement, identity
from selfvox.studies import cells as layout
from selfvox.studies import plan as plans
from selfvox.studies.cells import Cell, Facts
from selfvox.studies.plan import Plan
from selfvox.training.finetune import finetune
from selfvox.training.pretrain import pretrain
from selfvox.weights import load_encoder

FORMAT = 1
STORE = "store"


def begin(plan: Plan, out: Path) -> None:
    """Keep the plan in `out`, or see that it is the one which lies there; prepare the scans and check the split.

    Seeds, labels and methods may be added to a plan; what is done stays.

    Raises:
        UsageError: `out` holds another study, or something else; or more labels are asked for than there are.
        DataError: the scans cannot be used, a test scan is among those that train, or the scans or their split are not
            those that something was done with.
    """
    file = out / "plan.yaml"
    if file.exists():
        _check_same(plan, plans.load(file), out)
    elif out.exists() and any(each.name != "locks" for each in out.iterdir()):
        raise UsageError(f"{out}: is not empty and holds no study; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    with held(out, "plan", wait=True):
        if not file.exists() or plans.load(file) != plan:
            plans.save(plan, file)
        was = identity.before(out)
        given = {name: value for name, value in plan.prepare.items() if value is not None}
        validation = 0 if plan.folds else plan.validation  # each fold has its own
        how = {"test": plan.test, "validation": validation, "seed": plan.split_seed}
        prepare(resolve(Prepare, {**given, **how, "scans": plan.data, "out": out / STORE}))
        store = open_store(out / STORE)
        if plan.folds:
            _make_folds(plan, store)
        for name in layout.needing_facts(plan):
            _stores_of(plan, name, store, out)
        identity.keep(out, was)
    for fold in [None] if plan.folds is None else range(plan.folds):
        split_store = open_store(fold_store(out / STORE, fold))
        check_labels(plan, split_store)
        _check_twice(split_store, any(_pretrains_on_it(plan, name) for name in layout.needing_facts(plan)))
        for name in layout.needing_facts(plan):
            found = plans.method(plan, name).pretrain
            if isinstance(found, str):
                guard(split_store, found, card_of(Path(found))["seen"], plan.transductive)
            elif found is not None and "scans" in found:
                there = seen(open_store(scans_of(plan, name, out, fold)).cases)
                guard(split_store, found["scans"], there, plan.transductive)


def _stores_of(plan: Plan, name: str, store: Store, out: Path) -> None:
    """The stores that a method needs of its own: of other scans, or of the study's by an encoder's recipe."""
    found, folder = plans.method(plan, name).pretrain, scans_of(plan, name, out, None)
    if isinstance(found, dict) and "scans" in found:
        scans, how = Path(found["scans"]), {"source": found.get("source", Preparation.source)}
        # the study's recipe for all, so that methods differ in nothing else
        recipe: Recipe | None = store.recipe
        if channels_of(scans, how["source"]) != len(store.recipe.channel_names):
            recipe, how = None, how | {"size": store.recipe.size, "spacing": store.recipe.spacing_mm}
        prepared(scans, folder, resolve(Preparation, how), recipe=recipe)
    elif isinstance(found, dict) and plan.transductive:
        _link(store, folder)
    elif isinstance(found, str) and store_of(plan, name, out) != STORE:
        own, recipe = out / store_of(plan, name, out), Recipe.from_dict(card_of(Path(found))["recipe"])
        prepared(plan.data, own, resolve(Preparation, {"source": plan.source}), recipe=recipe, need_labels=True)
        if plan.folds:
            _make_folds(plan, open_store(own))
        else:
            shutil.copyfile(store.path / "split.json", own / "split.json")


def _make_folds(plan: Plan, store: Store) -> None:
    """A store for each fold, with a split of its own; the arrays are the store's."""
    assert plan.folds is not None
    subjects = sorted({case.subject for case in store.cases if is_labelled(case)})
    without = sorted({case.subject for case in store.cases} - set(subjects))
    # every fold has about the same share of each grade
    classes = dict.fromkeys(subjects, -1) | grades(store.cases)
    for number, test in enumerate(splits.folds(classes, plan.folds, plan.split_seed)):
        folder = fold_store(store.path, number)
        rest = splits.make(set(subjects) - set(test), 0, plan.validation, plan.split_seed, classes)
        train = (*rest.train, *without)
        folder.mkdir(parents=True, exist_ok=True)
        splits.write(dataclasses.replace(rest, train=train, test=test), folder / "split.json")
        _link(store, folder)


def _link(store: Store, folder: Path) -> None:
    """A store of the same cases, their arrays those of `store`."""
    folder.mkdir(parents=True, exist_ok=True)
    for there in store.path.iterdir():
        if there.is_dir() and not (folder / there.name).is_symlink():
            (folder / there.name).symlink_to(os.path.relpath(there, folder))
    files.write_json(folder / "manifest.json", strict_json.read(store.path / "manifest.json"))


def fold_store(store: Path, fold: int | None) -> Path:
    """Where the store of a fold lies: beside the whole store."""
    return store if fold is None else store.parent / f"{store.name}-folds" / str(fold)


def is_labelled(case: StoredCase) -> bool:
    """Whether it has a label, or a grade."""
    return case.has_label or case.grade is not None


def scans_of(plan: Plan, name: str, out: Path, fold: int | None) -> Path:
    """The store that a method is pre-trained on; one for all methods of the same scans."""
    found = plans.method(plan, name).pretrain
    if isinstance(found, dict) and "scans" in found:
        others = ((other, plans.method(plan, other).pretrain) for other in plan.methods)
        first = next(name for name, each in others if isinstance(each, dict) and each.get("scans") == found["scans"])
        return out / "scans" / plans.folder_name(first)
    return out / "scans" / "all" if plan.transductive else fold_store(out / STORE, fold)


def store_of(plan: Plan, name: str, out: Path) -> str:
    """The store that a method is fine-tuned on, within the study's folder: the study's, unless an encoder differs."""
    found = plans.method(plan, name).pretrain
    if isinstance(found, str):
        recipe = Recipe.from_dict(card_of(Path(found))["recipe"])
        ours = open_store(out / STORE).recipe
        alike = dataclasses.replace(recipe, channel_names=ours.channel_names) == ours
        # other channels are taken by --first-conv, in scans prepared like all others
        if not alike and len(recipe.channel_names) == len(ours.channel_names):
            return f"labelled/{plans.folder_name(name)}"
    return STORE


# cells


def do(plan: Plan, facts: dict[str, Facts], out: Path, cell: Cell, wait: bool = False) -> None:
    """Make a cell, and the pre-training that it needs, unless they are there.

    Raises:
        BusyError: another process is at the cell or its pre-training, and `wait` is not given.
        DataError: a test scan was seen in pre-training.
        SelfvoxError: what the verbs raise.
    """
    found = cell.arm.pretrain
    encoder = "none"
    if isinstance(found, str):
        encoder = found
    elif found is not None:
        assert cell.pretrain_seed is not None
        encoder = str(out / layout.pretraining(plan, cell.arm.method, cell.pretrain_seed, cell.fold))
        pretrain_once(plan, out, cell.arm.method, cell.pretrain_seed, cell.fold, wait)
    fact = facts[cell.arm.method]
    given = layout.finetune_settings(plan, cell, fact)
    settings = {**given, "pretrain": found}

    def work() -> dict[str, Any]:
        run, store = out / cell.folder, open_store(fold_store(out / fact.store, cell.fold))
        known = guard(store, encoder, card_of(Path(encoder))["seen"], plan.transductive) if encoder != "none" else 0
        paths = {"labelled": store.path, "out": run, "encoder": encoder, "resume": (run / "settings.yaml").exists()}
        finetune(resolve(Finetune, {**given, **paths}))
        score(plan, run, store)
        split = splits.read(run / "split.json")
        return {
            "method": cell.arm.name,
            "twin": cell.arm.twin,
            "labels": len(split.train),
            "fraction": len(split.train) / len(trainable(store)),
            "seed": cell.seed,
            "pretrain_seed": cell.pretrain_seed,
            "fold": cell.fold,
            "transductive": known > 0,
            "slices": given.get("slices"),
            "score": _compared(run),
        }

    once(out, cell.folder, settings, work, wait)


def score(plan: Plan, run: Path, store: Store) -> None:
    """Predict the test subjects and score them, into the run's folder; `store` is what the run was trained on."""
    shared: dict[str, Any] = {name: plan.finetune[name] for name in ("device", "precision") if name in plan.finetune}
    how = {"run": run, "scans": plan.data, "out": run / "predictions", "subset": "test", "source": plan.source}
    predict(resolve(Predict, {**how, **shared}))
    evaluate(Evaluate(predictions=run / "predictions", truth=plan.data, out=run / "scores.csv", source=plan.source))
    if (run / "predictions" / classes.TABLE).exists():
        answers = classes.read(run / "predictions" / classes.TABLE)
        graded = {case.id: answers.classes.index(str(case.grade)) for case in store.cases if case.id in answers.found}
        rows = [[case, graded[case], answers.found[case]] for case in sorted(graded, key=natural)]
        files.write_csv(run / "answers.csv", ["case", "true", "predicted"], rows)


def _compared(run: Path) -> str:
    """What of a run's scores is compared with its twin's."""
    if not (run / "answers.csv").exists():
        return "dice"
    ordered = strict_json.read(run / "network" / "network.json")["ordinal"]
    return agreement.KAPPA if ordered else agreement.ACCURACY


def pretrain_once(plan: Plan, out: Path, method: str, seed: int, fold: int | None, wait: bool = False) -> None:
    """Pre-train a method's encoder unless it is there."""
    folder = layout.pretraining(plan, method, seed, fold)
    given = layout.pretrain_settings(plan, method)

    def work() -> dict[str, Any]:
        run = out / folder
        paths = {"scans": scans_of(plan, method, out, fold), "out": run, "resume": (run / "settings.yaml").exists()}
        pretrain(resolve(Pretrain, {**given, **paths, "seed": seed}))
        return {"method": method, "pretrain_seed": seed}

    once(out, folder, {**given, "scans": plans.method(plan, method).pretrain}, work, wait)


def once(
    out: Path, folder: Path, settings: dict[str, Any], work: Callable[[], dict[str, Any]], wait: bool = False
) -> None:
    """Do the work in `folder` unless `done.json` there, which is written last, says that it was.

    What the work says goes to `log.txt`. The checkpoints of what is done are removed: nobody goes on from them.

    Raises:
        BusyError: another process is at it, and `wait` is not given.
        UsageError: it was done with other settings.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    if is_done(out / folder, digest):
        return
    with held(out, str(folder), wait):
        if is_done(out / folder, digest):
            return
        (out / folder).mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with told_to(out / folder / "log.txt"):
            facts = work()
        seconds = round(time.monotonic() - began, 1)
        done = {"format": FORMAT, **facts, "seconds": seconds, "settings_sha256": digest}
        files.write_json(out / folder / "done.json", done)
        shutil.rmtree(out / folder / "checkpoints", ignore_errors=True)


def is_done(folder: Path, digest: str | None = None) -> bool:
    """Whether the work of this folder was done, with these settings.

    Raises:
        UsageError: it was done with others.
    """
    if not (folder / "done.json").exists():
        return False
    if digest not in (None, strict_json.read(folder / "done.json")["settings_sha256"]):
        raise UsageError(f"{folder}: was made with other settings than the plan's; name another --out, or remove it")
    return True


@contextlib.contextmanager
def held(out: Path, name: str, wait: bool = False) -> Iterator[None]:
    """Keep other processes from the same piece of work; the system lifts the lock of a process that died."""
    lock = out / "locks" / name.replace("/", "+")
    lock.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(files.locked(lock))
                break
            except BusyError:
                if not wait:
                    raise
                time.sleep(1)
        yield


# honesty


def guard(store: Store, what: str, by: Seen, transductive: bool) -> int:
    """Refuse what has seen test scans, by their contents or their subjects, unless the plan allows it.

    Args:
        store: has the split.
        what: an encoder, or the scans of a pre-training, for the refusal.
        by: what was seen.
        transductive: allow it.

    Returns:
        How many test scans were seen.

    Raises:
        DataError: some were, and `transductive` is not given.
    """
    split = store.split()
    assert split is not None
    known, count = leaked(store, split, by)
    if known and not transductive:
        raise DataError(
            f"{what}: {len(known)} of {count} test scans, or subjects of their name, are seen in pre-training "
            f"({known[0]} first); pre-train without them, or write `transductive: true` into the plan"
        )
    return len(known)


def _pretrains_on_it(plan: Plan, name: str) -> bool:
    """Whether a method is pre-trained on the study's own scans, with a label or without."""
    return isinstance(plans.method(plan, name).pretrain, dict) and not layout.other_scans(plan, name)


def _check_twice(store: Store, without_labels: bool) -> None:
    """Refuse a test scan whose contents are those of a scan that trains; `without_labels`: such scans train too."""
    split = store.split()
    assert split is not None
    test = set(split.test)
    others = [case for case in store.cases if case.subject not in test and (without_labels or is_labelled(case))]
    trains = {case.image_hash: case.id for case in others}
    for case in store.cases:
        if case.subject in test and case.image_hash in trains:
            raise DataError(
                f"{case.id}: a test scan that is the same as {trains[case.image_hash]}, which trains; "
                "remove one, or give both the same subject in a table"
            )


def trainable(store: Store) -> set[str]:
    """The labelled subjects that may be trained on."""
    split = store.split()
    assert split is not None
    return {case.subject for case in store.cases if is_labelled(case)} & set(split.train)


def check_labels(plan: Plan, store: Store) -> None:
    """Refuse more labels than there are, and shares that are the same number, before anything is trained."""
    split, there = store.split(), len(trainable(store))
    assert split is not None
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
            raise UsageError(f"fractions: {both} of {there} subjects to train on are both {count}; leave one out")


def card_of(encoder: Path) -> dict[str, Any]:
    """What is said of an encoder: of a pre-training run, of its `encoder/` folder, or of a fine-tuning run."""
    return load_encoder(encoder)[1]


def _check_same(plan: Plan, before: Plan, out: Path) -> None:
    """Refuse a plan that differs in what the cells of `out` were made with; more of the same is welcome."""
    may_grow = {"labels", "fractions", "seeds", "pretrain_seeds", "methods", "reference", "equal_compute"}
    for each in dataclasses.fields(Plan):
        was, now = getattr(before, each.name), getattr(plan, each.name)
        if each.name not in may_grow and was != now:
            what = f"{each.name}: {was}, not {now}"
            raise UsageError(f"{out}: holds a study of another plan ({what}); name another --out")
    for name in before.methods.keys() & plan.methods.keys():
        if before.methods[name] != plan.methods[name]:
            raise UsageError(f"{out}: holds a study with another method {name}; name another --out, or rename it")
