"""A plan file or a preset, read with what the command line gives."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfvox.errors import UsageError, did_you_mean
from selfvox.runs.progress import echo
from selfvox.settings import safe_yaml
from selfvox.settings.options import check_names, options, resolve
from selfvox.studies.check_plan import CORPUS, check_plan
from selfvox.studies.plan import Plan

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """The plans that come with selfvox."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_plan(
    plan: str, data: Path | None = None, scale: float = 1.0, corpus: Path | None = None
) -> Plan:
    """Read a plan file or a preset, and check all of it.

    Args:
        plan: path of a YAML file, or the name of a preset.
        data: overrides the plan's data.
        scale: overrides the plan's scale, unless 1.
        corpus: overrides the plan's; without it, a preset has no methods that need one.

    Raises:
        UsageError: there is no such plan, or a setting is unknown, missing or invalid.
    """
    path = _find_plan(plan)
    values = safe_yaml.read_yaml(path)
    if data is not None:
        values["data"] = str(data.absolute())
    elif path.parent == PRESETS:
        raise UsageError(f"{plan}: this preset needs scans; give their folder with --data PATH")
    if scale != 1:
        values["scale"] = scale
    if corpus is not None:
        values["corpus"] = str(corpus.absolute())
    elif path.parent == PRESETS:
        _leave_out_corpus(values)
    try:
        _check_complete(values)
        return check_plan(resolve(Plan, values), path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _find_plan(plan: str) -> Path:
    path = Path(os.path.expanduser(plan))
    if path.is_file():
        return path
    if plan not in preset_names():
        hint = did_you_mean(plan, preset_names())
        raise UsageError(f"{plan}: there is no such plan file or preset{hint}")
    return PRESETS / f"{plan}.yaml"


def _leave_out_corpus(values: dict[str, Any]) -> None:
    """Remove the methods that are pre-trained on a corpus; prints their names."""
    names = [
        name
        for name, entry in values["methods"].items()
        if isinstance(entry, Mapping)
        and isinstance(entry.get("pretrain"), Mapping)
        and entry["pretrain"].get("scans") == CORPUS
    ]
    for name in names:
        del values["methods"][name]
    if names:
        echo(f"left out, since they need --corpus PATH: {', '.join(names)}")


def _check_complete(values: Mapping[str, Any]) -> None:
    """Refuse a plan with unknown or missing settings, all of them at once."""
    settings = options(Plan)
    problems = []
    try:
        check_names([option.name for option in settings], values, "")
    except UsageError as error:
        problems.append(str(error))
    missing = [
        f"{option.name} ({option.help})"
        for option in settings
        if option.required and option.name not in values
    ]
    if missing:
        problems.append(f"required settings are missing: {', '.join(missing)}")
    if problems:
        raise UsageError("; ".join(problems))
