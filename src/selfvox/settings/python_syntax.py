"""Help and messages in Python's syntax: `--crop 64,64,64` becomes `crop=(64, 64, 64)`.

Both are written once, for the command line. Only options of the known verbs are rewritten.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from selfvox.errors import SelfvoxError
from selfvox.settings.options import Option, options
from selfvox.settings.verbs import VERBS

_OPTION = re.compile(
    r"(?<![^\s(`])--(?P<name>[a-z][a-z0-9_-]*)(?P<inner>\.[A-Za-z][\w.-]*)?"
    r"(?:[ =](?P<value>'[^']*'|[^\s;()`]+))?"
)
_COMMAND = re.compile(r"`selfvox (?P<verb>[a-z]+) (?P<words>[^`]+)`")
# "leave --maps out": the word after an option of free text is its value, unless it is one of these
_NOT_VALUES = frozenset(
    """a again an and as at belongs by can cannot for from gives goes has if in instead is it needs
    of or out that the then to together too whose with without""".split()  # noqa: SIM905 - shorter
)
_NUMBERS = re.compile(r"(?<=such as )\d+(?:\.\d+)?(?:,\d+(?:\.\d+)?)+")


@contextlib.contextmanager
def python_errors(verb: str, values: Sequence[Any] = ()) -> Iterator[None]:
    """Rewrite the message of an error that leaves a Python function, as `to_python` does."""
    try:
        yield
    except SelfvoxError as error:
        error.args = (to_python(str(error), verb, values), *error.args[1:])
        raise


def help_text(text: str, verb: str) -> str:
    """A help text for Python: options as arguments, and lists of numbers as tuples."""
    return _NUMBERS.sub(lambda match: f"({match[0].replace(',', ', ')})", to_python(text, verb))


def to_python(text: str, verb: str, values: Sequence[Any] = ()) -> str:
    """Rewrite command-line options in a text as Python arguments.

    Args:
        text: a help text or a message.
        verb: the verb called; an option of another verb is rewritten too.
        values: arguments of the call, left as they are where the text quotes them, such as paths.
    """
    text = _COMMAND.sub(_call, text)
    by_name = _options_by_name(verb)
    # the longest first, since a path may begin with another one
    quoted = sorted({str(value) for value in values if "--" in str(value)}, key=len, reverse=True)
    if not quoted:
        return _rewrite(text, by_name)
    pieces = re.split(f"({'|'.join(map(re.escape, quoted))})", text)
    return "".join(piece if piece in quoted else _rewrite(piece, by_name) for piece in pieces)


def call(command: str) -> str:
    """`selfvox pretrain scans/ --out run` as a call of the Python function; as it is if unclear."""
    match = _COMMAND.fullmatch(f"`{command}`")
    return _call(match).strip("`") if match else command


@functools.cache  # called for every option of every help text
def _options_by_name(verb: str) -> dict[str, Option]:
    """The options of all verbs; those of `verb` come before others of the same name."""
    in_order = [settings for name, settings in VERBS.items() if name != verb]
    in_order += [settings for name, settings in VERBS.items() if name == verb]
    return {option.name: option for settings in in_order for option in options(settings)}


def _rewrite(text: str, by_name: Mapping[str, Option]) -> str:
    def replace(match: re.Match[str]) -> str:
        name = match["name"].replace("-", "_")
        inner = (match["inner"] or "").removeprefix(".").replace("-", "_")
        raw = match["value"] or ""
        value = raw.rstrip(",.:?!")
        end = match[0][match.start("value") - match.start() - 1 :] if raw else ""
        positive = name.removeprefix("no_")
        if name not in by_name and positive in by_name and bool in by_name[positive].kinds:
            return f"{positive}=False{end}"
        if name not in by_name:
            return match[0]
        rest = raw[len(value) :]
        if inner:
            literal = _inner_literal(value)
            if literal is None:
                return f'{name}["{inner}"]{end}'
            return f'{name}={{..., "{inner}": {literal}}}{rest}'
        if bool in by_name[name].kinds:
            return f"{name}=True{end}"
        literal = _literal(value, by_name[name])
        if literal is not None:
            return f"{name}={literal}{rest}"
        in_backticks = text[match.start() - 1 : match.start()] == "`"
        return f"{name}{end}" if in_backticks else f"`{name}`{end}"

    return _OPTION.sub(replace, text)


def _call(match: re.Match[str]) -> str:
    if match["verb"] not in VERBS:
        return match[0]
    by_name = {option.name: option for option in options(VERBS[match["verb"]])}
    count = sum(option.positional for option in by_name.values())
    arguments = []
    try:
        words = iter(shlex.split(match["words"]))
    except ValueError:
        return match[0]
    for word in words:
        if not word.startswith("--"):
            arguments.append(_text_literal(word))
            continue
        name = word.removeprefix("--").replace("-", "_")
        if name not in by_name:
            return match[0]
        is_flag = bool in by_name[name].kinds
        literal = "True" if is_flag else _literal(next(words, ""), by_name[name], strict=True)
        arguments.append(f"{name}={literal}")
    if sum("=" not in argument for argument in arguments) > count:
        return match[0]
    return f"`selfvox.{match['verb']}({', '.join(arguments)})`"


def _literal(text: str, option: Option, strict: bool = False) -> str | None:
    """The value as Python writes it; None where the word after the option is not its value."""
    if not text:
        return None
    for kind in option.kinds:
        if typing.get_origin(kind) is Literal:
            if text in typing.get_args(kind):
                return f'"{text}"'
        elif kind in (int, float):
            if _number(text) is not None or text.isupper():
                return text
        elif typing.get_origin(kind) is tuple:
            literal = _tuple_literal(text, typing.get_args(kind)[0], strict)
            if literal is not None:
                return literal
        elif kind is not type(None) and (strict or text.lower() not in _NOT_VALUES):
            return _text_literal(text.strip("'"))
    return None


def _tuple_literal(text: str, element: Any, strict: bool) -> str | None:
    items = text.strip("'").split(",")
    if element in (int, float):
        if any(_number(item) is None for item in items):
            return text if text.isupper() else None
    elif not strict and text.lower() in _NOT_VALUES:
        return None
    else:
        items = [_text_literal(item) for item in items]
    return items[0] if len(items) == 1 else f"({', '.join(items)})"


def _inner_literal(text: str) -> str | None:
    """A value of an option of a task or network, of unknown type."""
    if not text or text.lower() in _NOT_VALUES:
        return None
    if text in ("true", "false"):
        return text.capitalize()
    items = text.split(",")
    if all(_number(item) is not None for item in items):
        return items[0] if len(items) == 1 else f"({', '.join(items)})"
    return _text_literal(text.strip("'"))


def _text_literal(text: str) -> str:
    """Quoted text; a placeholder in capitals, such as RUN, stays bare."""
    return text if re.fullmatch("[A-Z_]+", text) else f'"{text}"'


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
