"""What is measured of each method before its cells are made: `methods.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.runs.typed_json import parse, read_checked, write_checked

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """What is measured of one method."""

    network: dict[str, Any]  # the encoder's architecture, which the twin shares
    store: str  # what it is fine-tuned on, within the study's folder
    pretrain_steps: int
    pretrain_step_s: float
    pretrain_step_flop: float  # 0 unless the plan compares at equal operations
    step_s: float  # of fine-tuning
    step_flop: float
    validation_s: float  # to start, validate all subjects once, and save
    test_s: float  # to predict and score all test subjects
    training: int  # labelled subjects available for training
    scans_per_subject: float  # of these, in the mean
    teacher_s: float = 0.0  # of what teaches unlabelled scans, besides more trainings; estimated


def load_facts(out: Path) -> dict[str, MethodFacts]:
    """The facts of the methods that were measured so far, by name."""
    file = out / "methods.json"
    if not file.exists():
        return {}
    facts: dict[str, MethodFacts] = parse(
        dict[str, MethodFacts], read_checked(file).get("methods"), str(file)
    )
    return facts


def save_facts(facts: Mapping[str, MethodFacts], out: Path) -> None:
    """Replace the facts of all methods."""
    methods = {name: dataclasses.asdict(values) for name, values in facts.items()}
    write_checked(out / "methods.json", {"format": FORMAT, "methods": methods})


def forget_methods(out: Path, names: Collection[str]) -> None:
    """Have these methods measured again."""
    facts = load_facts(out)
    if facts.keys() & set(names):
        save_facts({name: facts[name] for name in facts if name not in names}, out)
