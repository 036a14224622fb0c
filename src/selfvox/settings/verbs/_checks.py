"""Checks that the settings of several verbs share: options that exclude or need each other."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from selfvox.errors import did_you_mean


def one_of(settings: Any, *names: str) -> None:
    """Refuse that more than one of these options is given."""
    given = [name for name in names if getattr(settings, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]}: give one of them, not both")


def parse_shard(text: str) -> tuple[int, int]:
    """`1/4` -> (1, 4): every 4th item from item 1 on.

    Raises:
        ValueError: it is not I/N with I below N.
    """
    if re.fullmatch(r"\d{1,9}/\d{1,9}", text):
        number, count = map(int, text.split("/"))
        if number < count:
            return number, count
    raise ValueError(f"shard: invalid shard '{text}'; use I/N with I from 0 to N-1, such as 0/4")


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
