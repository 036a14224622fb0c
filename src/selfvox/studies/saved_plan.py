"""The plan of a study as it is saved in the study's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from selfvox.errors import UsageError
from selfvox.runs.atomic_files import write_text
from selfvox.settings import safe_yaml
from selfvox.settings.options import as_dict, resolve
from selfvox.studies.plan import PATH_SETTINGS, SCRATCH, Plan


def save_plan(plan: Plan, path: Path) -> None:
    """Save a plan with its defaults filled in."""
    write_text(path, yaml.safe_dump(as_dict(plan), sort_keys=False, allow_unicode=True, width=100))


def load_plan(path: Path) -> Plan:
    """Read what `save_plan` wrote.

    Raises:
        UsageError: the file does not exist, so its folder is no study.
    """
    if not path.is_file():
        raise UsageError(
            f"{path.parent}: contains no study; run `selfvox study PLAN --out {path.parent}` first"
        )
    return resolve(Plan, safe_yaml.read_yaml(path))


def align_with_saved(plan: Plan, saved: Plan) -> Plan:
    """Write a plan like the saved one: the same order of methods, equal paths spelt the same.

    New methods come last. Twins and pre-trainings are named after the first method that needs
    them, and a cell is identified by the settings it was made with, so neither may change.
    """
    names = [name for name in saved.methods if name in plan.methods]
    names += [name for name in plan.methods if name not in saved.methods]
    methods = {name: _spell_like(plan.methods[name], saved.methods.get(name)) for name in names}
    return dataclasses.replace(
        plan,
        methods=methods,
        pretrain=_spell_like(plan.pretrain, saved.pretrain),
        finetune=_spell_like(plan.finetune, saved.finetune),
    )


def _spell_like(value: Any, saved: Any) -> Any:
    """A method, its `pretrain` or a path, spelt as it was saved if it means the same."""
    if value == SCRATCH and saved == {"pretrain": None, "finetune": {}}:
        return saved
    if isinstance(value, str) and isinstance(saved, str):
        is_same = Path(value).resolve() == Path(saved).resolve()
        return saved if is_same else value
    if isinstance(value, Mapping) and isinstance(saved, Mapping):
        sections = ("pretrain", "finetune", "predictions")
        keys = [key for key in (*sections, *PATH_SETTINGS) if key in value and key in saved]
        return {**value, **{key: _spell_like(value[key], saved[key]) for key in keys}}
    return value
