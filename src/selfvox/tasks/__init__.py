"""Pretext tasks, one file each; found here by name, those of installed packages too."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from selfvox import plugins
from selfvox.errors import UsageError, did_you_mean
from selfvox.joint import Joint, rename_options
from selfvox.pretext import PretextTask
from selfvox.settings.options import as_dict, resolve

TaskSetting = str | Mapping[str, Any] | PretextTask  # a name, a name with options, or a task


def task_names() -> list[str]:
    """The tasks there are: the files of `tasks/`, and the plug-ins of installed packages."""
    names = {plugin.name for plugin in plugins.installed_plugins(plugins.TASKS)}
    return sorted(names.union(_built_in_names()))


def find_task(name: str) -> type[PretextTask]:
    """The class of the task called `name`.

    Raises:
        UsageError: there is none (names the nearest), two installed packages claim the name, or
            what one offers is not a task.
    """
    built_in = _built_in_names()
    try:
        plugin = plugins.find_plugin(plugins.TASKS, name, built_in)
        if plugin is not None:
            return _task_of(plugin)
    except UsageError as error:
        raise UsageError(f"task: {error}") from None
    if name not in built_in:
        raise UsageError(
            f"task: no pretext task is called '{name}'{did_you_mean(name, task_names())}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    for value in vars(module).values():
        # the file imports PretextTask itself, and may import other tasks
        if _is_task(value) and value.__module__ == module.__name__:
            task: type[PretextTask] = value
            return task
    raise AssertionError(f"tasks/{name}.py defines no PretextTask")


def task_question(name: str) -> str:
    """The first line of the docstring of a task's file: `Jigsaw: by which permutation ...?`.

    Raises:
        UsageError: there is no such task.
    """
    task = find_task(name)
    module = sys.modules[task.__module__]
    text = inspect.getdoc(module) or inspect.getdoc(task) or name
    return text.partition("\n")[0]


def split_task_names(names: str) -> list[str]:
    """`rotation+simclr` -> `["rotation", "simclr"]`."""
    return [name.strip() for name in names.split("+")]


def task_from_setting(task: TaskSetting, weights: Sequence[float] | None = None) -> PretextTask:
    """The task that a setting means: its name, or a mapping of `name` and its options.

    Several names joined by `+` mean a `Joint` task. Its options are called `NAME.OPTION`, and
    `weights` (1 each by default) follow the names. Their order makes no difference: the tasks are
    sorted by name. A task itself is returned as it is.

    Raises:
        UsageError: a task, option or weight that is unknown or invalid; says what to do.
    """
    if isinstance(task, PretextTask):
        if weights is not None:
            raise UsageError("weights: belong to the Joint task itself; leave them out")
        return task
    options = {"name": task} if isinstance(task, str) else dict(task)
    names = split_task_names(str(options.pop("name", "")))
    if len(names) > 1:
        return _joint_task(names, options, weights)
    if weights is not None:
        raise UsageError(
            "weights: are for several tasks at once, such as --task rotation+simclr; leave them out"
        )
    return _single_task(names[0], options)


def task_to_setting(task: PretextTask) -> dict[str, Any]:
    """The mapping that `task_from_setting` reads back; the `weights` of a joint task are not in it.

    A plug-in's has `plugin`, the package and its version. A class that no name finds is named
    `module:Class`: an honest record, which cannot be read back.
    """
    if not isinstance(task, Joint):
        return _to_setting(task)
    setting: dict[str, Any] = {"name": task.name}
    for member in task.tasks:
        options = _to_setting(member)
        del options["name"]
        setting |= {f"{member.name}.{option}": value for option, value in options.items()}
    return setting


def _built_in_names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def _is_task(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, PretextTask)


def _task_of(plugin: plugins.Plugin) -> type[PretextTask]:
    """The class that a plug-in offers, if it is a task."""
    value = plugin.load()
    if not _is_task(value):
        raise UsageError(
            f"'{plugin.name}' of the package {plugin.package} is not a subclass of "
            "selfvox.pretext.PretextTask; repair or uninstall that package"
        )
    task: type[PretextTask] = value
    return task


def _single_task(name: str, options: Mapping[str, Any]) -> PretextTask:
    settings = dict(options)
    task = _find_recorded(name, settings.pop("plugin", None))
    return resolve(task, settings, prefix="task.")


def _find_recorded(name: str, plugin: Any) -> type[PretextTask]:
    """`find_task`; what a run's card records as `plugin` says which package is missing."""
    if name not in task_names():
        if missing := plugins.missing_plugin(name, plugin):
            raise UsageError(f"task: {missing}")
        if ":" in name:
            raise UsageError(
                f"task: {name} is a class that was passed to Python as an object and has no name; "
                "pass it again from Python"
            )
    return find_task(name)


def _to_setting(task: PretextTask) -> dict[str, Any]:
    kind = type(task)
    plugin = plugins.plugin_of(plugins.TASKS, kind)
    if plugin is not None:
        return {"name": plugin.name, **as_dict(task), "plugin": plugin.to_json()}
    if kind.__module__.rpartition(".")[0] == __name__:
        return {"name": task.name, **as_dict(task)}
    return {"name": f"{kind.__module__}:{kind.__qualname__}", **as_dict(task)}


def _joint_task(
    names: Sequence[str], options: Mapping[str, Any], weights: Sequence[float] | None
) -> Joint:
    for name in names:
        _find_recorded(name, options.get(f"{name}.plugin"))
        if names.count(name) > 1:
            raise UsageError(f"task: {name} is named twice; name each task once")
    weights = _checked_weights(names, weights)
    options_of = _options_by_task(names, options)
    weight_of = dict(zip(names, weights, strict=True))
    tasks = []
    # sorted: seeds and weights do not depend on the order in which tasks are named
    for name in sorted(names):
        with rename_options(name):
            tasks.append(_single_task(name, options_of[name]))
    return Joint(tasks=tuple(tasks), weights=tuple(weight_of[name] for name in sorted(names)))


def _checked_weights(names: Sequence[str], weights: Sequence[float] | None) -> Sequence[float]:
    if weights is None:
        return (1.0,) * len(names)
    if len(weights) != len(names):
        raise UsageError(
            f"weights: are {len(weights)} for {len(names)} tasks; give one for each of "
            f"{'+'.join(names)}"
        )
    for name, weight in zip(names, weights, strict=True):
        if weight == 0:
            raise UsageError(
                f"weights: with 0 for {name} nothing would be learned from it; leave {name} out of "
                "the task"
            )
    return weights


def _options_by_task(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"simclr.grid": 2}` -> `{"rotation": {}, "simclr": {"grid": 2}}`."""
    by_task: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in options.items():
        name, _, option = str(key).partition(".")
        if name not in by_task or not option:
            raise _unknown_option(str(key), names)
        by_task[name][option] = value
    return by_task


def _unknown_option(key: str, names: Sequence[str]) -> UsageError:
    all_options = [
        f"{name}.{field.name}" for name in names for field in dataclasses.fields(find_task(name))
    ]
    same_option = [option for option in all_options if option.partition(".")[2] == key]
    remedy = f"; write task.{same_option[0]}" if same_option else did_you_mean(key, all_options)
    return UsageError(f"task.{key}: is no option of {' or '.join(names)}{remedy}")
