"""Pretext tasks, one file each; found here by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from selfvox.errors import UsageError, did_you_mean
from selfvox.joint import Joint, refusals_of
from selfvox.pretext import PretextTask
from selfvox.settings.options import as_dict, resolve


def task_names() -> list[str]:
    """The tasks there are: the files of `tasks/`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_task(name: str) -> type[PretextTask]:
    """The task called `name`.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in task_names():
        raise UsageError(
            f"task: no pretext task is called '{name}'{did_you_mean(name, task_names())}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, PretextTask)
            and value.__module__ == module.__name__
        ):
            return value
    raise AssertionError(f"tasks/{name}.py defines no PretextTask")


def split_task_names(name: str) -> list[str]:
    """`rotation+simclr` -> each by itself."""
    return [part.strip() for part in name.split("+")]


def task_from_setting(
    task: str | Mapping[str, Any], weights: Sequence[float] | None = None
) -> PretextTask:
    """The task that a setting means: its name, or a mapping of `name` and its options.

    Several names joined by `+` mean a `Joint` task. Its options are called `NAME.OPTION`, and `weights` (1 each by
    default) follow the names. Their order makes no difference: the tasks are sorted by name.

    Raises:
        UsageError: a task, option or weight that cannot be; says what to do.
    """
    options = {"name": task} if isinstance(task, str) else dict(task)
    given = split_task_names(str(options.pop("name", "")))
    if len(given) > 1:
        return _joint(given, options, weights)
    if weights is not None:
        raise UsageError(
            "weights: are for several tasks at once, such as --task rotation+simclr; leave them out"
        )
    return resolve(find_task(given[0]), options, prefix="task.")


def task_to_setting(task: PretextTask) -> dict[str, Any]:
    """The mapping that `from_setting` reads back; a joint task's `weights` go beside it."""
    if isinstance(task, Joint):
        own = {
            f"{each.name}.{key}": value
            for each in task.tasks
            for key, value in as_dict(each).items()
        }
        return {"name": task.name, **own}
    return {"name": task.name, **as_dict(task)}


def _joint(
    names: Sequence[str], options: Mapping[str, Any], weights: Sequence[float] | None
) -> Joint:
    kinds, own = (
        {name: find_task(name) for name in names},
        {name: dict[str, Any]() for name in names},
    )
    if len(kinds) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"task: {twice} is named twice; name each task once")
    weights = (1.0,) * len(names) if weights is None else weights
    if len(weights) != len(names):
        raise UsageError(
            f"weights: are {len(weights)} for {len(names)} tasks; give one for each of {'+'.join(names)}"
        )
    if 0 in weights:
        idle = names[list(weights).index(0)]
        raise UsageError(
            f"weights: with 0 for {idle} nothing would be learned from it; leave {idle} out of the task"
        )
    for key, value in options.items():
        name, _, option = str(key).partition(".")
        if name not in own or not option:
            known = [
                f"{each}.{field.name}" for each, kind in kinds.items() for field in fields(kind)
            ]
            meant = [each for each in known if each.partition(".")[2] == key]
            remedy = f"; write task.{meant[0]}" if meant else did_you_mean(str(key), known)
            raise UsageError(f"task.{key}: is no option of {' or '.join(names)}{remedy}")
        own[name][option] = value
    tasks = []
    for name in sorted(names):
        with refusals_of(name):
            tasks.append(resolve(kinds[name], own[name], prefix="task."))
    return Joint(
        tasks=tuple(tasks),
        weights=tuple(weight for _, weight in sorted(zip(names, weights, strict=True))),
    )
