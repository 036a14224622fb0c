"""Checkpoints of a run: what it continues from, each with a record that has its checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from selfvox.errors import DataError, WeightsError
from selfvox.runs import strict_json
from selfvox.runs.atomic_files import sha256, write_json
from selfvox.runs.card import Count
from selfvox.runs.progress import echo
from selfvox.runs.typed_json import parse
from selfvox.runs.weights import load_tensors, save_tensors

CHECKPOINTS = "checkpoints"  # the folder of a run that contains them
FORMAT = 1
CHECKPOINTS_KEPT = 2  # if the newest is damaged, a run continues from the one before


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to continue as if it had never stopped."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, int]  # counts


@dataclass(frozen=True)
class _Record:
    """The record of a checkpoint, as JSON has it."""

    format: int
    step: Count
    sha256: str  # of the file of tensors, the step and the state
    state: Mapping[str, Count]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically, with a checksum, and remove all but the last two.

    Raises:
        ResourceError: the disk is full; the earlier checkpoints are intact.
    """
    folder.mkdir(exist_ok=True)
    # eight digits, so that names sort as their steps do
    weights = folder / f"step-{checkpoint.step:08d}.safetensors"
    record = weights.with_suffix(".json")
    save_tensors(weights, checkpoint.tensors)
    checksum = _checksum(weights, checkpoint.step, checkpoint.state)
    # the record comes last: a checkpoint without one does not count
    write_json(
        record,
        {
            "format": FORMAT,
            "step": checkpoint.step,
            "sha256": checksum,
            "state": checkpoint.state,
        },
    )
    _remove_old_checkpoints(folder, record)


def has_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint was ever completed here, intact or damaged by now."""
    return newest_step(folder) is not None


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint, intact or damaged by now; None if there is none."""
    steps = [int(file.stem[5:]) for file in folder.glob("step-*.json") if file.stem[5:].isdecimal()]
    return max(steps, default=None)


def read_last_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is intact; None if none was ever written.

    Raises:
        WeightsError: every checkpoint is damaged, or the newest one has a newer format.
    """
    # by their names, newest first
    records = sorted(folder.glob("step-*.json"), reverse=True)
    for record in records:
        checkpoint = _read_checkpoint(record)
        if checkpoint is not None:
            return checkpoint
    if records:
        raise WeightsError(
            f"{folder}: every checkpoint is damaged; start the run again in another folder"
        )
    return None


def _remove_old_checkpoints(folder: Path, newest: Path) -> None:
    """Keep the last two checkpoints up to the record `newest`.

    Later ones are damaged, otherwise the run would have continued from them.
    """
    records = [file for file in sorted(folder.glob("step-*.json")) if file <= newest]
    recent = records[-CHECKPOINTS_KEPT:]
    for file in sorted(folder.glob("step-*")):
        if file.with_suffix(".json") not in recent and not file.is_dir():
            file.unlink()


def _read_checkpoint(record: Path) -> Checkpoint | None:
    """The checkpoint of this record; None, with a message, if it is damaged.

    Raises:
        WeightsError: it has a newer format.
    """
    weights = record.with_suffix(".safetensors")
    try:
        values: _Record = parse(_Record, strict_json.read_json(record), str(record))
        if _checksum(weights, values.step, values.state) != values.sha256:
            raise WeightsError("its checksum does not match")
        checkpoint = Checkpoint(values.step, load_tensors(weights), dict(values.state))
    except (DataError, WeightsError) as error:
        echo(f"{weights}: damaged ({error}); using the one before")
        return None
    # after the checksum: a damaged record must not pass for one of a newer version
    if values.format != FORMAT:
        raise WeightsError(
            f"{record}: format {values.format} is not known to this version; update selfvox"
        )
    return checkpoint


def _checksum(weights: Path, step: int, state: Mapping[str, int]) -> str:
    """Over the file of tensors and the contents of its record."""
    return hashlib.sha256(f"{sha256(weights)} {json.dumps([step, state])}".encode()).hexdigest()
