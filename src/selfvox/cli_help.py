"""What `--help` prints, made from the settings dataclasses."""

from __future__ import annotations

import shutil
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import selfvox
from selfvox.settings.options import Option, options

WORKFLOW = ("pretrain", "finetune", "predict", "evaluate")

Verb = Callable[..., Any]


def overview(verbs: Mapping[str, Verb]) -> str:
    """What `selfvox` alone prints: the short way, and the verbs."""
    table = "\n".join(
        textwrap.fill(f"  {name:<10}{_summary(verb)}", _width(), subsequent_indent=" " * 12)
        for name, verb in verbs.items()
    )
    steps = "\n".join(f"  {_example(verbs[name])}" for name in WORKFLOW)
    return (
        f"selfvox {selfvox.__version__}: self-supervised learning on 3D and 2D medical images\n\n"
        f"usage: selfvox VERB ... [--option value]\n\nSee it work on synthetic scans:\n  {_example(verbs['demo'])}\n\n"
        f"From your scans to segmentations:\n{steps}\n\nVerbs:\n{table}\n\n"
        "selfvox VERB --help shows the options of a verb; selfvox --version the version."
    )


def flag(name: str) -> str:
    """`learning_rate` as `--learning-rate`."""
    return "--" + name.replace("_", "-")


def _summary(verb: Verb) -> str:
    return (verb.__doc__ or "").split("\n")[0].split(":")[0].split(";")[0].rstrip(".")


def _example(verb: Verb) -> str:
    return (verb.__doc__ or "").rpartition("Example:\n")[2].strip()


def of_verb(name: str, verb: Verb, known: Sequence[Option], task: str | None) -> str:
    """The help of one verb; with that of a task's own options where `task` names one."""
    positional = [option for option in known if option.positional]
    required = [option for option in known if option.required and not option.positional]
    usage = [
        f"usage: selfvox {name}",
        *(
            option.name.upper() if option.required else f"[{option.name.upper()}]"
            for option in positional
        ),
        *(f"{flag(option.name)} {_metavar(option)}" for option in required),
        "[--option value]",
    ]
    doc = verb.__doc__ or ""
    blocks = [
        " ".join(usage),
        *textwrap.wrap(doc.split("\n")[0], _width()),
        "",
        f"Example: {_example(verb)}",
    ]
    for section in dict.fromkeys(option.section for option in known):
        blocks += ["", f"{section or 'Options'}:"]
        for option in known:
            if option.section == section:
                blocks += _entry(
                    option.name.upper() if option.positional else flag(option.name), option
                )
    if task:
        from selfvox import tasks  # only here: it imports torch, which takes seconds

        names = tasks.split_task_names(task)
        for each in names:
            before = f"--task.{each}." if len(names) > 1 else "--task."
            blocks += ["", f"Options of the task {each}:"]
            for option in options(tasks.find_task(each)):
                blocks += _entry(f"{before}{option.name.replace('_', '-')}", option)
    elif any(option.name == "task" for option in known):
        blocks += ["", f"selfvox {name} --task NAME --help shows the options of a task too."]
    blocks += ["", "Always:"]
    blocks += _row("--config FILE", "settings from a YAML file; the command line wins over it")
    blocks += _row("--print-config", "print all settings as YAML, and do nothing")
    blocks += _row("--debug", "show where an error came from")
    return "\n".join(blocks)


def _entry(left: str, option: Option) -> Iterator[str]:
    if bool in option.kinds:
        left = f"{left} yes|no" if "." in left else f"{left}/--no-{left.removeprefix('--')}"
        default = "yes" if option.default else "no"
    else:
        left = left if option.positional else f"{left} {_metavar(option)}"
        default = (
            ",".join(str(each) for each in option.default)
            if isinstance(option.default, tuple)
            else option.default
        )
    shown = option.required or option.default is None or "default:" in option.help
    return _row(left, option.help if shown else f"{option.help} [{default}]")


def _row(left: str, right: str) -> Iterator[str]:
    lines = textwrap.wrap(right, max(30, _width() - 28), break_on_hyphens=False)
    if len(left) > 24:
        yield f"  {left}"
    else:
        yield f"  {left:<26}{lines.pop(0) if lines else ''}"
    yield from (f"{'':28}{line}" for line in lines)


def _metavar(option: Option) -> str:
    for kind in option.kinds:
        if typing.get_origin(kind) is Literal:
            return "|".join(str(each) for each in typing.get_args(kind))
        if typing.get_origin(kind) is tuple:
            return {int: "N,N,..", float: "X,X,.."}.get(typing.get_args(kind)[0], "A,B,..")
    words = {int: "N", float: "X", Path: "PATH"}
    return next((words[kind] for kind in option.kinds if kind in words), "TEXT")


def _width() -> int:
    return min(100, shutil.get_terminal_size((88, 24)).columns)
