"""The plan of a study: what is compared, on which data, how often."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from selfvox.errors import UsageError
from selfvox.runs.atomic_files import write_text
from selfvox.settings import safe_yaml
from selfvox.settings.options import as_dict, resolve
from selfvox.settings.verbs import AtLeastOne, NotNegative, Prepare

SCRATCH = "scratch"
PATH_SETTINGS = ("scans", "probe")  # settings of `pretrain` that are paths

Seeds = Annotated[tuple[Annotated[int, NotNegative], ...], pydantic.Field(min_length=1)]
Counts = Annotated[tuple[Annotated[int, AtLeastOne], ...], pydantic.Field(min_length=1)]
Share = pydantic.Field(gt=0, le=1, allow_inf_nan=False)
Shares = Annotated[tuple[Annotated[float, Share], ...], pydantic.Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """One entry of `methods` as the plan file has it: how to obtain an encoder and fine-tune it."""

    pretrain: Annotated[
        dict[str, Any] | str | None,
        "settings of `pretrain`, with `scans` unless it uses the study's own; or the path of a "
        "pre-training run; or null: from scratch",
    ]
    finetune: Annotated[dict[str, Any], "settings of `finetune` that override the shared ones"] = (
        field(default_factory=dict)
    )


@dataclass(frozen=True, kw_only=True)
class Methods2D:
    """Methods to run in 2D too, on slices of the same volumes; each adds a method `2D-NAME`."""

    methods: Annotated[tuple[str, ...], "the methods", pydantic.Field(min_length=1)]
    slices: Annotated[Literal["axial", "coronal", "sagittal"], "which slices"] = "axial"
    pretrain: Annotated[
        dict[str, Any], "settings of `pretrain` that differ in 2D, such as crop"
    ] = field(default_factory=dict)
    finetune: Annotated[dict[str, Any], "settings of `finetune` that differ in 2D"] = field(
        default_factory=dict
    )


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of a plan, complete with the settings that all methods share."""

    name: str
    pretrain: dict[str, Any] | str | None  # settings; the path of a run; None: from scratch
    finetune: dict[str, Any]
    pretrained_as: str  # the first method with this pre-training: its name is on the run
    scans_as: str | None = None  # the first method with these `scans`: its name is on their store
    is_plain_scratch: bool = False  # written as `scratch`: only names the baseline of the others


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study: what is compared, on which data, how often."""

    data: Annotated[Path, "scans with labels, in any layout; relative to the plan"]
    methods: Annotated[dict[str, Any], "by name: `pretrain` and `finetune` settings, or `scratch`"]
    validation: Annotated[
        int, "subjects that choose the best weights, the same in every cell", NotNegative
    ]
    test: Annotated[
        int,
        "subjects that are scored, the same in every cell; nothing is trained on them",
        NotNegative,
    ] = 0
    folds: Annotated[
        int | None,
        "instead of test: cross-validation, in which every subject is scored once",
        pydantic.Field(ge=2),
    ] = None
    labels: Annotated[
        Counts | None, "how many labelled subjects to train on, such as [5, 10, 20]"
    ] = None
    fractions: Annotated[Shares | None, "shares of the training subjects, instead of labels"] = None
    seeds: Annotated[
        Seeds, "of the draw of labelled subjects, the decoder's weights and the crops"
    ] = (0, 1, 2, 3, 4)
    pretrain_seeds: Annotated[
        Seeds, "of pre-training; every method is pre-trained once for each"
    ] = (0,)
    prepare: Annotated[dict[str, Any], "settings of `prepare`, such as size or spacing"] = field(
        default_factory=dict
    )
    pretrain: Annotated[dict[str, Any], "settings of `pretrain` that all methods share"] = field(
        default_factory=dict
    )
    finetune: Annotated[dict[str, Any], "settings of `finetune` that all methods share"] = field(
        default_factory=dict
    )
    twins_2d: Annotated[
        dict[str, Any] | None, "methods to run in 2D too: `of`, `slices`, `pretrain`, `finetune`"
    ] = None
    split_seed: Annotated[int, "of the draw of test and validation subjects", NotNegative] = 0
    equal_compute: Annotated[
        bool | Literal["time"],
        "for each method, add a from-scratch twin that is trained for as many more floating-point "
        "operations as the pre-training took; `time`: for as many more seconds",
    ] = False
    transductive: Annotated[bool, "pre-train on the test scans too, without their labels"] = False
    reference: Annotated[
        Literal["brats2018"] | None, "draw the papers' own numbers of this data set next to ours"
    ] = None
    scale: Annotated[float, "share of all training steps to take, for a trial", Share] = 1.0

    @property
    def source(self) -> str:
        """The layout of the study's scans."""
        return str(self.prepare.get("source", Prepare.source))

    @functools.cached_property
    def resolved_methods(self) -> tuple[Method, ...]:
        """All methods, in the plan's order, each with the shared settings filled in."""
        entries = {name: _resolve_entry(self, name) for name in self.methods}
        return tuple(
            Method(
                name=name,
                pretrain=entry.pretrain,
                finetune=entry.finetune,
                pretrained_as=_first_with(entries, "pretrain", entry.pretrain),
                scans_as=_first_with_scans(entries, entry),
                is_plain_scratch=self.methods[name] == SCRATCH,
            )
            for name, entry in entries.items()
        )

    @property
    def trained_methods(self) -> list[Method]:
        """The methods with cells of their own.

        A plain `scratch` has none: it names the baseline, which each method brings with it. Where
        nothing else is in the plan, it is trained itself.
        """
        methods = [method for method in self.resolved_methods if not method.is_plain_scratch]
        return methods or list(self.resolved_methods)

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.fractions is None):
            raise ValueError("labels and fractions: give one of them")
        if (self.test > 0) == (self.folds is not None):
            raise ValueError("test and folds: give one of them; it decides who is scored")
        for name in ("labels", "fractions", "seeds", "pretrain_seeds"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: a value is given twice")
        if not self.methods:
            raise ValueError("methods: is empty; name at least one")


def save_plan(plan: Plan, path: Path) -> None:
    """Save a plan with its defaults filled in."""
    write_text(path, yaml.safe_dump(as_dict(plan), sort_keys=False, allow_unicode=True, width=100))


def load_plan(path: Path) -> Plan:
    """Read what `save_plan` wrote.

    Raises:
        UsageError: the file does not exist, so its folder is no study.
    """
    if not path.is_file():
        raise UsageError(
            f"{path.parent}: contains no study; run `selfvox study PLAN --out {path.parent}` first"
        )
    return resolve(Plan, safe_yaml.read_yaml(path))


def align_with_saved(plan: Plan, saved: Plan) -> Plan:
    """Write a plan like the saved one: the same order of methods, equal paths spelt the same.

    New methods come last. Twins and pre-trainings are named after the first method that needs
    them, and a cell is identified by the settings it was made with, so neither may change.
    """
    names = [name for name in saved.methods if name in plan.methods]
    names += [name for name in plan.methods if name not in saved.methods]
    methods = {name: _spell_like(plan.methods[name], saved.methods.get(name)) for name in names}
    return dataclasses.replace(
        plan, methods=methods, pretrain=_spell_like(plan.pretrain, saved.pretrain)
    )


def _spell_like(value: Any, saved: Any) -> Any:
    """A method, its `pretrain` or a path, spelt as it was saved if it means the same."""
    if value == SCRATCH and saved == {"pretrain": None, "finetune": {}}:
        return saved
    if isinstance(value, str) and isinstance(saved, str):
        is_same = Path(value).resolve() == Path(saved).resolve()
        return saved if is_same else value
    if isinstance(value, Mapping) and isinstance(saved, Mapping):
        keys = [key for key in ("pretrain", *PATH_SETTINGS) if key in value and key in saved]
        return {**value, **{key: _spell_like(value[key], saved[key]) for key in keys}}
    return value


def folder_name(name: str) -> str:
    """A method's or arm's name as the name of its folder."""
    return name.replace(" ", "-")


def scale_steps(settings: Mapping[str, Any], scale: float, default_steps: int) -> dict[str, Any]:
    """Settings of a training with its steps or epochs scaled; at least one step."""
    scaled = dict(settings)
    if scaled.get("epochs") is None:
        # the same in all cells, whatever the scans and the device
        scaled["steps"] = scaled.get("steps") or default_steps
    if scale == 1:
        return scaled
    if scaled.get("epochs") is not None:
        scaled["epochs"] = scaled["epochs"] * scale
    else:
        scaled["steps"] = max(1, round(scaled["steps"] * scale))
    if scaled.get("validate_every") is not None:
        scaled["validate_every"] = max(1, round(scaled["validate_every"] * scale))
    return scaled


def _resolve_entry(plan: Plan, name: str) -> MethodSettings:
    """A method's settings over the shared ones; from scratch, with the network the others share."""
    value = plan.methods[name]
    entry = resolve(
        MethodSettings, {"pretrain": None} if value == SCRATCH else value, prefix=f"methods.{name}."
    )
    pretrain = entry.pretrain
    if isinstance(pretrain, dict):
        pretrain = {**plan.pretrain, **pretrain}
    finetune = {**plan.finetune, **entry.finetune}
    # a network of volumes does not fit slices
    if pretrain is None and "network" in plan.pretrain and not finetune.get("slices"):
        finetune = {"network": plan.pretrain["network"], **finetune}
    return MethodSettings(pretrain=pretrain, finetune=finetune)


def _first_with(entries: Mapping[str, MethodSettings], field_name: str, value: Any) -> str:
    return next(name for name, entry in entries.items() if getattr(entry, field_name) == value)


def _first_with_scans(entries: Mapping[str, MethodSettings], entry: MethodSettings) -> str | None:
    """The first method that pre-trains on the same scans; None for the study's own."""
    if not isinstance(entry.pretrain, dict) or "scans" not in entry.pretrain:
        return None
    scans = entry.pretrain["scans"]
    return next(
        name
        for name, candidate in entries.items()
        if isinstance(candidate.pretrain, dict) and candidate.pretrain.get("scans") == scans
    )
