"""Cards: what the weights of an encoder or a network are, and what is needed to use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
from pydantic import AfterValidator, Field

from selfvox.errors import DataError, WeightsError
from selfvox.runs import typed_json
from selfvox.runs.seen_scans import LISTS, SeenFile, are_base64

FORMAT = 1  # of a card
_NOBODY: Mapping[str, list[str]] = {name: [] for name in LISTS}

Count = Annotated[int, Field(ge=0, lt=2**63)]
Edge = Annotated[int, Field(ge=1, lt=2**16)]  # in voxels
ClassNumber = Annotated[int, Field(ge=0, lt=2**16)]
RegionClasses = Annotated[tuple[Annotated[int, Field(ge=1, lt=2**16)], ...], Field(min_length=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


def _check_named(values: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(values.get("name"), str):
        raise ValueError("has no name")
    return values


def _check_seen(values: Mapping[str, list[str]]) -> Mapping[str, list[str]]:
    if not {"subjects", "image_hashes"} <= values.keys():
        raise ValueError("has no lists of subjects and image_hashes")
    if not are_base64(values.get("coarse_pictures", ())):
        raise ValueError("has coarse_pictures that are not in base64")
    return values


# `subjects`, `image_hashes` and `coarse_pictures` of scans, as JSON lists them
Seen = Annotated[Mapping[str, list[str]], AfterValidator(_check_seen)]
# in place of these lists, the SHA-256 of the file that has them
SEEN_CHECKSUM = "seen_sha256"
Named = Annotated[Mapping[str, Any], AfterValidator(_check_named)]


@dataclass(frozen=True)
class DropoutRates:
    """How units are dropped after each activation."""

    encoder: Rate  # share of the units of the encoder
    decoder: Rate  # the same for the decoder, or the head of a classifier
    kind: Literal["element", "channel"]

    def __str__(self) -> str:
        """Such as `0.3 of the encoder's and 0 of the decoder's elements`."""
        return (
            f"{self.encoder:g} of the encoder's and {self.decoder:g} of the decoder's {self.kind}s"
        )


@dataclass(frozen=True, kw_only=True)
class Card:
    """What encoders and networks have in common.

    The types are checked when a card is read from its file.
    """

    # fields that the file leaves out where they are None
    optional: ClassVar[tuple[str, ...]] = ("scans",)

    network: Named  # what the encoder is built from
    spatial_dims: Annotated[int, Field(ge=2, le=3)]
    in_channels: Edge
    crop: tuple[Edge, ...]  # edges in voxels
    # the orientation, if a 2D network was trained on slices of volumes
    slices: Literal["axial", "coronal", "sagittal"] | None
    recipe: Mapping[str, Any]  # a `Recipe`, as plain values
    seen: Seen  # what it was trained on
    seed: Count
    sha256: str = ""  # of the weights, once they are saved
    # a `ScanRange` of the scans that it was trained on, as plain values; None: not known
    scans: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.crop) != self.spatial_dims:
            raise ValueError(f"'crop' has {len(self.crop)} edges of {self.spatial_dims} axes")
        if self.slices is not None and self.spatial_dims != 2:
            raise ValueError("'slices' are of a 2D network")

    @classmethod
    def from_json(cls, entries: Mapping[str, Any], file: Path) -> Self:
        """The card in a file; keys that this version does not know are ignored.

        Args:
            entries: content of the file.
            file: its path, for messages.

        Raises:
            WeightsError: a key is missing, or its value is of another type.
        """
        seen = None
        # cards of earlier versions have the lists themselves
        if SEEN_CHECKSUM in entries:
            seen = SeenFile(file.parent, entries[SEEN_CHECKSUM])
            entries = {**entries, "seen": _NOBODY}
        # absent, a field with a default would get it
        names = {field.name: cls._key(field.name, entries) for field in dataclasses.fields(cls)}
        required = {name: key for name, key in names.items() if name not in cls.optional}
        missing = [name for name, key in required.items() if key not in entries]
        if missing:
            # what the key of the score is depends on another key, which is named if it is missing
            key = names[min(missing, key=lambda name: name == "score")]
            raise WeightsError(f"{file}: damaged (has no '{key}'); copy it again")
        values = {name: entries[key] for name, key in names.items() if key in entries}
        try:
            card: Self = typed_json.parse(cls, values, str(file))
        except DataError as error:
            reason = str(error).replace("'score'", f"'{names.get('score')}'")
            raise WeightsError(f"{reason}; copy it again") from None
        return card if seen is None else dataclasses.replace(card, seen=seen)

    def to_json(self) -> dict[str, Any]:
        """The content of the file, with the lists that `save_part` writes to one of their own."""
        # as they are: mapped, they may be of a million scans
        listed = dataclasses.replace(self, seen=_NOBODY)
        values = pydantic.TypeAdapter(type(self)).dump_python(listed, mode="json")
        values["seen"] = self.seen
        left_out = {name for name in self.optional if values[name] is None}
        entries: dict[str, Any] = {"format": FORMAT}
        # those that decide about the names of others come before them
        for name in sorted(values.keys() - left_out, key=lambda name: name == "score"):
            entries[self._key(name, entries)] = values[name]
        return entries

    def without_people(self) -> Self:
        """The card without subjects, checksums and ranges of scans, and names of folders."""
        return dataclasses.replace(self, seen=_NOBODY, scans=None)

    @classmethod
    def _key(cls, name: str, entries: Mapping[str, Any]) -> str:
        """The key of a field in the file, which may depend on the other entries."""
        return name


@dataclass(frozen=True, kw_only=True)
class EncoderCard(Card):
    """The card of a pre-trained encoder, `encoder.json`."""

    optional = ("scans", "source")

    spacing_mm: tuple[Annotated[float, Field(gt=0)], ...]  # median of the scans
    task: Named  # the pretext task with all its options
    # of the losses of several tasks, in their order; None for one task
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None
    steps: Count  # optimiser steps
    # of weights from elsewhere: title, licence, citation and scans, in words
    source: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class NetworkCard(Card):
    """What the cards of fine-tuned networks, `network.json`, have in common."""

    optional: ClassVar[tuple[str, ...]] = ("scans", "dropout", "mirror")

    encoder: str  # where the encoder came from, in words
    head: Literal["full", "linear"]
    step: Count = 0  # of the weights, once they are saved
    # on the validation subjects; None where it is not defined
    score: float | None = None
    # that it was trained with; None: without
    dropout: DropoutRates | None = None
    # names of the axes along which the training mirrored scans; None: along none
    mirror: tuple[str, ...] | None = None

    def without_people(self) -> Self:  # noqa: D102
        # the words on the encoder have the name of its run
        return dataclasses.replace(super().without_people(), encoder="not said here")

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

    classes: Annotated[Mapping[ClassNumber, str], Field(min_length=1)]  # name by class number
    regions: Annotated[Mapping[str, RegionClasses], Field(min_length=1)] | None
    trained_on: Literal["classes", "regions"]  # what the outputs are

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trained_on_regions and self.regions is None:
            raise ValueError("'trained_on' are regions, and there are none")

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

    optional = (*NetworkCard.optional, "names")

    classes: Annotated[tuple[str, ...], Field(min_length=1)]  # grades, as tables write them
    ordinal: bool  # whether the classes have an order
    names: tuple[str, ...] | None = None  # of the classes, where the data set has some

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.names is not None and len(self.names) != len(self.classes):
            raise ValueError(f"'names' are {len(self.names)}, of {len(self.classes)} classes")

    @classmethod
    def _key(cls, name: str, entries: Mapping[str, Any]) -> str:
        if name != "score":
            return name
        return "validation_kappa" if entries.get("ordinal") else "validation_balanced_accuracy"


@dataclass(frozen=True, kw_only=True)
class RegressorCard(NetworkCard):
    """The card of a network that predicts a number of whole scans."""

    predicts: Literal["target"]

    @classmethod
    def _key(cls, name: str, entries: Mapping[str, Any]) -> str:
        return "validation_skill" if name == "score" else name


AnyNetworkCard = SegmenterCard | ClassifierCard | RegressorCard


def parse_network_card(entries: Mapping[str, Any], file: Path) -> AnyNetworkCard:
    """The card in `network.json`.

    Raises:
        WeightsError: as `Card.from_json`.
    """
    if "predicts" in entries:
        return RegressorCard.from_json(entries, file)
    # only a classifier's card says whether its classes have an order
    if "ordinal" in entries:
        return ClassifierCard.from_json(entries, file)
    return SegmenterCard.from_json(entries, file)
