"""The measurement of each method before its cells are made: a few steps of it are timed."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.flop_counter import FlopCounterMode

from selfvox.commands.finetune import finetune
from selfvox.commands.pretrain import pretrain
from selfvox.data.preparation import split as splits
from selfvox.data.preparation.store import Store, open_store
from selfvox.registration.copies import SECONDS_PER_VOXEL
from selfvox.runs.progress import echo, redirect_output
from selfvox.runs.run_folder import read_metrics
from selfvox.runs.weights import read_network_card
from selfvox.settings.options import resolve
from selfvox.settings.verbs import PRETRAIN_STEPS, Finetune, Pretrain
from selfvox.studies.design import fold_numbers, pretrain_settings
from selfvox.studies.facts import MethodFacts, load_facts, save_facts
from selfvox.studies.plan import Method, Plan, is_frozen
from selfvox.studies.run_once import study_lock
from selfvox.studies.score_run import score_network
from selfvox.studies.stores import (
    STORE,
    encoder_card,
    finetune_store,
    fold_store,
    labelled_cases,
    pretrain_store,
    split_of,
    trainable_subjects,
    unlabelled_store,
)
from selfvox.studies.supervised import supervised_settings
from selfvox.training.pretrain_plan import pretrain_plan
from selfvox.training.pseudo_labels import PASSES
from selfvox.training.schedule import count_steps
from selfvox.training.unlabelled import MOST_SCANS

STEPS = 5  # that are timed
_TEACHING = ("unlabelled", "teacher", "registrations", "rounds")  # estimated instead


def measure_facts(plan: Plan, out: Path) -> dict[str, MethodFacts]:
    """The facts of each method, from `methods.json`; what is missing is measured now.

    Only one process measures; others wait for it.
    """
    methods = [*plan.trained_methods, *plan.untrained_methods]
    with study_lock(out, "trial", wait=True):
        facts = load_facts(out)
        for method in methods:
            saved = facts.get(method.name)
            # operations are counted only where the plan compares by them
            needs_flop = method.is_network and plan.equal_compute is True
            if saved and (saved.step_flop or not needs_flop):
                continue
            if method.is_network:
                echo(f"timing a few steps of {method.name}")
                facts[method.name] = _measure_method(plan, out, method)
            else:
                facts[method.name] = _measure_untrained(plan, out, method)
            save_facts(facts, out)
    return {method.name: facts[method.name] for method in methods}


class _StepCost(NamedTuple):
    """What short runs of a verb measured."""

    step_s: float = 0.0
    rest_s: float = 0.0  # all but the steps: starting, validating, saving
    step_flop: float = 0.0


def _measure_method(plan: Plan, out: Path, method: Method) -> MethodFacts:
    """A method's facts, from short runs in a folder that is removed afterwards."""
    # what a killed process left there is of no use
    folder = out / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    runs = _ShortRuns(folder, count_flop=plan.equal_compute is True)
    first_fold = fold_numbers(plan)[0]
    pretraining = _StepCost()
    steps = 0
    network: dict[str, Any] = {}
    with redirect_output(folder / "log.txt"):
        if isinstance(method.pretrain, dict):
            scans = pretrain_store(plan, method, out, first_fold)
            settings = pretrain_settings(plan, method)
            if method.is_supervised:
                settings = supervised_settings(settings)
                pretraining = _time_finetuning(settings, open_store(scans), runs)
                steps = _supervised_steps(settings, open_store(scans))
            else:
                pretraining = _time_pretraining(settings, scans, runs)
                steps = _pretrain_steps(settings, scans)
            network = {"network": dict(encoder_card(runs.last).network)}
        elif isinstance(method.pretrain, str):
            network = {"network": dict(encoder_card(Path(method.pretrain)).network)}
        store_name = finetune_store(method, out)
        store = open_store(fold_store(out / store_name, first_fold))
        finetuning = _time_finetuning({**method.finetune, **network}, store, runs)
        test_s = _test_seconds(plan, runs.last, store)
        architecture = dict(read_network_card(runs.last).network)
    shutil.rmtree(folder)
    teacher_s = 0.0
    if method.unlabelled_as is not None:
        unlabelled = unlabelled_store(plan, method, out, first_fold)
        teacher_s = _teacher_seconds(method, unlabelled, store, test_s)
    subjects = trainable_subjects(store)
    scans_count = sum(case.subject in subjects for case in labelled_cases(store))
    return MethodFacts(
        network=architecture,
        store=store_name,
        pretrain_steps=steps,
        pretrain_step_s=pretraining.step_s,
        pretrain_step_flop=pretraining.step_flop,
        step_s=finetuning.step_s,
        step_flop=finetuning.step_flop,
        validation_s=finetuning.rest_s,
        test_s=test_s,
        training=len(subjects),
        scans_per_subject=scans_count / len(subjects),
        teacher_s=teacher_s,
    )


def _measure_untrained(plan: Plan, out: Path, method: Method) -> MethodFacts:
    """The facts of a method without a network: how long registration takes, by the voxels."""
    store = open_store(fold_store(out / STORE, fold_numbers(plan)[0]))
    test = set(split_of(store).test)
    scans = [case for case in store.cases if case.subject in test]
    voxels = sum(math.prod(case.shape) for case in scans)
    subjects = trainable_subjects(store)
    return MethodFacts(
        network={},
        store=STORE,
        pretrain_steps=0,
        pretrain_step_s=0.0,
        pretrain_step_flop=0.0,
        step_s=0.0,
        step_flop=0.0,
        validation_s=0.0,
        # of one atlas; of predictions made elsewhere, scoring takes no time worth a forecast
        test_s=voxels * SECONDS_PER_VOXEL if method.atlases else 0.0,
        training=len(subjects),
        scans_per_subject=1.0,
    )


def _teacher_seconds(method: Method, unlabelled: Path, labelled: Store, test_s: float) -> float:
    """Estimated seconds of registrations to unlabelled scans, and of passes over them.

    Args:
        method: fine-tuned on them.
        unlabelled: their store.
        labelled: the store with the test scans.
        test_s: seconds to predict all test scans once.
    """
    settings = resolve(Finetune, {**method.finetune, "labelled": "-", "out": "-", "encoder": "-"})
    cases = open_store(unlabelled).cases
    mean_voxels = sum(math.prod(case.shape) for case in cases) / len(cases)
    seconds = 0.0
    if settings.teacher != "network":
        pairs = min(settings.registrations, len(cases))
        seconds += pairs * mean_voxels * SECONDS_PER_VOXEL
    if settings.teacher in ("network", "both"):
        test = set(split_of(labelled).test)
        scans = sum(case.subject in test for case in labelled.cases)
        one_s = test_s / max(1, scans)
        seconds += settings.rounds * PASSES * min(MOST_SCANS, len(cases)) * one_s
    return seconds


def _time_pretraining(settings: Mapping[str, Any], scans: Path, runs: _ShortRuns) -> _StepCost:
    fixed = {**_without_steps(settings), "scans": scans}
    batch = int(settings.get("batch", Pretrain.batch))
    accumulate = int(settings.get("accumulate", Pretrain.accumulate))

    def run(varied: dict[str, Any]) -> None:
        pretrain(resolve(Pretrain, {**fixed, **varied}), is_alone=True)

    return runs.measure(run, images=batch * accumulate)


def _time_finetuning(settings: Mapping[str, Any], store: Store, runs: _ShortRuns) -> _StepCost:
    """Time fine-tuning from scratch, which takes as long as from an encoder."""
    fixed = {**_without_steps(settings), "labelled": store.path, "encoder": "none"}

    def run(varied: dict[str, Any]) -> None:
        # one validation, at the end, so that the rest of the time is that of one
        finetune(
            resolve(Finetune, {**fixed, **varied, "validate_every": varied["steps"]}), is_alone=True
        )

    return runs.measure(run, images=int(fixed.get("batch", Finetune.batch)))


class _ShortRuns:
    """Short runs of a verb, each in its own folder."""

    def __init__(self, folder: Path, count_flop: bool):
        self.folder = folder
        self.count_flop = count_flop
        self.number = 0

    @property
    def last(self) -> Path:
        """The folder of the last run."""
        return self.folder / str(self.number)

    def measure(self, run: Callable[[dict[str, Any]], Any], images: int) -> _StepCost:
        """Time a step, and all else of a run; count a step's floating-point operations.

        The run's own clock times its steps. The difference between a longer and a shorter run
        would mostly show by how much starting and saving happened to differ, which take longer
        than a few steps.

        Args:
            run: takes the folder and the number of steps.
            images: in a step.
        """
        self._seconds(run, 1)  # the first step of a process is slower
        total_s = self._seconds(run, STEPS)
        images_per_s = read_metrics(self.last)[-1].get("images_per_s")
        # without a speed, as when the last step was skipped, the steps are taken for all of it
        step_s = images / images_per_s if images_per_s else total_s / STEPS
        flop = 0
        if self.count_flop:
            # the difference is a step, without validation
            flop = self._operations(run, 2) - self._operations(run, 1)
        return _StepCost(step_s, max(0.0, total_s - STEPS * step_s), float(flop))

    def _seconds(self, run: Callable[[dict[str, Any]], Any], steps: int) -> float:
        self.number += 1
        began = time.monotonic()
        run({"out": self.last, "steps": steps})
        return time.monotonic() - began

    def _operations(self, run: Callable[[dict[str, Any]], Any], steps: int) -> int:
        with FlopCounterMode(display=False) as counter:
            self._seconds(run, steps)
        return int(counter.get_total_flops())


def _without_steps(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those of a training's length.

    An encoder that is frozen all the time is timed frozen; one that is frozen at first is not.
    """
    excluded = ["steps", "epochs", "validate_every", "warmup", "probe", *_TEACHING]
    if not is_frozen(settings):
        excluded.append("freeze")
    return {name: value for name, value in settings.items() if name not in excluded}


def _pretrain_steps(settings: Mapping[str, Any], scans: Path) -> int:
    """Steps of the pre-training that `pretrain` would plan with these settings."""
    pretraining = resolve(Pretrain, {**settings, "scans": "-", "out": "-"})
    return pretrain_plan(pretraining, open_store(scans)).training.steps


def _supervised_steps(settings: Mapping[str, Any], store: Store) -> int:
    """Steps of a supervised pre-training; a fifth of the subjects validate."""
    epochs = settings.get("epochs")
    labelled = sum(case.is_labelled for case in store.cases)
    labelled -= splits.default_validation(labelled)
    batch = int(settings.get("batch", Finetune.batch))
    return count_steps(int(settings.get("steps") or PRETRAIN_STEPS), epochs, labelled, batch)


def _test_seconds(plan: Plan, run: Path, store: Store) -> float:
    """Seconds to predict and score all test subjects.

    Estimated from one subject and from three: the difference is without the time to start.
    """
    split = splits.read_split(run / "split.json")
    seconds = []
    for count in (1, 3):
        shortened = dataclasses.replace(split, test=split.test[:count])
        splits.write_split(shortened, run / "split.json")
        began = time.monotonic()
        score_network(plan, run, store)
        seconds.append(time.monotonic() - began)
    return seconds[0] + (len(split.test) - 1) * max(0.0, seconds[1] - seconds[0])
