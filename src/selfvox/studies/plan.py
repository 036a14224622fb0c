"""The plan of a study: what is compared, on which data, how often."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from selfvox.errors import did_you_mean
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Atlas, AtLeastOne, NotNegative, Prepare

SCRATCH = "scratch"
# settings of `pretrain` and of `finetune` that are paths
PATH_SETTINGS = ("scans", "probe", "unlabelled")

Seeds = Annotated[tuple[Annotated[int, NotNegative], ...], pydantic.Field(min_length=1)]
Counts = Annotated[tuple[Annotated[int, AtLeastOne], ...], pydantic.Field(min_length=1)]
Share = pydantic.Field(gt=0, le=1, allow_inf_nan=False)
Shares = Annotated[tuple[Annotated[float, Share], ...], pydantic.Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """A network in the plan's `methods`: how to obtain an encoder and fine-tune it."""

    pretrain: Annotated[
        dict[str, Any] | str | None,
        "settings of `pretrain`, with `scans` unless it uses the study's own; with "
        "`supervised: tissues` instead of a task; or the path of a run; or null: from scratch",
    ]
    finetune: Annotated[dict[str, Any], "settings of `finetune` that override the shared ones"] = (
        field(default_factory=dict)
    )
    transfer: Annotated[
        Literal["all", "encoder"],
        "what is taken from the pre-training: all (with the decoder, which masked and genesis "
        "train too), or the encoder alone",
    ] = "all"


@dataclass(frozen=True, kw_only=True)
class AtlasMethod:
    """Registration alone in the plan's `methods`: the drawn subjects' labels, without a network."""

    atlas: Annotated[dict[str, Any], "settings of `atlas`, such as {atlases: 3}; {}: its defaults"]


@dataclass(frozen=True, kw_only=True)
class PredictedMethod:
    """Predictions made elsewhere in the plan's `methods`, which are only scored."""

    predictions: Annotated[
        str,
        "folder of label files, named like the scans; {labels} or {percent}, {seed} and {fold} in "
        "it stand for those of each cell",
    ]


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
    transfer: str = "all"
    scans_as: str | None = None  # the first method with these `scans`: its name is on their store
    # the first method with these `unlabelled` scans: its name is on their store
    unlabelled_as: str | None = None
    is_plain_scratch: bool = False  # written as `scratch`: names the baseline of the others too
    atlases: int | None = None  # of registration alone: at most so many labelled scans vote
    predictions: str | None = None  # of predictions made elsewhere: their folder, with {labels}

    @property
    def is_network(self) -> bool:
        """Whether something is trained."""
        return self.atlases is None and self.predictions is None

    @property
    def is_supervised(self) -> bool:
        """Whether it is pre-trained on automatic labels, by fine-tuning."""
        return isinstance(self.pretrain, dict) and "supervised" in self.pretrain

    @property
    def has_draws(self) -> bool:
        """Whether it differs by the drawn subjects: not one folder of predictions for all seeds."""
        return self.predictions is None or "{seed}" in self.predictions


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study: what is compared, on which data, how often."""

    data: Annotated[Path, "scans with labels, in any layout; relative to the plan"]
    methods: Annotated[dict[str, Any], "by name: `pretrain` and `finetune` settings, or `scratch`"]
    validation: Annotated[
        int,
        "subjects to validate on, the same in every cell; they choose weights by `keep: best`",
        NotNegative,
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
    corpus: Annotated[
        Path | None, "other scans to pre-train on, for methods with `scans: corpus`"
    ] = None
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
    against: Annotated[
        tuple[str, ...], "methods that all others are compared with too, such as registration alone"
    ] = ()
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
        networks = {
            name: _resolve_network(self, name)
            for name, entry in self.methods.items()
            if kind_of_method(entry) is MethodSettings
        }
        return tuple(
            self._network(name, networks)
            if name in networks
            else _without_network(name, self.methods[name])
            for name in self.methods
        )

    def _network(self, name: str, networks: Mapping[str, MethodSettings]) -> Method:
        entry = networks[name]
        return Method(
            name=name,
            pretrain=entry.pretrain,
            finetune=entry.finetune,
            pretrained_as=_first_with(networks, "pretrain", entry.pretrain),
            transfer=entry.transfer,
            scans_as=_first_with_path(networks, "pretrain", "scans", entry),
            unlabelled_as=_first_with_path(networks, "finetune", "unlabelled", entry),
            is_plain_scratch=self.methods[name] == SCRATCH,
        )

    @property
    def trained_methods(self) -> list[Method]:
        """The networks with cells of their own.

        A plain `scratch` has none where a pre-trained method brings it as its baseline.
        """
        networks = [method for method in self.resolved_methods if method.is_network]
        pretrained = [method.finetune for method in networks if method.pretrain is not None]
        return [
            method
            for method in networks
            if not method.is_plain_scratch
            # named after the method itself, or after the settings that all methods share
            or {baseline_name(method.name, finetune) for finetune in pretrained}.isdisjoint(
                {method.name, baseline_name(method.name, method.finetune)}
            )
        ]

    @property
    def untrained_methods(self) -> list[Method]:
        """Registration alone, and predictions made elsewhere."""
        return [method for method in self.resolved_methods if not method.is_network]

    def __post_init__(self) -> None:
        problems = list(self._broken_rules())
        if problems:
            raise ValueError("; ".join(problems))

    def _broken_rules(self) -> Iterator[str]:
        """What is wrong between settings that are each valid."""
        if (self.labels is None) == (self.fractions is None):
            yield "labels and fractions: give one of them"
        if (self.test > 0) == (self.folds is not None):
            yield "test and folds: give one of them; it decides who is scored"
        for name in ("labels", "fractions", "seeds", "pretrain_seeds"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                yield f"{name}: a value is given twice"
        if not self.methods:
            yield "methods: is empty; name at least one"
        for name in self.against:
            if name not in self.methods:
                yield f"against: no method {name}{did_you_mean(name, self.methods)}"


def baseline_name(scratch: str, finetune: Mapping[str, Any]) -> str:
    """The name of the from-scratch baseline of a fine-tuning, after the plain one's."""
    name = scratch
    if finetune.get("slices"):
        name = f"2D-{name}"
    if finetune.get("unlabelled"):
        name = f"{name} unlabelled"
    return f"{name} frozen" if is_frozen(finetune) else name


def is_frozen(finetune: Mapping[str, Any]) -> bool:
    """Whether the encoder is never trained."""
    return finetune.get("freeze") == "always"


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


def kind_of_method(
    entry: Any,
) -> type[MethodSettings] | type[AtlasMethod] | type[PredictedMethod]:
    """The settings that an entry of `methods` has, by its first key."""
    if isinstance(entry, Mapping):
        if "atlas" in entry:
            return AtlasMethod
        if "predictions" in entry:
            return PredictedMethod
    return MethodSettings


def _without_network(name: str, entry: Mapping[str, Any]) -> Method:
    """Registration alone, or predictions made elsewhere."""
    kind = kind_of_method(entry)
    settings: Any = resolve(kind, entry, prefix=f"methods.{name}.")
    if kind is AtlasMethod:
        atlases = int(settings.atlas.get("atlases", Atlas.atlases))
        return Method(name=name, pretrain=None, finetune={}, pretrained_as=name, atlases=atlases)
    return Method(
        name=name,
        pretrain=None,
        finetune={},
        pretrained_as=name,
        predictions=settings.predictions,
    )


def _resolve_network(plan: Plan, name: str) -> MethodSettings:
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
    return MethodSettings(pretrain=pretrain, finetune=finetune, transfer=entry.transfer)


def _first_with(entries: Mapping[str, MethodSettings], field_name: str, value: Any) -> str:
    return next(name for name, entry in entries.items() if getattr(entry, field_name) == value)


def _first_with_path(
    entries: Mapping[str, MethodSettings], section: str, key: str, entry: MethodSettings
) -> str | None:
    """The first method with the same path at a key of a section; None where it has none."""
    path = _value_at(entry, section, key)
    if path is None:
        return None
    return next(name for name in entries if _value_at(entries[name], section, key) == path)


def _value_at(entry: MethodSettings, section: str, key: str) -> Any:
    settings = getattr(entry, section)
    return settings.get(key) if isinstance(settings, Mapping) else None
