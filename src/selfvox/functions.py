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

from selfvox.errors import UsageError
from selfvox.runs.log_file import forget_earlier_lines
from selfvox.settings import python_syntax
from selfvox.settings.options import Option, options, resolve
from selfvox.settings.verbs import VERBS

AnyPath = str | os.PathLike[str]
OnMetrics = Callable[[int, dict[str, float]], object]


class Module:
    """`torch.nn.Module` in signatures: importing torch would take seconds."""


class Task:
    """`selfvox.pretext.PretextTask` in signatures, for the same reason."""


Rows = list[dict[str, Any]]

RETURNS: dict[str, Any] = {
    "lint": Rows,
    "prepare": Path,
    "pretrain": Path,
    "finetune": Path,
    "predict": list[Path],
    "calibrate": Path,
    "evaluate": Rows,
    "report": Path,
    "correct": Path,
    "convert": list[Path],
    "export": Path,
    "adopt": Path,
    "study": Rows,
    "atlas": list[Path],
    "embed": Path,
    "suggest": Rows,
    "tissues": Path,
    "download": Path,
    "preview": Path,
    "demo": Path,
    "doctor": Rows,
    "info": dict[str, Any],
}


# Python objects that a settings file cannot contain, by verb
OBJECTS: dict[str, dict[str, str]] = {
    "pretrain": {
        "encoder": "a module to train, instead of `network`; it starts from the weights it has",
        "on_metrics": "called as on_metrics(step, metrics) after each logged step",
    },
    "finetune": {"on_metrics": "called as on_metrics(step, metrics) after each logged step"},
}


def run_verb(settings: Any, **live: Any) -> Any:
    """Run the verb of a settings object; its module is imported now, which takes seconds.

    Args:
        settings: resolved settings, such as `Pretrain(...)`.
        live: Python objects, which a settings file cannot contain.
    """
    forget_earlier_lines()
    name = type(settings).__name__.lower()
    module = importlib.import_module(f"selfvox.commands.{name}")
    return getattr(module, name)(settings, **live)


def verb_function(verb: str) -> Callable[..., Any]:
    """The Python function of a verb, with its signature and help."""
    settings = VERBS[verb]
    signature = inspect.signature(settings)

    def function(*args: Any, **kwargs: Any) -> Any:
        live = {name: kwargs.pop(name) for name in OBJECTS.get(verb, ()) if name in kwargs}
        # bind_partial complains about unknown names; resolve does it better, with a suggestion
        names = {key: value for key, value in kwargs.items() if key in signature.parameters}
        values = {**kwargs, **signature.bind_partial(*args, **names).arguments}
        with python_syntax.python_errors(verb, list(values.values())):
            live |= _take_objects(verb, values, live)
            return run_verb(resolve(settings, values), **live)

    function.__name__ = verb
    function.__qualname__ = verb
    function.__module__ = "selfvox"
    function.__doc__ = _docstring(verb)
    function.__signature__ = python_signature(verb)  # type: ignore[attr-defined]
    function.settings = settings  # type: ignore[attr-defined]
    return function


def _take_objects(verb: str, values: dict[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the objects among the values by what `settings.yaml` records of them; return them."""
    if live.get("encoder") is not None and "network" in values:
        raise UsageError("network: belongs to the encoder that is given; leave --network out")
    if verb == "pretrain" and live.get("encoder") is not None:
        values["network"] = _class_name(live["encoder"])
    taken = {}
    task = values.get("task")
    if task is not None and not isinstance(task, str | Mapping):
        values["task"] = _task_record(task)
        taken["task"] = task
    encoder = values.get("encoder")
    if verb == "finetune" and hasattr(encoder, "state_dict"):
        values["encoder"] = _class_name(encoder)
        taken["encoder"] = encoder
    return taken


def _class_name(value: Any) -> str:
    """What a run records of an object: it cannot be built again from this."""
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _task_record(task: Any) -> dict[str, Any]:
    """A task from Python as the mapping that a run records."""
    from selfvox import tasks  # only here: it imports torch, which takes seconds
    from selfvox.pretext import PretextTask

    if not isinstance(task, PretextTask):
        kind = type(task).__name__
        raise UsageError(f"task: takes a name, a mapping or a PretextTask, not a {kind}")
    return tasks.task_to_setting(task)


def python_signature(verb: str) -> inspect.Signature:
    """The signature of a verb's function: what it accepts and returns."""
    parameters = inspect.signature(VERBS[verb]).parameters
    accepted = [
        parameters[option.name].replace(annotation=accepted_type(option))
        for option in options(VERBS[verb])
    ]
    types = {"encoder": Module | None, "on_metrics": OnMetrics | None}
    accepted += [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=types[name]
        )
        for name in OBJECTS.get(verb, ())
    ]
    return inspect.Signature(accepted, return_annotation=RETURNS[verb])


def accepted_type(option: Option) -> Any:
    """The type that Python callers may pass for an option: wider than the settings' own type."""
    accepted = [_accepted(kind, option) for kind in option.kinds]
    # `encoder` of finetune: a run or a module
    if option.name == "encoder":
        accepted.append(Module)
    return functools.reduce(operator.or_, accepted)


def _accepted(kind: Any, option: Option) -> Any:
    if typing.get_origin(kind) is dict and option.name == "task":
        return Mapping[str, Any] | Task
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
    for name, text in OBJECTS.get(verb, {}).items():
        entry = f"{name}: {text}; in Python only."
        lines += textwrap.wrap(entry, 92, initial_indent=" " * 4, subsequent_indent=" " * 8)
    lines += ["", "Returns:", returns, "", "Raises:"]
    lines.append(
        "    SelfvoxError: an invalid argument, scan or run; the message names the remedy."
    )
    lines += ["", "Example:", f"    {python_syntax.call(example.strip())}"]
    return "\n".join(lines) + "\n"
