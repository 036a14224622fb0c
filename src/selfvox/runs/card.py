"""Cards: what the weights of an encoder or a network are, and what is needed to use them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from selfvox.errors import WeightsError
from selfvox.ops.regions import Regions, regions_from_json, regions_to_json

FORMAT = 1  # of a card


class _Kind(NamedTuple):
    """What a key of the file may contain."""

    name: str  # for messages
    accepts: Callable[[Any], bool]  # whether a value from JSON is of this kind
    decode: Callable[[Any], Any] = lambda value: value
    encode: Callable[[Any], Any] = lambda value: value
    is_optional: bool = False  # the key is left out where the value is None


def _kind(*args: Any) -> dict[str, _Kind]:
    """The metadata of a field of this kind."""
    return {"kind": _Kind(*args)}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    # not isinstance: True is an int
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_list_of(accepts: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and all(map(accepts, value))


def _is_network(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("name"))


def _is_seen(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_is_list_of(_is_text, value.get(name)) for name in ("subjects", "image_hashes"))
        and _is_list_of(_is_base64, value.get("coarse_pictures", []))
    )


def _is_base64(value: Any) -> bool:
    pattern = r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?"
    return _is_text(value) and re.fullmatch(pattern, value) is not None


def _is_class_names(value: Any) -> bool:
    return isinstance(value, dict) and all(
        number.isascii() and number.isdecimal() and _is_text(name) for number, name in value.items()
    )


def _are_regions(value: Any) -> bool:
    try:
        regions_from_json(value)
    except ValueError:
        return False
    return True


def _is_rate(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_dropout(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"encoder", "decoder", "kind"}
        and _is_rate(value["encoder"])
        and _is_rate(value["decoder"])
        and value["kind"] in ("element", "channel")
    )


@dataclass(frozen=True)
class DropoutRates:
    """How units are dropped after each activation."""

    encoder: float  # share of the units of the encoder
    decoder: float  # the same for the decoder, or the head of a classifier
    kind: Literal["element", "channel"]

    def __str__(self) -> str:
        """Such as `0.3 of the encoder's and 0 of the decoder's elements`."""
        return (
            f"{self.encoder:g} of the encoder's and {self.decoder:g} of the decoder's {self.kind}s"
        )


def _choice(*values: str | None) -> dict[str, _Kind]:
    names = ["null" if value is None else f"'{value}'" for value in values]
    return _kind(f"{', '.join(names[:-1])} or {names[-1]}", lambda value: value in values)


_TEXT = _kind("text", _is_text)
_COUNT = _kind("a whole number", _is_count)
_SCORE = _kind("a number or null", lambda value: value is None or _is_number(value))
_FLAG = _kind("true or false", lambda value: isinstance(value, bool))
_MAPPING = _kind("a mapping", lambda value: isinstance(value, dict))
_NAMED = _kind("a mapping with a name", _is_network)
_SEEN = _kind("a mapping with the lists subjects and image_hashes", _is_seen)
_DIMENSIONS = _kind("2 or 3", lambda value: type(value) is int and value in (2, 3))
_EDGES = _kind("a list of whole numbers", lambda value: _is_list_of(_is_count, value), tuple, list)
_NUMBERS = _kind("a list of numbers", lambda value: _is_list_of(_is_number, value), tuple, list)
_NUMBERS_OR_NULL = _kind(
    "a list of numbers or null",
    lambda value: value is None or _is_list_of(_is_number, value),
    lambda value: None if value is None else tuple(value),
    lambda value: None if value is None else list(value),
)
_NAMES = _kind("a list of names", lambda value: _is_list_of(_is_text, value), tuple, list)
_OPTIONAL_NAMES = _kind(
    "a list of names", lambda value: _is_list_of(_is_text, value), tuple, list, True
)
_CLASS_NAMES = _kind(
    "a mapping of class numbers to names",
    _is_class_names,
    lambda names: {int(number): name for number, name in names.items()},
    lambda names: {str(number): name for number, name in names.items()},
)
_DROPOUT = _kind(
    "a mapping of encoder, decoder and kind",
    _is_dropout,
    lambda value: DropoutRates(**value),
    dataclasses.asdict,
    True,
)
_REGIONS = _kind(
    "a mapping of names to lists of class numbers, or null",
    _are_regions,
    regions_from_json,
    regions_to_json,
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What encoders and networks have in common."""

    order: ClassVar[tuple[str, ...]]  # of the fields in the file

    network: Mapping[str, Any] = field(metadata=_NAMED)  # what the encoder is built from
    spatial_dims: int = field(metadata=_DIMENSIONS)
    in_channels: int = field(metadata=_COUNT)
    crop: tuple[int, ...] = field(metadata=_EDGES)  # edges in voxels
    # the orientation, if a 2D network was trained on slices of volumes
    slices: str | None = field(metadata=_choice(None, "axial", "coronal", "sagittal"))
    recipe: Mapping[str, Any] = field(metadata=_MAPPING)  # a `Recipe`, as plain values
    # `subjects`, `image_hashes` and `coarse_pictures` of the scans that it was trained on
    seen: Mapping[str, list[str]] = field(metadata=_SEEN)
    seed: int = field(metadata=_COUNT)
    sha256: str = field(default="", metadata=_TEXT)  # of the weights, once they are saved

    @classmethod
    def from_json(cls, entries: Mapping[str, Any], file: Path) -> Self:
        """The card in a file; keys that this version does not know are ignored.

        Args:
            entries: content of the file.
            file: its path, for messages.

        Raises:
            WeightsError: a key is missing, or its value is of another type.
        """
        kinds = _kinds(cls)
        values = {}
        for name in (*cls.order, "sha256"):
            key = cls._key(name, entries)
            kind = kinds[name]
            if key not in entries and kind.is_optional:
                continue
            if key not in entries:
                raise WeightsError(f"{file}: damaged (has no '{key}'); copy it again")
            if not kind.accepts(entries[key]):
                raise WeightsError(f"{file}: damaged ('{key}' is not {kind.name}); copy it again")
            values[name] = kind.decode(entries[key])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        kinds = _kinds(type(self))
        entries: dict[str, Any] = {"format": FORMAT}
        for name in (*self.order, "sha256"):
            value = getattr(self, name)
            if value is None and kinds[name].is_optional:
                continue
            entries[self._key(name, entries)] = kinds[name].encode(value)
        return entries

    @classmethod
    def _key(cls, name: str, entries: Mapping[str, Any]) -> str:
        """The key of a field in the file, which may depend on the entries before it."""
        return name


def _kinds(card: type[Card]) -> dict[str, _Kind]:
    """The kind of each field, by name."""
    return {entry.name: entry.metadata["kind"] for entry in dataclasses.fields(card)}


@dataclass(frozen=True, kw_only=True)
class EncoderCard(Card):
    """The card of a pre-trained encoder, `encoder.json`."""

    order = (
        "network",
        "spatial_dims",
        "in_channels",
        "crop",
        "slices",
        "spacing_mm",
        "recipe",
        "task",
        "weights",
        "seen",
        "steps",
        "seed",
    )

    spacing_mm: tuple[float, ...] = field(metadata=_NUMBERS)  # median of the scans
    task: Mapping[str, Any] = field(metadata=_NAMED)  # the pretext task with all its options
    # of the losses of several tasks, in their order; None for one task
    weights: tuple[float, ...] | None = field(metadata=_NUMBERS_OR_NULL)
    steps: int = field(metadata=_COUNT)  # optimiser steps


@dataclass(frozen=True, kw_only=True)
class NetworkCard(Card):
    """What the cards of fine-tuned networks, `network.json`, have in common."""

    encoder: str = field(metadata=_TEXT)  # where the encoder came from, in words
    head: str = field(metadata=_choice("full", "linear"))
    step: int = field(default=0, metadata=_COUNT)  # of the weights, once they are saved
    # on the validation subjects; None where it is not defined
    score: float | None = field(default=None, metadata=_SCORE)
    # that it was trained with; None: without
    dropout: DropoutRates | None = field(default=None, metadata=_DROPOUT)
    # names of the axes along which the training mirrored scans; None: along none
    mirror: tuple[str, ...] | None = field(default=None, metadata=_OPTIONAL_NAMES)

    @property
    def score_name(self) -> str:
        """What the score is called, such as `dice`."""
        return self._key("score", self.to_json()).removeprefix("validation_")

    @property
    def is_linear(self) -> bool:
        """Whether one linear layer follows the encoder."""
        return self.head == "linear"


@dataclass(frozen=True, kw_only=True)
class SegmenterCard(NetworkCard):
    """The card of a network that segments."""

    order = (
        "network",
        "spatial_dims",
        "in_channels",
        "recipe",
        "encoder",
        "seed",
        "crop",
        "slices",
        "head",
        "classes",
        "regions",
        "trained_on",
        "seen",
        "step",
        "score",
        "dropout",
        "mirror",
    )

    classes: Mapping[int, str] = field(metadata=_CLASS_NAMES)  # name by class number
    regions: Regions | None = field(metadata=_REGIONS)
    trained_on: str = field(metadata=_choice("classes", "regions"))  # what the outputs are

    @property
    def trained_on_regions(self) -> bool:
        """Whether each output is a region with a probability of its own, instead of a class."""
        return self.trained_on == "regions"

    @property
    def output_names(self) -> list[str]:
        """The classes or regions of the network, in the order of its output."""
        if self.trained_on_regions:
            return list(self.regions or {})
        return [self.classes[value] for value in sorted(self.classes)]

    @classmethod
    def _key(cls, name: str, entries: Mapping[str, Any]) -> str:
        return "validation_dice" if name == "score" else name


@dataclass(frozen=True, kw_only=True)
class ClassifierCard(NetworkCard):
    """The card of a network that classifies whole scans."""

    order = (
        "network",
        "spatial_dims",
        "in_channels",
        "recipe",
        "encoder",
        "seed",
        "crop",
        "slices",
        "head",
        "classes",
        "ordinal",
        "seen",
        "step",
        "score",
        "dropout",
        "mirror",
    )

    classes: tuple[str, ...] = field(metadata=_NAMES)
    ordinal: bool = field(metadata=_FLAG)  # whether the classes have an order

    @classmethod
    def _key(cls, name: str, entries: Mapping[str, Any]) -> str:
        if name != "score":
            return name
        return "validation_kappa" if entries["ordinal"] else "validation_balanced_accuracy"


def parse_network_card(entries: Mapping[str, Any], file: Path) -> SegmenterCard | ClassifierCard:
    """The card in `network.json`.

    Raises:
        WeightsError: as `Card.from_json`.
    """
    # only a classifier's card says whether its classes have an order
    if "ordinal" in entries:
        return ClassifierCard.from_json(entries, file)
    return SegmenterCard.from_json(entries, file)
