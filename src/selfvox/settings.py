"""What each verb may be told: one dataclass per verb.

A dataclass here is, at once, the signature of `selfvox.VERB(...)`, the options of `selfvox VERB`, their help and
defaults, and the keys of `settings.yaml`. There is no second list. Nothing heavy is imported, so that help answers at once.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from selfvox.errors import UsageError, did_you_mean

T = TypeVar("T")

Source = Annotated[str, "how the scans are laid out: auto, folder, decathlon, nnunet or table"]
Seed = Annotated[int, "seed of everything random"]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"], "arithmetic: auto takes bf16 where the processor has it, else fp32"
]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], "where to compute"]
Network = Annotated[
    str | dict[str, Any],
    "encoder: plain or residual (nnU-Net's), monai:NAME, timm:NAME; its settings as --network.SETTING, "
    "such as --network.channels 16,32,64,128",
]
Resume = Annotated[bool, "go on with the run that lies in OUT"]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How scans become arrays; shared by every verb that may have to prepare them."""

    source: Source = "auto"
    size: Annotated[tuple[int, ...] | None, "resize every scan to this many voxels per axis, such as 128,128,128"] = None
    spacing: Annotated[tuple[float, ...] | None, "resample every scan to this spacing in mm, such as 1,1,1"] = None
    intensity: Annotated[
        str, "auto, or mri (z-score), ct (fixed window), photo; one for all channels or one for each, by commas"
    ] = "auto"
    workers: Annotated[int, "processes that prepare scans; 0 takes one per core"] = 0
    scheduler: Annotated[str | None, "address of a dask.distributed scheduler that prepares the scans instead"] = None


@dataclass(frozen=True, kw_only=True)
class Prepare(Preparation):
    """Prepare scans: oriented, cropped to the body, resampled, normalised; one array per scan, and a manifest."""

    _: KW_ONLY
    scans: Annotated[Path, "folder of scans, dataset.json, table.csv or a single scan"] = dataclasses.field(kw_only=False)
    out: Annotated[Path, "the store: a folder that is made, or brought up to date"]
    test: Annotated[int, "subjects to keep out of all training, for testing"] = 0
    validation: Annotated[int, "subjects to keep for validation"] = 0
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Pretrain(Preparation):
    """Pre-train an encoder on scans without labels, by a task that images answer about themselves."""

    scans: Annotated[Path, "folder of scans, or a store made by `selfvox prepare`"] = dataclasses.field(kw_only=False)
    out: Annotated[Path, "the run: a folder that is made"]
    task: Annotated[str | dict[str, Any], "the pretext task; its options as --task.OPTION"] = "simclr"
    network: Network = "plain"
    steps: Annotated[int | None, "optimiser steps; default: 1000, or what --epochs gives"] = None
    epochs: Annotated[float | None, "passes over the scans, instead of --steps"] = None
    batch: Annotated[int, "images per step and device"] = 8
    crop: Annotated[tuple[int, ...] | None, "edges of the crops in voxels, such as 64,64,64; default: by the scans"] = None
    learning_rate: Annotated[float, "peak learning rate of AdamW"] = 1e-3
    weight_decay: Annotated[float, "decoupled weight decay of AdamW"] = 1e-2
    accumulate: Annotated[int, "batches whose gradients make one step"] = 1
    save_every: Annotated[int, "steps between checkpoints"] = 100
    precision: Precision = "auto"
    device: Device = "auto"
    devices: Annotated[int, "how many devices (processes) train together"] = 1
    compile: Annotated[bool, "torch.compile the encoder; pays on long runs"] = False
    seed: Seed = 0
    resume: Resume = False


@dataclass(frozen=True, kw_only=True)
class Finetune(Preparation):
    """Fine-tune an encoder with a few labels to a segmentation network; `--encoder none` trains its from-scratch twin."""

    labelled: Annotated[Path, "folder of scans with labels, or a store made by `selfvox prepare`"] = dataclasses.field(
        kw_only=False
    )
    out: Annotated[Path, "the run: a folder that is made"]
    encoder: Annotated[str, "a pre-training run, its encoder/ folder, or none: from scratch"]
    labels: Annotated[int | None, "how many labelled subjects to train on; default: all"] = None
    fraction: Annotated[float | None, "share of the labelled training subjects to train on, instead of --labels"] = None
    network: Network = "plain"
    steps: Annotated[int, "optimiser steps"] = 500
    batch: Annotated[int, "crops per step and device"] = 2
    crop: Annotated[tuple[int, ...] | None, "edges of the crops in voxels; default: as in pre-training, or by the scans"] = (
        None
    )
    freeze: Annotated[
        Literal["warmup", "always", "never"], "when the pre-trained encoder stands still: the first steps, always, never"
    ] = "warmup"
    warmup: Annotated[float, "share of the steps the encoder stands still for; the papers: 25 of 400 epochs"] = 0.0625
    loss: Annotated[Literal["dice", "dice+ce"], "soft Dice (paper B eq. 2), or its sum with cross-entropy"] = "dice"
    learning_rate: Annotated[float, "peak learning rate of AdamW"] = 4e-3
    weight_decay: Annotated[float, "decoupled weight decay of AdamW"] = 1e-2
    validate_every: Annotated[int | None, "steps between validations; default: a fifth of the steps"] = None
    keep: Annotated[Literal["best", "last"], "which weights the run ends with: best by validation Dice, or the last"] = "best"
    precision: Precision = "auto"
    device: Device = "auto"
    seed: Seed = 0
    subset_seed: Annotated[int | None, "seed of the choice of labelled subjects; default: --seed"] = None
    resume: Resume = False


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict segmentations, each on the grid of the scan it was made from."""

    run: Annotated[Path, "a fine-tuning run"] = dataclasses.field(kw_only=False)
    scans: Annotated[Path, "a folder of scans, one scan, or a .txt file with one scan a line"] = dataclasses.field(
        kw_only=False
    )
    out: Annotated[Path, "folder of the predictions; those already there are kept"]
    source: Source = "auto"
    subset: Annotated[
        Literal["all", "train", "validation", "test"], "only these subjects, as the run split them"
    ] = "all"
    probabilities: Annotated[bool, "write the probability of every class too"] = False
    overlap: Annotated[float, "share by which neighbouring windows overlap"] = 0.5
    precision: Precision = "auto"
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score predictions against the truth: Dice, surface distances in mm and volumes, per case and class."""

    predictions: Annotated[Path, "folder of predictions"] = dataclasses.field(kw_only=False)
    truth: Annotated[Path, "folder of true labels, or a data set with labels"] = dataclasses.field(kw_only=False)
    out: Annotated[Path | None, "table of the scores, .csv"] = None


@dataclass(frozen=True, kw_only=True)
class Preview(Preparation):
    """Draw what the network will be asked, as a picture."""

    scans: Annotated[Path, "folder of scans, or a store"] = dataclasses.field(kw_only=False)
    out: Annotated[Path, "the picture, .png"] = Path("preview.png")
    task: Annotated[str | dict[str, Any], "the pretext task; its options as --task.OPTION"] = "simclr"
    crop: Annotated[tuple[int, ...] | None, "edges of the crops in voxels; default: by the scans"] = None
    count: Annotated[int, "how many scans to show"] = 3
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The whole way on synthetic scans, in minutes: pre-train, fine-tune beside the from-scratch twin, predict, score."""

    out: Annotated[Path, "folder of the demo; emptied by you, not by us"] = Path("demo")
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Info:
    """Versions, devices, tasks, encoders and sources."""

    json: Annotated[bool, "for machines"] = False


class Option(typing.NamedTuple):
    """One field of a settings dataclass, as the command line needs it."""

    name: str
    type: Any
    help: str
    default: Any  # dataclasses.MISSING where the option is required
    positional: bool


def options(settings: type) -> list[Option]:
    """The fields of a settings dataclass, in order; their help is the text in `Annotated`."""
    hints = typing.get_type_hints(settings, include_extras=True)
    found = []
    for field in dataclasses.fields(settings):
        hint, text = hints[field.name], ""
        if typing.get_origin(hint) is Annotated:
            hint, text = typing.get_args(hint)[0], typing.get_args(hint)[1]
        found.append(Option(field.name, hint, text, field.default, field.kw_only is False))
    return sorted(found, key=lambda option: not option.positional)


def resolve(settings: type[T], given: Mapping[str, Any], where: str = "") -> T:
    """Check `given` against a settings dataclass and fill in the defaults.

    Args:
        settings: one of the dataclasses above, or a task or network whose fields are settings.
        given: option names and their values; text is converted, so that "64,64" is a tuple where one is asked for.
        where: goes before an option's name in messages, such as "task.".

    Raises:
        UsageError: an unknown name (with the nearest known one), a missing one, or a value of the wrong kind.
    """
    known = {option.name: option for option in options(settings)}
    for name in given:
        if name not in known:
            raise UsageError(f"{where}{name}: no such setting{did_you_mean(name, known)}")
    values = {name: _split(value, known[name].type) for name, value in given.items()}
    try:
        return TypeAdapter(settings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
            raise UsageError(f"{where}{name}: is required ({known[name].help})") from None
        if first["type"] == "literal_error":
            choices = [str(choice) for choice in typing.get_args(known[name].type)]
            raise UsageError(f"{where}{name}: '{given[name]}' is not a choice{did_you_mean(str(given[name]), choices)}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}{name}: {given.get(name)!r} does not fit: {message[0].lower()}{message[1:]}") from None


def as_dict(settings: Any) -> dict[str, Any]:
    """Settings as plain values that YAML and JSON know: paths as text, tuples as lists."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def to_yaml(settings: Any) -> str:
    """Settings as YAML, each with its help beside it."""
    text = {option.name: option.help for option in options(type(settings))}
    lines = []
    for name, value in as_dict(settings).items():
        entry = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n").strip()
        lines.append(f"{name}: {entry}  # {text[name]}")
    return "\n".join(lines) + "\n"


def from_yaml(path: Path) -> dict[str, Any]:
    """Read settings from a YAML file: a mapping of option names, nothing else.

    Raises:
        UsageError: the file cannot be read, is not YAML, uses tags, anchors or duplicate keys, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_aliases(path, text)
        value = yaml.load(text, Loader=_Strict)  # noqa: S506 - a SafeLoader underneath
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); give --config a YAML file") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not plain YAML ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: holds no settings; write one `name: value` a line")
    return value


class _Strict(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"'{key}' is given twice")
        return super().construct_mapping(node, deep)


def _refuse_aliases(path: Path, text: str) -> None:
    # a few lines of nested aliases can expand to gigabytes; settings never need them
    for token in yaml.scan(text):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
            raise UsageError(f"{path}: line {token.start_mark.line + 1} uses a YAML tag, anchor or alias; write the value itself")


def _split(value: Any, hint: Any) -> Any:
    """Text with commas becomes a list where the setting is a tuple; `none` becomes None where it may be."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in {typing.Union, types.UnionType} else (hint,)
    if isinstance(value, str) and any(typing.get_origin(choice) is tuple for choice in choices):
        if value.lower() == "none" and type(None) in choices:
            return None
        return [part.strip() for part in value.split(",")]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
