"""What a study is to do: a YAML file, checked before anything is done."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from selfvox.errors import UsageError, did_you_mean
from selfvox.models.build import check_network
from selfvox.runs.atomic_files import write_text
from selfvox.settings import safe_yaml
from selfvox.settings.options import as_dict, resolve
from selfvox.settings.verbs import (
    AtLeastOne,
    Finetune,
    NotNegative,
    PreparationSettings,
    Prepare,
    Pretrain,
)
from selfvox.tasks import task_from_setting

PRESETS = Path(__file__).parent / "presets"
SCRATCH = "scratch"
PATHS = ("scans", "probe")  # among the settings of `pretrain`
Seeds = Annotated[tuple[Annotated[int, NotNegative], ...], pydantic.Field(min_length=1)]
Counts = Annotated[tuple[Annotated[int, AtLeastOne], ...], pydantic.Field(min_length=1)]
Share = pydantic.Field(gt=0, le=1, allow_inf_nan=False)
Shares = Annotated[tuple[Annotated[float, Share], ...], pydantic.Field(min_length=1)]

# what the study itself decides; the rest of the verbs' settings may be given
_PREPARATION = {each.name for each in dataclasses.fields(PreparationSettings)}
_OURS_PREPARE = {"scans", "out", "test", "validation", "seed"}
_OURS_PRETRAIN = {"out", "seed", "resume", "devices"} | _PREPARATION - {"source"}
_OURS_FINETUNE = {
    "labelled",
    "out",
    "encoder",
    "labels",
    "fraction",
    "fold",
    "seed",
    "subset_seed",
    "resume",
}
_OURS_FINETUNE |= _PREPARATION


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to come to an encoder, and to fine-tune it."""

    pretrain: Annotated[
        dict[str, Any] | str | None,
        "settings of `pretrain`, with `scans` where those are not the study's own; or the path of a pre-training run; "
        "or null: from scratch",
    ]
    finetune: Annotated[
        dict[str, Any], "settings of `finetune` that differ from the shared ones"
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Twins2D:
    """Methods done in 2D too, on slices of the same volumes; each is a method `2D-NAME` of its own."""

    of: Annotated[tuple[str, ...], "the methods", pydantic.Field(min_length=1)]
    slices: Annotated[Literal["axial", "coronal", "sagittal"], "which slices"] = "axial"
    pretrain: Annotated[
        dict[str, Any], "settings of `pretrain` that are others in 2D, such as crop"
    ] = field(default_factory=dict)
    finetune: Annotated[dict[str, Any], "settings of `finetune` that are others in 2D"] = field(
        default_factory=dict
    )


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
        "instead of test: every subject is scored once, by cells that were trained without its fold",
        pydantic.Field(ge=2),
    ] = None
    labels: Annotated[
        Counts | None, "how many labelled subjects to train on, such as [5, 10, 20]"
    ] = None
    fractions: Annotated[Shares | None, "shares of the training subjects, instead of labels"] = None
    seeds: Annotated[
        Seeds, "of the draw of labelled subjects, the decoder's weights and the crops"
    ] = (0, 1, 2)
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
        dict[str, Any] | None, "methods to do in 2D too: `of`, `slices`, `pretrain`, `finetune`"
    ] = None
    split_seed: Annotated[int, "of the draw of test and validation subjects", NotNegative] = 0
    equal_compute: Annotated[
        bool | Literal["time"],
        "beside each method, a from-scratch twin that is trained on for as many floating-point operations as the "
        "pre-training took; `time`: for as many seconds",
    ] = False
    transductive: Annotated[bool, "pre-train on the test scans too, without their labels"] = False
    reference: Annotated[
        Literal["brats2018"] | None, "draw the papers' own numbers of this data set beside ours"
    ] = None
    scale: Annotated[float, "share of all training steps that is taken, for a trial", Share] = 1.0

    @property
    def source(self) -> str:
        """How the study's scans are laid out."""
        return str(self.prepare.get("source", Prepare.source))

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.fractions is None):
            raise ValueError("labels and fractions: give one of them")
        if (self.test > 0) == (self.folds is not None):
            raise ValueError("test and folds: give one of them, so that there is somebody to score")
        for name in ("labels", "fractions", "seeds", "pretrain_seeds"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: a value is given twice")
        if not self.methods:
            raise ValueError("methods: is empty; name at least one")


def preset_names() -> list[str]:
    """The plans that come with selfvox."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_plan(plan: str, data: Path | None = None, scale: float = 1.0) -> Plan:
    """Read a plan file, or a plan that comes with selfvox, and check all of it.

    Args:
        plan: path of a YAML file, or the name of a preset.
        data: in place of the plan's data.
        scale: in place of the plan's scale, unless 1.

    Raises:
        UsageError: there is no such plan, or something in it is unknown, missing or cannot be.
    """
    path = Path(os.path.expanduser(plan))
    if not path.is_file():
        preset = PRESETS / f"{plan}.yaml"
        if plan not in preset_names():
            near = did_you_mean(plan, preset_names())
            raise UsageError(f"{plan}: neither a plan's file nor one that comes with selfvox{near}")
        path = preset
    given = safe_yaml.read_yaml(path)
    if data is not None:
        given["data"] = str(data.absolute())
    elif path.parent == PRESETS:
        raise UsageError(f"{plan}: needs the data; say where they lie with --data PATH")
    if scale != 1:
        given["scale"] = scale
    try:
        return _checked(resolve(Plan, given), path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def save_plan(plan: Plan, path: Path) -> None:
    """Keep a plan with its results, all of it filled in."""
    write_text(path, yaml.safe_dump(as_dict(plan), sort_keys=False, allow_unicode=True, width=100))


def load_plan(path: Path) -> Plan:
    """Read what `save` wrote.

    Raises:
        UsageError: there is no plan, so this is no study's folder.
    """
    if not path.is_file():
        raise UsageError(
            f"{path.parent}: holds no study; run `selfvox study PLAN --out {path.parent}` first"
        )
    return resolve(Plan, safe_yaml.read_yaml(path))


def as_kept(plan: Plan, before: Plan) -> Plan:
    """A plan like one that was kept: its methods in that order, new ones last, and paths that are the same written so.

    Twins and pre-trainings are called by the first method that needs them; cells are known by what was written.
    """
    names = [name for name in before.methods if name in plan.methods]
    names += [name for name in plan.methods if name not in before.methods]
    methods = {name: _written(plan.methods[name], before.methods.get(name)) for name in names}
    return dataclasses.replace(
        plan, methods=methods, pretrain=_written(plan.pretrain, before.pretrain)
    )


def _written(now: Any, before: Any) -> Any:
    """A method, its `pretrain` or a path, as it was written before where it means the same."""
    if now == SCRATCH and before == {"pretrain": None, "finetune": {}}:
        return before
    if isinstance(now, str) and isinstance(before, str):
        return before if Path(now).resolve() == Path(before).resolve() else now
    if isinstance(now, Mapping) and isinstance(before, Mapping):
        paths = [name for name in ("pretrain", *PATHS) if name in now and name in before]
        return {**now, **{name: _written(now[name], before[name]) for name in paths}}
    return now


def resolve_method(plan: Plan, name: str) -> Method:
    """A method, its own settings laid over the shared ones; from scratch it has the network that the others share."""
    value = plan.methods[name]
    own = resolve(
        Method, {"pretrain": None} if value == SCRATCH else value, prefix=f"methods.{name}."
    )
    pretrain = {**plan.pretrain, **own.pretrain} if isinstance(own.pretrain, dict) else own.pretrain
    finetune = {**plan.finetune, **own.finetune}
    if pretrain is None and "network" in plan.pretrain and not finetune.get("slices"):
        finetune = {"network": plan.pretrain["network"], **finetune}
    return Method(pretrain=pretrain, finetune=finetune)


def scaled(settings: Mapping[str, Any], scale: float, default_steps: int) -> dict[str, Any]:
    """Settings whose steps are cut to a share of them, one at least."""
    if scale == 1:
        return dict(settings)
    cut = dict(settings)
    if cut.get("epochs") is not None:
        cut["epochs"] = cut["epochs"] * scale
    else:
        cut["steps"] = max(1, round((cut.get("steps") or default_steps) * scale))
    if cut.get("validate_every") is not None:
        cut["validate_every"] = max(1, round(cut["validate_every"] * scale))
    return cut


def _checked(plan: Plan, beside: Path) -> Plan:
    """The plan with its paths resolved; every section is read by the verb that it is meant for."""
    plan = _with_2d(plan)
    section(Prepare, plan.prepare, "prepare.", _OURS_PREPARE)
    section(Pretrain, plan.pretrain, "pretrain.", _OURS_PRETRAIN)
    section(Finetune, plan.finetune, "finetune.", _OURS_FINETUNE)
    methods = {}
    for name, value in plan.methods.items():
        where = f"methods.{name}"
        if (
            not isinstance(name, str)
            or not re.fullmatch(r"\w[\w .+=-]*", name, re.ASCII)
            or name != name.strip(" .")
        ):
            raise UsageError(
                f"{where}: is no name for a folder; use letters, digits, spaces and - . + ="
            )
        if value == SCRATCH:
            methods[name] = value
            continue
        if not isinstance(value, Mapping):
            remedy = "write `pretrain: {task: rotation}` below it"
            raise UsageError(f"{where}: is neither {SCRATCH} nor a mapping; {remedy}")
        own = resolve(Method, value, prefix=f"{where}.")
        found: dict[str, Any] | str | None = None
        if isinstance(own.pretrain, dict):
            given = {**plan.pretrain, **own.pretrain}
            whole = section(Pretrain, given, f"{where}.pretrain.", _OURS_PRETRAIN)
            with _refusals_in(f"{where}.pretrain."):
                task_from_setting(whole.task, whole.weights).check_batch(whole.batch)
            if "source" in given and "scans" not in given:
                remedy = "name them by `scans` beside it, or write it into the section prepare"
                raise UsageError(
                    f"{where}.pretrain.source: says how other scans are laid out; {remedy}"
                )
            found = _with_paths(beside, own.pretrain)
        elif own.pretrain is not None:
            found = _beside(beside, own.pretrain)
        if found is not None and name.startswith(SCRATCH):
            raise UsageError(
                f"{where}: is pre-trained, so it cannot be called {SCRATCH}; rename it"
            )
        encoder = "none" if found is None else "-"
        section(
            Finetune,
            {**plan.finetune, **own.finetune},
            f"{where}.finetune.",
            _OURS_FINETUNE,
            encoder=encoder,
        )
        bare = found is None and not own.finetune
        methods[name] = SCRATCH if bare else {"pretrain": found, "finetune": dict(own.finetune)}
    if sum(value == SCRATCH for value in methods.values()) > 1:
        raise UsageError(f"methods: more than one is plain {SCRATCH}; leave all but one out")
    folders: dict[str, str] = {}
    for name in methods:
        if (twin := folders.setdefault(folder_name(name), name)) != name:
            raise UsageError(f"methods.{name}: would share its folder with {twin}; rename one")
    shared = _with_paths(beside, plan.pretrain)
    plan = dataclasses.replace(
        plan, data=Path(_beside(beside, plan.data)), methods=methods, pretrain=shared
    )
    for name in methods:
        for kind, settings in dataclasses.asdict(resolve_method(plan, name)).items():
            if isinstance(settings, dict):
                _check_network(settings.get("network", "plain"), f"methods.{name}.{kind}.")
    return plan


def _with_2d(plan: Plan) -> Plan:
    """The plan with its 2D twins among the methods, behind the others."""
    if plan.twins_2d is None:
        return plan
    flat = resolve(Twins2D, plan.twins_2d, prefix="twins_2d.")
    methods = dict(plan.methods)
    for name in flat.of:
        own = plan.methods.get(name)
        if not isinstance(own, Mapping) or not isinstance(own.get("pretrain"), Mapping):
            near = did_you_mean(name, plan.methods)
            raise UsageError(f"twins_2d.of: {name} is no method that the study pre-trains{near}")
        methods[f"2D-{name}"] = {
            "pretrain": {**own["pretrain"], **flat.pretrain, "slices": flat.slices},
            "finetune": {**(own.get("finetune") or {}), **flat.finetune, "slices": flat.slices},
        }
    return dataclasses.replace(plan, methods=methods, twins_2d=None)


def section(
    settings: type, given: Mapping[str, Any], where: str, ours: set[str], encoder: str = "-"
) -> Any:
    """Check a section by the settings of its verb; what the study decides must not be in it."""
    for name in given:
        if name in ours:
            place = "the section prepare" if name in _PREPARATION else "the study"
            raise UsageError(f"{where}{name}: is decided by {place}; leave it out here")
    needed = {"scans": "-", "out": "-", "labelled": "-", "encoder": encoder}
    known = {each.name for each in dataclasses.fields(settings)}
    filled = {name: value for name, value in needed.items() if name in known}
    return resolve(settings, {**filled, **given}, prefix=where)


def folder_name(name: str) -> str:
    """A method's name as the name of its folder."""
    return name.replace(" ", "-")


def _check_network(network: Any, where: str) -> None:
    """Refuse a misspelt U-Net; a run that is taken as one, or another's library, may be gone when all is done."""
    called = str(network.get("name", "plain") if isinstance(network, Mapping) else network)
    if os.sep not in called and ":" not in called:
        with _refusals_in(where):
            check_network(network)


@contextlib.contextmanager
def _refusals_in(where: str) -> Iterator[None]:
    """Refusals of a verb, that say where in the plan they are meant."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}{error}") from None


def _with_paths(folder: Path, pretrain: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `pretrain` whose paths are resolved."""
    paths = {
        name: _beside(folder, pretrain[name]) for name in PATHS if pretrain.get(name) is not None
    }
    return {**pretrain, **paths}


def _beside(folder: Path, path: Any) -> str:
    """A path that is the same from wherever one looks."""
    return str((folder / os.path.expanduser(str(path))).absolute())
