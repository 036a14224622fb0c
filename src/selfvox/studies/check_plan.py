"""Checks of a plan as a whole, each section with the settings of its verb."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfvox.errors import UsageError, did_you_mean, list_problems
from selfvox.models.build import check_network
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Atlas, Finetune, PreparationSettings, Prepare, Pretrain
from selfvox.studies.made_elsewhere import check_placeholders
from selfvox.studies.plan import (
    PATH_SETTINGS,
    SCRATCH,
    AtlasMethod,
    Methods2D,
    MethodSettings,
    Plan,
    PredictedMethod,
    baseline_name,
    folder_name,
    kind_of_method,
)
from selfvox.studies.supervised import check_supervised
from selfvox.tasks import task_from_setting

CORPUS = "corpus"  # as the `scans` of a method: the corpus of the plan

# settings that the study decides itself; a plan may give all others of a verb
_PREPARATION = {entry.name for entry in dataclasses.fields(PreparationSettings)}
_DECIDED = {
    Prepare: {"scans", "out", "test", "validation", "seed"},
    Pretrain: {"out", "minutes", "seed", "resume", "devices", "log_to"} | _PREPARATION - {"source"},
    Atlas: {"labelled", "scans", "out", *_PREPARATION},
    Finetune: {
        "labelled",
        "out",
        "encoder",
        "labels",
        "fraction",
        "fold",
        "folds",
        "minutes",
        "seed",
        "subset_seed",
        "resume",
        "log_to",
        *_PREPARATION,
    },
}


class _Problems:
    """What is wrong with a plan, all of it, so that a plan is corrected in one go."""

    def __init__(self) -> None:
        self._messages: dict[str, None] = {}  # each once, in their order

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Note a refusal instead of raising it."""
        try:
            yield
        except UsageError as error:
            self._messages[str(error)] = None

    def report(self) -> None:
        """Raise what was noted.

        Raises:
            UsageError: something was.
        """
        if self._messages:
            raise UsageError(list_problems(list(self._messages)))


def check_plan(plan: Plan, folder: Path) -> Plan:
    """Check every section with the verb it is meant for; returns the plan with absolute paths.

    Args:
        plan: as it was read.
        folder: of the plan file, which relative paths start from.

    Raises:
        UsageError: names all that is wrong.
    """
    problems = _Problems()
    with problems.collect():
        plan = _fill_in_corpus(_add_2d_methods(plan))
    sections = {
        "prepare.": (Prepare, plan.prepare),
        "pretrain.": (Pretrain, plan.pretrain),
        "finetune.": (Finetune, plan.finetune),
    }
    for prefix, (verb, values) in sections.items():
        is_valid = False
        with problems.collect():
            _check_section(verb, values, prefix)
            is_valid = True
        if not is_valid:  # or each method that shares it would be refused too
            emptied: dict[str, Any] = {prefix.rstrip("."): {}}
            plan = dataclasses.replace(plan, **emptied)
    methods = {}
    for name, entry in plan.methods.items():
        with problems.collect():
            methods[name] = _check_method(plan, name, entry, folder)
    with problems.collect():
        _check_distinct(methods)
    problems.report()
    plan = dataclasses.replace(
        plan,
        data=Path(_absolute(folder, plan.data)),
        corpus=None if plan.corpus is None else Path(_absolute(folder, plan.corpus)),
        methods=methods,
        pretrain=_with_absolute_paths(folder, plan.pretrain),
        finetune=_with_absolute_paths(folder, plan.finetune),
    )
    for method in plan.resolved_methods:
        with problems.collect():
            if isinstance(method.pretrain, dict):
                _check_network(method.pretrain, f"methods.{method.name}.pretrain.")
            _check_network(method.finetune, f"methods.{method.name}.finetune.")
    with problems.collect():
        _check_against(plan)
    problems.report()
    return plan


def _check_against(plan: Plan) -> None:
    """Refuse a comparison with a plain `scratch` that only gives the baselines their names."""
    trained = [method.name for method in plan.trained_methods]
    pretrained = [method for method in plan.trained_methods if method.pretrain is not None]
    for method in plan.resolved_methods:
        baselines = {baseline_name(method.name, other.finetune) for other in pretrained}
        has_cells = method.name in trained or method.name in baselines or not method.is_network
        if method.name in plan.against and not has_cells:
            raise UsageError(
                f"against: {method.name} has no cells; the baselines are called "
                f"{' and '.join(sorted(baselines))}, and are compared with anyway; remove it"
            )


def _fill_in_corpus(plan: Plan) -> Plan:
    """Replace the word `corpus` by its path, as scans to pre-train or to fine-tune on."""
    needed = False

    def fill(section: Any, key: str) -> Any:
        nonlocal needed
        if not isinstance(section, Mapping) or section.get(key) != CORPUS:
            return section
        needed = True
        return {**section, key: str(plan.corpus)}

    filled = dataclasses.replace(
        plan,
        pretrain=fill(plan.pretrain, "scans"),
        finetune=fill(plan.finetune, "unlabelled"),
        methods={
            name: {
                key: fill(value, "scans" if key == "pretrain" else "unlabelled")
                for key, value in entry.items()
            }
            if isinstance(entry, Mapping)
            else entry
            for name, entry in plan.methods.items()
        },
    )
    if needed and plan.corpus is None:
        raise UsageError("corpus: is missing, and scans are called so; give --corpus PATH")
    return filled


def _add_2d_methods(plan: Plan) -> Plan:
    """Replace `twins_2d` by methods, after the others."""
    if plan.twins_2d is None:
        return plan
    settings = resolve(Methods2D, plan.twins_2d, prefix="twins_2d.")
    methods = dict(plan.methods)
    for name in settings.methods:
        entry = plan.methods.get(name)
        if not isinstance(entry, Mapping) or not isinstance(entry.get("pretrain"), Mapping):
            hint = did_you_mean(name, plan.methods)
            raise UsageError(f"twins_2d.methods: the study pre-trains no method {name}{hint}")
        finetune = entry.get("finetune") or {}
        # what the section gives for 2D overrides the method, and the slices override both
        methods[f"2D-{name}"] = {
            "pretrain": {**entry["pretrain"], **settings.pretrain, "slices": settings.slices},
            "finetune": {**finetune, **settings.finetune, "slices": settings.slices},
        }
    return dataclasses.replace(plan, methods=methods, twins_2d=None)


def _check_method(plan: Plan, name: Any, entry: Any, folder: Path) -> str | dict[str, Any]:
    """Check one method; returns it in the form that is saved, with absolute paths."""
    place = f"methods.{name}"
    _check_method_name(name, place)
    if entry == SCRATCH:
        return SCRATCH
    if not isinstance(entry, Mapping):
        remedy = "write `pretrain: {task: rotation}` below it"
        raise UsageError(f"{place}: should be `{SCRATCH}` or settings; {remedy}")
    if kind_of_method(entry) is not MethodSettings:
        return _check_without_network(plan, name, entry, folder)
    settings = resolve(MethodSettings, entry, prefix=f"{place}.")
    pretrain = settings.pretrain
    if isinstance(pretrain, dict):
        if "supervised" in pretrain:
            check_supervised(pretrain, f"{place}.pretrain.")
        else:
            _check_pretrain(plan, pretrain, f"{place}.pretrain.")
        pretrain = _with_absolute_paths(folder, pretrain)
    elif pretrain is not None:
        pretrain = _absolute(folder, pretrain)
    if pretrain is not None and name.startswith(SCRATCH):
        raise UsageError(
            f"{place}: is pre-trained, so its name cannot start with {SCRATCH}; rename it"
        )
    finetune = _check_section(
        Finetune,
        {**plan.finetune, **settings.finetune},
        f"{place}.finetune.",
        encoder="none" if pretrain is None else "-",
    )
    if finetune.unlabelled is not None and finetune.teacher == "auto":
        raise UsageError(
            f"{place}.finetune.teacher: auto would make another method of each draw; write atlas, "
            "network or both"
        )
    if pretrain is None and settings.transfer != MethodSettings.transfer:
        raise UsageError(f"{place}.transfer: nothing is pre-trained; remove it")
    if pretrain is None and not settings.finetune:
        return SCRATCH
    checked: dict[str, Any] = {
        "pretrain": pretrain,
        "finetune": _with_absolute_paths(folder, settings.finetune),
    }
    if settings.transfer != MethodSettings.transfer:
        checked["transfer"] = settings.transfer
    return checked


def _check_without_network(
    plan: Plan, name: str, entry: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Check registration alone, or predictions made elsewhere."""
    place = f"methods.{name}"
    if name.startswith(SCRATCH):
        raise UsageError(f"{place}: is not trained from scratch; rename it")
    settings = resolve(kind_of_method(entry), entry, prefix=f"{place}.")
    if isinstance(settings, AtlasMethod):
        _check_section(Atlas, settings.atlas, f"{place}.atlas.")
        return {"atlas": dict(settings.atlas)}
    assert isinstance(settings, PredictedMethod)
    with _located(f"{place}.predictions: "):
        check_placeholders(plan, settings.predictions)
    return {"predictions": _absolute(folder, settings.predictions)}


def _check_method_name(name: Any, place: str) -> None:
    if isinstance(name, str):
        # letters without accents: file systems store these in different ways
        is_word = re.fullmatch(r"\w[\w .+=-]*", name, re.ASCII)
        if is_word and name == name.strip(" ."):
            return
    raise UsageError(
        f"{place}: cannot be the name of a folder; use letters, digits, spaces and - . + ="
    )


def _check_pretrain(plan: Plan, pretrain: dict[str, Any], prefix: str) -> None:
    values = {**plan.pretrain, **pretrain}
    settings = _check_section(Pretrain, values, prefix)
    with _located(prefix):
        task_from_setting(settings.task, settings.weights).check_batch(settings.batch)
    if "source" in values and "scans" not in values:
        raise UsageError(
            f"{prefix}source: is the layout of other scans, but `scans` is missing; "
            "add it, or move `source` to the section prepare"
        )


def _check_distinct(methods: Mapping[str, str | dict[str, Any]]) -> None:
    """Refuse a second plain `scratch`, and two methods with one folder."""
    if sum(entry == SCRATCH for entry in methods.values()) > 1:
        raise UsageError(f"methods: more than one is plain {SCRATCH}; keep one")
    owners: dict[str, str] = {}
    for name in methods:
        owner = owners.setdefault(folder_name(name), name)
        if owner != name:
            raise UsageError(f"methods.{name}: would share its folder with {owner}; rename one")


def _check_section(verb: type, values: Mapping[str, Any], prefix: str, encoder: str = "-") -> Any:
    """Check a section with the settings of its verb; what the study decides must not be in it.

    Args:
        verb: Prepare, Pretrain, Finetune or Atlas.
        values: as the plan gives them.
        prefix: of the section's settings in messages, such as `finetune.`.
        encoder: `none` checks that a fine-tuning from scratch is valid.
    """
    for name in values:
        if name in _DECIDED[verb]:
            section = "the section prepare" if name in _PREPARATION else "the study"
            raise UsageError(f"{prefix}{name}: is decided by {section}; remove it here")
    # required settings that only the study knows
    placeholders = {"scans": "-", "out": "-", "labelled": "-", "encoder": encoder}
    names = {entry.name for entry in dataclasses.fields(verb)}
    required = {name: value for name, value in placeholders.items() if name in names}
    return resolve(verb, {**required, **values}, prefix=prefix)


def _check_network(settings: Mapping[str, Any], prefix: str) -> None:
    """Refuse a misspelt U-Net.

    A network that comes from a run or another library is not checked: a finished study must be
    readable where these are gone.
    """
    network = settings.get("network", "plain")
    name = str(network.get("name", "plain") if isinstance(network, Mapping) else network)
    if os.sep not in name and ":" not in name:
        with _located(prefix):
            check_network(network)


@contextlib.contextmanager
def _located(prefix: str) -> Iterator[None]:
    """Put the place in the plan in front of a refusal."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{prefix}{error}") from None


def _with_absolute_paths(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    paths = {
        name: _absolute(folder, settings[name])
        for name in PATH_SETTINGS
        if settings.get(name) is not None
    }
    return {**settings, **paths}


def _absolute(folder: Path, path: Any) -> str:
    """A path of the plan, independent of the working folder."""
    return str((folder / os.path.expanduser(str(path))).absolute())
