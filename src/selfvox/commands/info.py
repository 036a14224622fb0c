"""The verb `info`: versions, devices, tasks, encoders and sources of this installation."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import re
import textwrap
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch

from selfvox import tasks
from selfvox.data import sources
from selfvox.models.build import encoder_names
from selfvox.pretext import PretextTask
from selfvox.runs.device import supports_bf16
from selfvox.settings.options import as_dict, options
from selfvox.settings.verbs import Info

CROP = (64, 64, 64)  # of which the cost of tasks is told
_FOR_DEVELOPERS = ("dev", "docs", "benchmarks")


def info(settings: Info) -> dict[str, Any]:
    """Print and return what is installed and what can be asked for. Names no host, user or path."""
    if settings.subject == "tasks":
        about = _tasks()
        print(json.dumps(about, indent=2) if settings.json else _readable_tasks(about))
        return about
    found = {
        "selfvox": importlib.metadata.version("selfvox"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": _packages(),
        "devices": _devices(),
        "tasks": {name: tasks.task_question(name) for name in tasks.task_names()},
        "encoders": encoder_names(),
        "sources": {
            name: _first_line(sources.open_source(name)) for name in sources.source_names()
        },
    }
    print(json.dumps(found, indent=2) if settings.json else _readable(found))
    return found


def _tasks() -> dict[str, Any]:
    """Of each task: its question, when to use it, its options, and the voxels its encoder sees, rotation's being 1."""
    shown = {name: _voxels(tasks.task_from_setting(name)) for name in tasks.task_names()}
    return {
        name: {
            "question": question,
            "about": inspect.getdoc(tasks.find_task(name)),
            "voxels": round(shown[name] / shown["rotation"], 2),
            "options": {
                option.name: {
                    "default": as_dict(tasks.task_from_setting(name))[option.name],
                    "meaning": option.help,
                }
                for option in options(tasks.find_task(name))
            },
        }
        for name, question in ((name, tasks.task_question(name)) for name in tasks.task_names())
    }


def _voxels(task: PretextTask) -> int:
    """How many voxels the encoder sees in a step with two crops: a step's time and memory go with them."""
    task = task.configure(CROP, (1.0,) * len(CROP))
    question = task.make_batch(torch.zeros(2, 1, *CROP), torch.Generator().manual_seed(0))
    return sum(each.numel() for each in question.values() if each.ndim == 2 + len(CROP))


def _readable_tasks(about: Mapping[str, Any]) -> str:
    lines = []
    for name, task in about.items():
        lines += [f"{name}: {task['question'].partition(': ')[2]}", ""]
        lines += [
            textwrap.fill(part, 100, initial_indent="  ", subsequent_indent="  ") + "\n"
            for part in task["about"].split("\n\n")
        ]
        lines += [
            f"  Cost: the encoder sees {task['voxels']:g} times the voxels that it sees in rotation.",
            "",
        ]
        for option, each in task["options"].items():
            shown = (
                ",".join(map(str, each["default"]))
                if isinstance(each["default"], list)
                else each["default"]
            )
            text = f"--task.{option.replace('_', '-')} [{shown}]: {each['meaning']}"
            lines.append(
                textwrap.fill(
                    text,
                    100,
                    initial_indent="  ",
                    subsequent_indent=" " * 6,
                    break_on_hyphens=False,
                )
            )
        lines.append("")
    lines.append(
        f"Voxels are counted for crops of {' x '.join(map(str, CROP))} voxels and each task's defaults; time and"
    )
    lines.append("memory of a step go with them.")
    return "\n".join(lines)


def _packages() -> dict[str, str | None]:
    """The packages that selfvox asks for, and their versions; None: an optional one that is not installed."""
    versions: dict[str, str | None] = {}
    for requirement in importlib.metadata.requires("selfvox") or []:
        name, extra = (
            re.match(r"[\w.-]+", requirement),
            re.search(r"extra == ['\"]([\w-]+)", requirement),
        )
        if name is None or (extra and extra[1] in _FOR_DEVELOPERS):
            continue
        try:
            versions[name[0]] = importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            versions[name[0]] = None
    return versions


def _devices() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cards = [
        torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())
    ]
    return {
        "cpu": {
            "cores": cores,
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "bf16": supports_bf16("cpu"),
        },
        "cuda": [
            {
                "name": card.name,
                "memory_gib": round(card.total_memory / 2**30, 1),
                "bf16": supports_bf16("cuda"),
            }
            for card in cards
        ],
        "mps": torch.backends.mps.is_available(),
    }


def _described(folder: ModuleType, names: Iterable[str]) -> dict[str, str]:
    """Each module of a folder with the first line of its docstring."""
    modules = {name: importlib.import_module(f"{folder.__name__}.{name}") for name in names}
    return {name: _first_line(module) for name, module in modules.items()}


def _first_line(module: object) -> str:
    return (module.__doc__ or "").strip().split("\n")[0]


def _readable(found: Mapping[str, Any]) -> str:
    cpu = found["devices"]["cpu"]
    lines = [
        f"selfvox {found['selfvox']}, Python {found['python']}, {found['system']}",
        "",
        "Devices",
        f"  cpu   {cpu['cores']} cores, {cpu['instructions']}, {_arithmetic(cpu)}",
    ]
    for number, card in enumerate(found["devices"]["cuda"]):
        lines.append(
            f"  cuda:{number}  {card['name']}, {card['memory_gib']} GiB, {_arithmetic(card)}"
        )
    if found["devices"]["mps"]:
        lines.append("  mps")
    for title in ("tasks", "sources"):
        lines += [
            "",
            title.capitalize(),
            *(f"  {name:<17}  {text}" for name, text in found[title].items()),
        ]
    lines += ["", "Encoders", *(f"  {name}" for name in found["encoders"])]
    lines += ["", "Packages"]
    lines += [
        f"  {name:<30}{version or 'not installed (optional)'}"
        for name, version in found["packages"].items()
    ]
    return "\n".join(lines)


def _arithmetic(device: Mapping[str, Any]) -> str:
    return "bf16" if device["bf16"] else "fp32 (no bf16)"
