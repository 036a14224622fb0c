"""The options of a prediction in a notebook: typed for editors, shown by help, checked by name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

from selfvox.settings.options import check_names, resolve
from selfvox.settings.verbs import Predict
from selfvox.uncertainty.ensemble import check_several

Vote: TypeAlias = Literal["majority", "weighted", "borda", "union", "mean"]
Method = TypeVar("Method", bound=Callable[..., Any])


class PassOptions(TypedDict, total=False):
    """How often each network predicts a scan, and how the predictions vote."""

    force: bool  # also a scan that is unlike those of the training
    mirror: bool  # also the mirror images that the training had
    passes: int  # of Monte-Carlo dropout
    vote: Vote  # rule that combines the passes
    vote_weights: Sequence[float] | None  # for vote="weighted"
    encoder_dropout: float | None  # rate; default: that of the training, or 0.3
    decoder_dropout: float | None  # rate; default: that of the training
    # drop single units, or whole channels; default: as in the training
    dropout_kind: Literal["element", "channel"] | None
    seed: int  # of the dropout


class SegmentationOptions(PassOptions, total=False):
    """The same for segmentations, which also have maps and windows."""

    maps: Sequence[str]  # entropy, mutual-information, variance, percentiles
    union_class: str | None  # for vote="union"
    overlap: float  # of neighbouring windows, as a share of their size


def shows_options(kind: type[PassOptions]) -> Callable[[Method], Method]:
    """Give a method the signature with all options, and the defaults of `selfvox predict`.

    Type checkers and editors read them from the annotation of `**options`; `help` and notebooks
    read the signature.
    """

    def show(method: Method) -> Method:
        signature = inspect.signature(method)
        parameters = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        parameters += [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(Predict, name),
                annotation=annotation,
            )
            for name, annotation in typing.get_type_hints(kind).items()
        ]
        shown = signature.replace(parameters=parameters)
        method.__signature__ = shown  # type: ignore[attr-defined]
        return method

    return show


def predict_settings(networks: int, kind: type[PassOptions], options: Mapping[str, Any]) -> Predict:
    """The options as settings of `predict`, checked like those of the command line."""
    # fewer than the verb has: a method writes no files and is on a device already
    check_names(typing.get_type_hints(kind), options, "")
    # no files are read or written
    settings = resolve(Predict, {"run": ".", "scans": ".", "out": ".", **options})
    check_several(settings, networks)
    return settings
