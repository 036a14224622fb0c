"""Checks that the settings of several verbs share: options that exclude or need each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from selfvox.errors import did_you_mean


def one_of(settings: Any, *names: str) -> None:
    """Refuse that more than one of these options is given."""
    given = [name for name in names if getattr(settings, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]}: give one of them, not both")


def check_dropout(settings: Any) -> None:
    """Refuse passes without dropout."""
    if settings.encoder_dropout == settings.decoder_dropout == 0:
        raise ValueError(
            "passes: all passes would be equal without dropout; give --encoder-dropout 0.3"
        )


def is_default(settings: Any, name: str) -> bool:
    """Whether a field has its default value."""
    default = next(item.default for item in dataclasses.fields(settings) if item.name == name)
    return bool(getattr(settings, name) == default)


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is not a choice, and suggest the nearest one."""
    if value not in choices:
        raise ValueError(f"{option}: '{value}' is not a choice{did_you_mean(value, choices)}")
