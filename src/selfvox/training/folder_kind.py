"""What a folder is that a verb cannot use, and which verb comes first."""

from __future__ import annotations

import shlex
from pathlib import Path

from selfvox.data.preparation.manifest import is_store
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError, SelfvoxError, UsageError, WeightsError
from selfvox.runs.launcher import Launch
from selfvox.runs.run_folder import read_run_record

PRETRAIN_FIRST = "pre-train on it first (`selfvox pretrain`), and give that run as --encoder"


def check_scans(scans: Path) -> None:
    """Refuse a run where scans are needed: its learning curve would be taken for a picture.

    Raises:
        DataError: the folder is a run.
    """
    verb = _verb_of_run(scans)
    if verb:
        raise DataError(
            f"{scans}: is a run of `selfvox {verb}`, not scans; name the scans, or its store/"
        )


def check_prepared(launch: Launch, *folders: Path | None) -> None:
    """Refuse scans that are not prepared where a launcher started several processes.

    Raises:
        UsageError: a folder is no store.
    """
    for scans in folders:
        if scans is not None and not is_store(scans):
            raise UsageError(
                f"{scans}: is not a store; {launch.launcher} started {launch.processes} "
                "processes, of which one would prepare the scans while the others wait; prepare "
                f"them first with `selfvox prepare {shlex.quote(str(scans))} --out store/`, and "
                "name the store"
            )


def check_encoder(encoder: Path) -> None:
    """Refuse a folder that cannot have an encoder, and say what it is.

    Raises:
        WeightsError: the folder is a store, a folder of scans, or an unfinished pre-training.
    """
    if is_store(encoder):
        raise WeightsError(
            f"{encoder}: is a store of prepared scans, not an encoder; {PRETRAIN_FIRST}"
        )
    is_finished = (encoder / "encoder").is_dir() or (encoder / "network").is_dir()
    if _verb_of_run(encoder) == "pretrain" and not is_finished:
        raise WeightsError(
            f"{encoder}: is a pre-training run that has not finished; go on with it first "
            f"(`selfvox pretrain --config {encoder / 'settings.yaml'} --resume`)"
        )
    is_part = is_finished or (encoder / "encoder.json").exists()
    if encoder.is_dir() and not is_part and _has_scans(encoder):
        raise WeightsError(f"{encoder}: is a folder of scans, not an encoder; {PRETRAIN_FIRST}")


def _verb_of_run(folder: Path) -> str | None:
    """The verb that made a run; None where the folder is none."""
    verb: str | None = read_run_record(folder).get("verb")
    return verb


def _has_scans(folder: Path) -> bool:
    try:
        return bool(find_dataset(folder).cases)
    except SelfvoxError:
        return False
