"""The text of `--help`, made from the settings dataclasses."""

from __future__ import annotations

import inspect
import shutil
import textwrap
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import selfvox
from selfvox.settings.options import Option, options
from selfvox.settings.verbs import VERBS

WORKFLOW = ("pretrain", "finetune", "predict", "evaluate")


def overview() -> str:
    """The help of `selfvox` alone: the workflow and the verbs."""
    table = "\n".join(
        textwrap.fill(f"  {verb:<10}{_summary(verb)}", _width(), subsequent_indent=" " * 12)
        for verb in VERBS
    )
    steps = "\n".join(f"  {example(verb)}" for verb in WORKFLOW)
    return (
        f"selfvox {selfvox.__version__}: self-supervised learning on 3D and 2D medical images\n\n"
        f"usage: selfvox VERB ... [--option value]\n\n"
        f"Try it on synthetic scans:\n  {example('demo')}\n\n"
        f"From your scans to segmentations:\n{steps}\n\nVerbs:\n{table}\n\n"
        "selfvox VERB --help shows the options of a verb, selfvox --version the version."
    )


def flag(name: str) -> str:
    """`learning_rate` as `--learning-rate`."""
    return "--" + name.replace("_", "-")


def example(verb: str) -> str:
    """The command line that the help of a verb shows."""
    return (VERBS[verb].__doc__ or "").rpartition("Example:\n")[2].strip()


def _description(verb: str) -> str:
    """The paragraphs that say what the verb does."""
    return inspect.cleandoc(VERBS[verb].__doc__ or "").partition("\n\nReturns:\n")[0]


def _summary(verb: str) -> str:
    first_line = _description(verb).split("\n")[0]
    return first_line.split(":")[0].split(";")[0].rstrip(".")


def of_verb(verb: str, task: str | None) -> str:
    """The help of one verb, including the options of `task` if it names a task."""
    verb_options = options(VERBS[verb])
    lines = [_usage(verb, verb_options)]
    for paragraph in _description(verb).split("\n\n"):
        lines += textwrap.wrap(paragraph, _width())
    lines += ["", f"Example: {example(verb)}"]
    # in the order in which they first occur
    for section in dict.fromkeys(option.section for option in verb_options):
        lines += ["", f"{section or 'Options'}:"]
        for option in verb_options:
            if option.section == section:
                term = option.name.upper() if option.positional else flag(option.name)
                lines += _entry(term, option)
    if task:
        lines += _task_options(task)
    elif any(option.name == "task" for option in verb_options):
        lines += ["", f"selfvox {verb} --task NAME --help also shows the options of that task."]
    lines += ["", "Always:"]
    lines += _row("--config FILE", "settings from a YAML file; the command line overrides it")
    lines += _row("--print-config", "print all settings as YAML and exit")
    lines += _row("--quiet", "print errors and tables alone, no messages and no progress")
    lines += _row("--debug", "show the traceback of an error")
    return "\n".join(lines)


def _usage(verb: str, verb_options: Sequence[Option]) -> str:
    words = [f"usage: selfvox {verb}"]
    for option in verb_options:
        if option.positional:
            words.append(option.name.upper() if option.required else f"[{option.name.upper()}]")
            if any(typing.get_origin(kind) is tuple for kind in option.kinds):
                words.append("...")
        elif option.required:
            words.append(f"{flag(option.name)} {_metavar(option)}")
    return " ".join([*words, "[--option value]"])


def _task_options(task: str) -> Iterator[str]:
    from selfvox import tasks  # only here: it imports torch, which takes seconds

    names = tasks.split_task_names(task)
    for name in names:
        prefix = f"--task.{name}." if len(names) > 1 else "--task."
        yield from ("", f"Options of the task {name}:")
        for option in options(tasks.find_task(name)):
            yield from _entry(f"{prefix}{option.name.replace('_', '-')}", option)


def _entry(term: str, option: Option) -> Iterator[str]:
    if bool in option.kinds:
        term = f"{term} yes|no" if "." in term else f"{term}/--no-{term.removeprefix('--')}"
    elif not option.positional:
        term = f"{term} {_metavar(option)}"
    no_default = option.required or option.default is None or "default:" in option.help
    yield from _row(term, option.help if no_default else f"{option.help} [{_default(option)}]")


def _default(option: Option) -> str:
    if bool in option.kinds:
        return "yes" if option.default else "no"
    if isinstance(option.default, tuple):
        return ",".join(map(str, option.default))
    return str(option.default)


def _row(term: str, text: str) -> Iterator[str]:
    # an option such as --learning-rate stays in one piece
    lines = textwrap.wrap(text, max(30, _width() - 28), break_on_hyphens=False)
    if len(term) > 24:
        yield f"  {term}"
    else:
        yield f"  {term:<26}{lines.pop(0) if lines else ''}"
    yield from (f"{'':28}{line}" for line in lines)


def _metavar(option: Option) -> str:
    for kind in option.kinds:
        if typing.get_origin(kind) is Literal:
            return "|".join(str(choice) for choice in typing.get_args(kind))
        if typing.get_origin(kind) is tuple:
            return {int: "N,N,..", float: "X,X,.."}.get(typing.get_args(kind)[0], "A,B,..")
    words = {int: "N", float: "X", Path: "PATH"}
    return next((words[kind] for kind in option.kinds if kind in words), "TEXT")


def _width() -> int:
    return min(100, shutil.get_terminal_size((88, 24)).columns)
