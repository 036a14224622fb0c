"""A settings dataclass seen as options: their names, types and help; values checked; the settings as YAML.

Nothing heavy is imported, so that help answers at once.
"""

from __future__ import annotations

import dataclasses
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
    """The heading under which `--help` shows an option; options without one come first."""


class Option(typing.NamedTuple):
    """One field of a settings dataclass, as the command line needs it."""

    name: str
    type: Any
    help: str
    default: Any  # dataclasses.MISSING where the option is required
    positional: bool
    section: str  # heading in the help; "" comes first

    @property
    def required(self) -> bool:
        """Has no default."""
        return self.default is dataclasses.MISSING

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The members of its type where that is a union, else the type alone."""
        union = typing.get_origin(self.type) in {typing.Union, types.UnionType}
        return typing.get_args(self.type) if union else (self.type,)


def options(settings: type) -> list[Option]:
    """The fields of a settings dataclass, the most needed first; their help is the text in `Annotated`."""
    types_, marked = (
        typing.get_type_hints(settings),
        typing.get_type_hints(settings, include_extras=True),
    )
    found = []
    for each in dataclasses.fields(settings):
        marks = getattr(marked[each.name], "__metadata__", ())
        section = next((mark for mark in marks if isinstance(mark, Section)), Section())
        text = next((mark for mark in marks if isinstance(mark, str) and mark is not section), "")
        default = each.default_factory() if callable(each.default_factory) else each.default
        found.append(
            Option(each.name, types_[each.name], text, default, each.kw_only is False, str(section))
        )
    return sorted(found, key=lambda one: (not one.positional, not one.required, one.section != ""))


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
    check_names(known, given, where)
    for option in known.values():
        if option.required and option.name not in given:
            raise UsageError(f"{where}{option.name}: is required ({option.help})")
    try:
        values = {name: _converted(value, known[name]) for name, value in given.items()}
        return pydantic.TypeAdapter(settings).validate_python(values)
    except pydantic.ValidationError as error:
        raise UsageError(_explained(error, known, given, where)) from None
    except ValueError as error:
        raise UsageError(f"{where}{error}") from None


def check_names(known: Collection[str], given: Iterable[str], where: str) -> None:
    """Refuse a name that is no setting's; `where` goes before it."""
    for name in given:
        if name not in known:
            raise UsageError(f"{where}{name}: no such setting{did_you_mean(str(name), known)}")


def as_dict(settings: Any) -> dict[str, Any]:
    """Settings as plain values that YAML and JSON know: paths as text, tuples as lists."""
    return {
        field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)
    }


def to_yaml(settings: Any) -> str:
    """Settings as YAML, each with its help beside it."""
    values, lines = as_dict(settings), []
    for option in options(type(settings)):
        entry = yaml.safe_dump(
            values[option.name], default_flow_style=True, sort_keys=False, width=10_000
        )
        entry = entry.removesuffix("...\n").strip()  # the dots that end a lone scalar
        lines.append(f"{option.name}: {entry}  # {option.help}")
    return "\n".join(lines) + "\n"


def _converted(value: Any, option: Option) -> Any:
    """What pydantic would not do by itself: `none`, lists by commas, one number for a list of one, `~` in paths."""
    if (
        isinstance(value, bool)
        and bool not in option.kinds
        and {int, float}.intersection(option.kinds)
    ):
        raise ValueError(
            f"{option.name}: takes a number, not {'yes' if value else 'no'} ({option.help})"
        )
    if isinstance(value, str) and value.lower() == "none" and type(None) in option.kinds:
        return None
    if isinstance(value, Path) and str in option.kinds:  # such as a run that another verb returned
        return str(value)
    for kind in option.kinds:
        if typing.get_origin(kind) is tuple:
            if isinstance(value, str):
                value = [part.strip() for part in value.split(",")]
            elif isinstance(value, int | float | Path):
                value = [value]
            holds_paths = typing.get_args(kind)[0] is Path and isinstance(value, list | tuple)
            return [_path(each, option) for each in value] if holds_paths else value
    return _path(value, option) if Path in option.kinds else value


def _path(value: Any, option: Option) -> Any:
    """A path with its `~` expanded; what is no text stays, for pydantic to refuse."""
    if not isinstance(value, str | Path):
        return value
    if not str(value) or "\0" in str(value):
        raise ValueError(f"{option.name}: is empty or no path ({option.help})")
    return Path(
        os.path.expanduser(value)
    )  # unlike Path.expanduser, leaves the home of nobody alone


def _explained(
    error: pydantic.ValidationError,
    known: Mapping[str, Option],
    given: Mapping[str, Any],
    where: str,
) -> str:
    """The first thing wrong, in one line that names the option and what it takes."""
    first = error.errors()[0]
    if not first["loc"]:  # raised by the dataclass itself, which names the option
        return f"{where}{first['msg'].removeprefix('Value error, ')}"
    option, value = known[str(first["loc"][0])], given[str(first["loc"][0])]
    if first["type"] == "literal_error":
        choices = [str(choice) for kind in option.kinds for choice in typing.get_args(kind)]
        return f"{where}{option.name}: '{value}' is not a choice{did_you_mean(str(value), choices)}"
    if first["type"] in {"too_short", "too_long"}:
        limits = first["ctx"]
        wanted = (
            f"at least {limits['min_length']}"
            if "min_length" in limits
            else f"at most {limits['max_length']}"
        )
        return f"{where}{option.name}: '{value}' should have {wanted} values ({option.help})"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ").split(", ")[0]
    return f"{where}{option.name}: '{value}' {message} ({option.help})"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
