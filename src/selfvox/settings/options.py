"""A settings dataclass as options: their names, types and help; checked values; YAML.

Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from selfvox.errors import UsageError, did_you_mean

T = TypeVar("T")


class Section(str):
    """The heading under which `--help` shows an option; options without a section come first."""


class PathOrName:
    """Marks a text option that may be a path: Python callers may pass a `Path` for it."""


class Option(typing.NamedTuple):
    """One field of a settings dataclass, as the command line needs it."""

    name: str
    type: Any
    help: str
    default: Any  # dataclasses.MISSING for a required option
    positional: bool
    section: str  # heading in the help; "" comes first
    accepts_path: bool = False  # text that may be a path

    @property
    def required(self) -> bool:
        """Has no default."""
        return self.default is dataclasses.MISSING

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The members of a union type; otherwise the type alone."""
        union = typing.get_origin(self.type) in {typing.Union, types.UnionType}
        return typing.get_args(self.type) if union else (self.type,)


def options(settings: type) -> list[Option]:
    """The options of a settings dataclass: positional first, then required, then by section.

    The help of an option is the text in its `Annotated` type.
    """
    return list(_options(settings))


@functools.cache  # resolving the types of a settings class takes milliseconds
def _options(settings: type) -> tuple[Option, ...]:
    plain_types = typing.get_type_hints(settings)
    annotated_types = typing.get_type_hints(settings, include_extras=True)
    listed = []
    for field in dataclasses.fields(settings):
        marks = getattr(annotated_types[field.name], "__metadata__", ())
        section = next((mark for mark in marks if isinstance(mark, Section)), Section())
        text = next((mark for mark in marks if isinstance(mark, str) and mark is not section), "")
        default = field.default_factory() if callable(field.default_factory) else field.default
        listed.append(
            Option(
                name=field.name,
                type=plain_types[field.name],
                help=text,
                default=default,
                positional=field.kw_only is False,
                section=str(section),
                accepts_path=PathOrName in marks,
            )
        )
    listed.sort(
        key=lambda option: (not option.positional, not option.required, option.section > "")
    )
    return tuple(listed)


def resolve(settings: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Check values against a settings dataclass and fill in the defaults.

    Args:
        settings: a dataclass of settings: of a verb, a task or a network.
        values: by option name; text is converted, so that "64,64" becomes a tuple.
        prefix: begins an option's name in messages, such as "task.".

    Raises:
        UsageError: an unknown name (the message suggests the nearest), a missing option, or a
            value of the wrong type.
    """
    by_name = {option.name: option for option in options(settings)}
    check_names(by_name, values, prefix)
    for option in by_name.values():
        if option.required and option.name not in values:
            raise UsageError(f"{prefix}{option.name}: is required ({option.help})")
    try:
        converted = {name: _converted(value, by_name[name]) for name, value in values.items()}
        return pydantic.TypeAdapter(settings).validate_python(converted)
    except pydantic.ValidationError as error:
        raise UsageError(prefix + _first_problem(error, by_name, values)) from None
    except ValueError as error:
        raise UsageError(f"{prefix}{error}") from None


def check_names(choices: Collection[str], names: Iterable[str], prefix: str) -> None:
    """Refuse names that are not settings, all at once; `prefix` begins them in the message."""
    unknown = [
        f"{prefix}{name}: no such setting{did_you_mean(str(name), choices)}"
        for name in names
        if name not in choices
    ]
    if unknown:
        raise UsageError("; ".join(unknown))


def as_dict(settings: Any) -> dict[str, Any]:
    """Settings as plain values for YAML and JSON: paths as text, tuples as lists."""
    return {
        field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)
    }


def without_paths(settings: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for others to see: no path and no address, but the name of what a text may name.

    Args:
        settings: the dataclass that the values are of.
        values: as `as_dict` returns them, or as a `settings.yaml` has them.
    """
    shown = {}
    for option in options(settings):
        is_private = Path in option.kinds or option.name == "scheduler"
        if option.name in values and not is_private:
            value = values[option.name]
            shown[option.name] = _name_alone(value) if option.accepts_path else value
    return shown


def _name_alone(value: Any) -> Any:
    """The last part of a text that may be a path, also where it is the name in a mapping."""
    if isinstance(value, str):
        return Path(value).name
    if isinstance(value, dict) and "name" in value:
        return {**value, "name": _name_alone(value["name"])}
    return value


def to_yaml(settings: Any) -> str:
    """Settings as YAML, one per line, each followed by its help as a comment."""
    values = as_dict(settings)
    lines = []
    for option in options(type(settings)):
        entry = yaml.safe_dump(
            # in one line, however long
            values[option.name],
            default_flow_style=True,
            sort_keys=False,
            width=10_000,
        )
        entry = entry.removesuffix("...\n").strip()  # YAML ends a lone scalar with dots
        lines.append(f"{option.name}: {entry}  # {option.help}")
    return "\n".join(lines) + "\n"


def _converted(value: Any, option: Option) -> Any:
    """Convert what pydantic does not: `none`, lists by commas, a single value for a list, `~`."""
    takes_number = not {int, float}.isdisjoint(option.kinds)
    # True is an int in Python
    if isinstance(value, bool) and takes_number and bool not in option.kinds:
        raise ValueError(
            f"{option.name}: takes a number, not {'yes' if value else 'no'} ({option.help})"
        )
    # a shell has no other way to write it; but `none` may be one of the choices
    is_choice = any(value in typing.get_args(kind) for kind in option.kinds)
    if isinstance(value, str) and value.lower() == "none" and type(None) in option.kinds:
        return value if is_choice else None
    if isinstance(value, os.PathLike) and str in option.kinds:  # such as a run of another verb
        return str(value)
    if int in option.kinds and _is_single(value):
        return value
    for kind in option.kinds:
        if typing.get_origin(kind) is tuple:
            return _as_list(value, typing.get_args(kind)[0], option)
    return _path(value, option) if Path in option.kinds else value


def _is_single(value: Any) -> bool:
    """Whether it is one value and not several, as text or as a list."""
    return isinstance(value, int) or (isinstance(value, str) and "," not in value)


def _as_list(value: Any, element: Any, option: Option) -> Any:
    """A list from "1,2" or from one number or path; other values stay, for pydantic to check."""
    if isinstance(value, str):
        value = [text.strip() for text in value.split(",")]
    elif isinstance(value, int | float | os.PathLike):
        value = [value]
    if element is Path and isinstance(value, list | tuple):
        return [_path(item, option) for item in value]
    return value


def _path(value: Any, option: Option) -> Any:
    """A path with `~` expanded; a value that is not text stays, for pydantic to refuse."""
    if not isinstance(value, str | os.PathLike):
        return value
    if not str(value) or "\0" in str(value):
        raise ValueError(f"{option.name}: is empty or not a path ({option.help})")
    # unlike Path.expanduser, this leaves `~name` alone if there is no such user
    return Path(os.path.expanduser(value))


def _first_problem(
    error: pydantic.ValidationError, by_name: Mapping[str, Option], values: Mapping[str, Any]
) -> str:
    """The first problem in one line that names the option and what it takes."""
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # raised by the dataclass itself, which names the option
        return reason
    option = by_name[str(first["loc"][0])]
    value = values[option.name]
    if first["type"] == "literal_error":
        choices = [str(choice) for kind in option.kinds for choice in typing.get_args(kind)]
        return f"{option.name}: '{value}' is not a choice{did_you_mean(str(value), choices)}"
    if first["type"] == "too_short":
        limit = f"at least {first['ctx']['min_length']}"
        return f"{option.name}: '{value}' should have {limit} values ({option.help})"
    if first["type"] == "too_long":
        limit = f"at most {first['ctx']['max_length']}"
        return f"{option.name}: '{value}' should have {limit} values ({option.help})"
    reason = reason.removeprefix("Input ").split(", ")[0]
    return f"{option.name}: '{value}' {reason} ({option.help})"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
