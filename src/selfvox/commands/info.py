"""The command `info`: versions, devices, tasks, encoders and sources of this installation."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import platform
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import torch

from selfvox import tasks
from selfvox.data import sources
from selfvox.models.build import encoder_names
from selfvox.pretext import PretextTask
from selfvox.runs.device import supports_bf16
from selfvox.settings.options import as_dict, options
from selfvox.settings.verbs import Info

CROP = (64, 64, 64)  # for which the cost of tasks is counted
WIDTH = 100  # columns of printed text
_DEVELOPER_EXTRAS = ("dev", "docs", "benchmarks")


def info(settings: Info) -> dict[str, Any]:
    """Print and return what is installed and available; no host, user or path is named."""
    if settings.subject == "tasks":
        facts = _task_facts()
        text = _format_tasks(facts)
    else:
        facts = _installation()
        text = _format_installation(facts)
    print(json.dumps(facts, indent=2) if settings.json else text)
    return facts


def _installation() -> dict[str, Any]:
    return {
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


def _task_facts() -> dict[str, Any]:
    """Each task's question, description, cost and options.

    The cost is the number of voxels that the encoder sees, relative to rotation.
    """
    voxels = {name: _count_voxels(tasks.task_from_setting(name)) for name in tasks.task_names()}
    facts = {}
    for name in tasks.task_names():
        task = tasks.find_task(name)
        defaults = as_dict(tasks.task_from_setting(name))
        facts[name] = {
            "question": tasks.task_question(name),
            "about": inspect.getdoc(task),
            # rotation shows each crop once, and nothing else
            "voxels": round(voxels[name] / voxels["rotation"], 2),
            "options": {
                option.name: {"default": defaults[option.name], "meaning": option.help}
                for option in options(task)
            },
        }
    return facts


def _count_voxels(task: PretextTask) -> int:
    """How many voxels the encoder sees in a step with two crops: all images but a `target`.

    Time and memory of a step are about proportional to it.
    """
    task = task.configure(CROP, (1.0,) * len(CROP))
    # 2: some tasks compare images
    batch = task.make_batch(torch.zeros(2, 1, *CROP), torch.Generator().manual_seed(0))
    shown = [tensor for key, tensor in batch.items() if key != "target"]
    return sum(tensor.numel() for tensor in shown if tensor.ndim == 2 + len(CROP))


def _format_tasks(facts: Mapping[str, Any]) -> str:
    lines = []
    for name, task in facts.items():
        question = task["question"].partition(": ")[2]
        lines += [f"{name}: {question}", ""]
        for paragraph in task["about"].split("\n\n"):
            lines += [_wrap(paragraph, indent=2), ""]
        lines += [f"  Cost: the encoder sees {task['voxels']:g} x the voxels of rotation.", ""]
        lines += [_format_option(option, values) for option, values in task["options"].items()]
        lines.append("")
    crop = " x ".join(map(str, CROP))
    lines += [
        f"Voxels are counted for crops of {crop} voxels and each task's default settings. Time and",
        "memory of a step are about proportional to them.",
    ]
    return "\n".join(lines)


def _format_option(name: str, values: Mapping[str, Any]) -> str:
    default = values["default"]
    if isinstance(default, list):
        default = ",".join(map(str, default))
    flag = name.replace("_", "-")
    return _wrap(f"--task.{flag} [{default}]: {values['meaning']}", indent=2, hanging=4)


def _wrap(text: str, indent: int, hanging: int = 0) -> str:
    """Fill lines; options are not broken at their hyphens."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
        break_on_hyphens=False,
    )


def _packages() -> dict[str, str | None]:
    """The packages that selfvox requires, with versions; None for optional ones not installed."""
    versions: dict[str, str | None] = {}
    for requirement in importlib.metadata.requires("selfvox") or []:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w-]+)", requirement)
        if name is None or (extra and extra[1] in _DEVELOPER_EXTRAS):
            continue
        try:
            versions[name[0]] = importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            versions[name[0]] = None
    return versions


def _devices() -> dict[str, Any]:
    # the cores that this process may use; macOS and Windows do not say
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


def _first_line(module: object) -> str:
    return (module.__doc__ or "").strip().split("\n")[0]


def _format_installation(facts: Mapping[str, Any]) -> str:
    lines = [f"selfvox {facts['selfvox']}, Python {facts['python']}, {facts['system']}"]
    lines += ["", "Devices", *_device_lines(facts["devices"])]
    for title in ("tasks", "sources"):
        lines += ["", title.capitalize()]
        lines += [f"  {name:<17}  {text}" for name, text in facts[title].items()]
    lines += ["", "Encoders", *(f"  {name}" for name in facts["encoders"])]
    lines += ["", "Packages"]
    for name, version in facts["packages"].items():
        lines.append(f"  {name:<30}{version or 'not installed (optional)'}")
    return "\n".join(lines)


def _device_lines(devices: Mapping[str, Any]) -> list[str]:
    cpu = devices["cpu"]
    lines = [f"  cpu   {cpu['cores']} cores, {cpu['instructions']}, {_precision(cpu)}"]
    for number, card in enumerate(devices["cuda"]):
        lines.append(
            f"  cuda:{number}  {card['name']}, {card['memory_gib']} GiB, {_precision(card)}"
        )
    if devices["mps"]:
        lines.append("  mps")
    return lines


def _precision(device: Mapping[str, Any]) -> str:
    return "bf16" if device["bf16"] else "fp32 (no bf16)"
