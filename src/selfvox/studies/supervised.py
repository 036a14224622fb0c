"""Supervised pre-training on automatic tissue labels, a baseline of paper A."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from selfvox.errors import UsageError, did_you_mean
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Finetune, PreparationSettings, Pretrain

KINDS = ("tissues",)  # of labels that are made automatically

# what the sections `pretrain` and `finetune` have in common, and may be given for both
_PREPARATION = {entry.name for entry in dataclasses.fields(PreparationSettings)}
_COMMON = (
    {entry.name for entry in dataclasses.fields(Pretrain)}
    & {entry.name for entry in dataclasses.fields(Finetune)}
) - {"out", "seed", "resume", "minutes", "log_to", *_PREPARATION}


def check_supervised(pretrain: Mapping[str, Any], prefix: str) -> None:
    """Check the `pretrain` of a method with `supervised: tissues`.

    Args:
        pretrain: as the plan gives it for this method alone.
        prefix: of its settings in messages.

    Raises:
        UsageError: a setting is unknown, missing or invalid.
    """
    kind = pretrain["supervised"]
    if kind not in KINDS:
        raise UsageError(f"{prefix}supervised: {kind}{did_you_mean(str(kind), KINDS)}")
    if "scans" not in pretrain:
        raise UsageError(f"{prefix}scans: is missing; tissues are labelled in other scans only")
    known = _COMMON | {"supervised", "scans", "source"}
    for name in pretrain:
        if name not in known:
            raise UsageError(
                f"{prefix}{name}: is no setting of a supervised pre-training"
                f"{did_you_mean(str(name), known)}"
            )
    values = {**supervised_settings(pretrain), "labelled": "-", "out": "-", "encoder": "none"}
    resolve(Finetune, values, prefix=prefix)


def supervised_settings(pretrain: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `finetune` for a pre-training; what only a pretext task has is left out."""
    return {name: value for name, value in pretrain.items() if name in _COMMON}
