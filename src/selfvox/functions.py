"""The verbs as Python functions: their arguments are the fields of the settings dataclasses."""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import os
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfvox.settings import python_syntax
from selfvox.settings.options import Option, options, resolve
from selfvox.settings.verbs import VERBS

AnyPath = str | os.PathLike[str]
Rows = list[dict[str, Any]]

RETURNS: dict[str, Any] = {
    "prepare": Path,
    "pretrain": Path,
    "finetune": Path,
    "predict": list[Path],
    "evaluate": Rows,
    "study": Rows,
    "tissues": Path,
    "download": Path,
    "preview": Path,
    "demo": Path,
    "info": dict[str, Any],
}


def run_verb(settings: Any, **live: Any) -> Any:
    """Run the verb of a settings object; its module is imported now, which takes seconds.

    Args:
        settings: resolved settings, such as `Pretrain(...)`.
        live: Python objects, which a settings file cannot contain.
    """
    name = type(settings).__name__.lower()
    module = importlib.import_module(f"selfvox.commands.{name}")
    return getattr(module, name)(settings, **live)


def verb_function(verb: str) -> Callable[..., Any]:
    """The Python function of a verb, with its signature and help."""
    settings = VERBS[verb]
    signature = inspect.signature(settings)

    def function(*args: Any, **kwargs: Any) -> Any:
        # bind_partial complains about unknown names; resolve does it better, with a suggestion
        names = {key: value for key, value in kwargs.items() if key in signature.parameters}
        values = {**kwargs, **signature.bind_partial(*args, **names).arguments}
        with python_syntax.python_errors(verb, list(values.values())):
            return run_verb(resolve(settings, values))

    function.__name__ = verb
    function.__qualname__ = verb
    function.__module__ = "selfvox"
    function.__doc__ = _docstring(verb)
    function.__signature__ = python_signature(verb)  # type: ignore[attr-defined]
    function.settings = settings  # type: ignore[attr-defined]
    return function


def python_signature(verb: str) -> inspect.Signature:
    """The signature of a verb's function: what it accepts and returns."""
    parameters = inspect.signature(VERBS[verb]).parameters
    return inspect.Signature(
        [
            parameters[option.name].replace(annotation=accepted_type(option))
            for option in options(VERBS[verb])
        ],
        return_annotation=RETURNS[verb],
    )


def accepted_type(option: Option) -> Any:
    """The type that Python callers may pass for an option: wider than the settings' own type."""
    return functools.reduce(operator.or_, (_accepted(kind, option) for kind in option.kinds))


def _accepted(kind: Any, option: Option) -> Any:
    if kind is Path or (kind is str and option.accepts_path):
        return AnyPath
    if typing.get_origin(kind) is dict:
        return Mapping[str, Any]
    if typing.get_origin(kind) is tuple:
        element = _accepted(typing.get_args(kind)[0], option)
        return element | Sequence[element]  # type: ignore[valid-type]  # computed
    return kind


def _docstring(verb: str) -> str:
    """The settings' help in Python's syntax, in Google style."""
    summary, _, rest = inspect.cleandoc(VERBS[verb].__doc__ or "").partition("\n\nReturns:\n")
    returns, _, example = rest.partition("\n\nExample:\n")
    lines = [python_syntax.help_text(summary, verb), "", "Args:"]
    for option in options(VERBS[verb]):
        entry = f"{option.name}: {python_syntax.help_text(option.help, verb)}."
        lines += textwrap.wrap(entry, 92, initial_indent=" " * 4, subsequent_indent=" " * 8)
    lines += ["", "Returns:", returns, "", "Raises:"]
    lines.append(
        "    SelfvoxError: an invalid argument, scan or run; the message names the remedy."
    )
    lines += ["", "Example:", f"    {python_syntax.call(example.strip())}"]
    return "\n".join(lines) + "\n"
