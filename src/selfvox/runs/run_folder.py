"""A run folder: settings, provenance, metrics and checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfvox.errors import UsageError, WeightsError
from selfvox.runs import tensorboard
from selfvox.runs.atomic_files import folder_lock, sha256, write_json, write_text
from selfvox.runs.ledger import append_record, read_records, write_records
from selfvox.runs.progress import echo
from selfvox.runs.weights import load_tensors, save_tensors
from selfvox.settings import safe_yaml
from selfvox.settings.options import as_dict, to_yaml

FORMAT = 1
KEPT = 2  # checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]  # plain numbers and text


class Run:
    """A run folder that this process writes; made by `start`."""

    def __init__(self, path: Path, record: dict[str, Any]):
        self.path, self.record = path, record

    def note(self, **facts: Any) -> None:
        """Add facts to `run.json`."""
        self.record.update(facts)
        write_json(self.path / "run.json", self.record)

    def depends_on(self, **facts: Any) -> None:
        """Add facts that the result depends on, and say which are no longer those that the run began with."""
        now = json.loads(json.dumps(facts))
        changed = [name for name in now if self.record.get(name, now[name]) != now[name]]
        if changed:
            echo(
                f"{', '.join(changed)}: not as when the run began, so its weights will not be the same to the bit"
            )
        self.note(**now)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line to `metrics.jsonl`, and the same for TensorBoard."""
        append_record(self.path / "metrics.jsonl", {"step": step, **metrics})
        tensorboard.add_scalars(self.path / "tensorboard", step, metrics)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, whole and checksummed, and drop all but the last two.

        Raises:
            ResourceError: the disk is full; the earlier checkpoints are intact.
        """
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)
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
        # those of later steps are damaged, else the run had gone on from them
        kept = [each for each in sorted(folder.glob("step-*.json")) if each <= record][-KEPT:]
        for file in sorted(folder.glob("step-*")):
            if file.with_suffix(".json") not in kept:
                file.unlink()

    def last_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that is intact; None where none was ever written.

        Raises:
            WeightsError: there are checkpoints and every one is damaged, or of a newer format.
        """
        records = sorted(self.path.glob("checkpoints/step-*.json"), reverse=True)
        for record in records:
            weights = record.with_suffix(".safetensors")
            try:
                written = json.loads(record.read_text(encoding="utf-8"))
                if _checksum(weights, written["step"], written["state"]) != written["sha256"]:
                    raise ValueError("its checksum does not match")
                checkpoint = Checkpoint(written["step"], load_tensors(weights), written["state"])
            except (
                OSError,
                ValueError,
                KeyError,
                TypeError,
                RecursionError,
                WeightsError,
            ) as error:
                echo(f"{weights}: damaged ({error}); taking the one before")
                continue
            if written["format"] != FORMAT:
                raise WeightsError(
                    f"{record}: format {written['format']} is not known to this version; update selfvox"
                )
            return checkpoint
        if records:
            raise WeightsError(
                f"{self.path / 'checkpoints'}: every checkpoint is damaged; start the run anew in another folder"
            )
        return None

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of `metrics.jsonl` past `step`: those steps are taken again."""
        file = self.path / "metrics.jsonl"
        if file.exists():
            write_records(file, [line for line in read_records(file) if line["step"] <= step])
        tensorboard.drop_scalars_after(self.path / "tensorboard", step)


@contextlib.contextmanager
def open_run(path: Path, settings: Any, *, resume: bool, main: bool = True) -> Iterator[Run]:
    """Open a run folder for writing; `run.json` tells how it ended.

    Args:
        path: the folder; made if it is not there.
        settings: the verb's resolved settings, kept as `settings.yaml`.
        resume: go on with the run that lies there, under the same settings.
        main: False on all but the first of several processes: nothing is locked or written.

    Raises:
        UsageError: the folder is a store, it holds a run and `resume` is not given, the settings differ from the
            run's, it cannot be written, or another process is at it.
    """
    if not main:
        yield Run(path, {})
        return
    if (path / "manifest.json").exists():  # its split would be written over
        raise UsageError(f"{path}: holds a store; name another --out")
    # one that failed before it saved anything, say for a mistyped path, is begun anew
    there = (path / "settings.yaml").exists() and (
        _record(path).get("status") != "failed" or any(path.glob("checkpoints/*.json"))
    )
    if there and not resume:
        raise UsageError(
            f"{path}: holds a run already; go on with it by --resume, or name another --out"
        )
    if there:
        _same_settings(path, settings)
    _make_folder(path)
    with folder_lock(path):
        # what was found out when the run began, such as its data
        earlier = _record(path) if there else {}
        if not there:
            write_text(path / "settings.yaml", to_yaml(settings))
        for folder in ("", "checkpoints", "encoder", "network"):
            for part in (path / folder).glob(".*.part.*"):
                part.unlink()  # of a process that was killed while writing
        run = Run(path, earlier)
        run.depends_on(**provenance(settings))
        run.note(status="running", started=_now())
        try:
            yield run
        except BaseException as error:
            with contextlib.suppress(OSError):
                status = "stopped" if _is_stop(error) else "failed"
                run.note(status=status, ended=_now(), reason=_reason(error, settings))
            raise
        run.note(status="finished", ended=_now())


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / ".writable", "")
        (path / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); choose another --out"
        ) from None


def _record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def _is_stop(error: BaseException) -> bool:
    return getattr(error, "exit_code", 1) > 128 or isinstance(error, KeyboardInterrupt)


def _reason(error: BaseException, settings: Any) -> str:
    # the folders above may name people; the own names of those that were given are enough
    text = f"{type(error).__name__}: {error}"
    given = [
        Path(value)
        for value in as_dict(settings).values()
        if isinstance(value, str) and os.sep in value
    ]
    for folder in sorted(
        (*(path.parent for path in given), Path.cwd(), Path.home()), key=lambda one: -len(str(one))
    ):
        if folder.is_absolute():
            text = text.replace(f"{folder}{os.sep}".replace(2 * os.sep, os.sep), "")
    return text[:500]


def provenance(settings: Any) -> dict[str, Any]:
    """What a run depends on besides its data: versions, code, seed, threads. No host, user or absolute path."""
    packages = (
        "selfvox",
        "torch",
        "numpy",
        "lightning-fabric",
        "dynamic-network-architectures",
        "monai",
        "nibabel",
        "numba",
    )
    return {
        "format": FORMAT,
        "verb": type(settings).__name__.lower(),
        "seed": getattr(settings, "seed", None),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "code_sha256": _code_hash(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a half-written last line is left out."""
    return read_records(path / "metrics.jsonl")


def _same_settings(path: Path, settings: Any) -> None:
    before, now = (
        safe_yaml.read_yaml(path / "settings.yaml"),
        json.loads(json.dumps(as_dict(settings))),
    )
    for name, value in now.items():
        if (
            name not in {"resume", "out", "device", "workers", "scheduler"}
            and before.get(name) != value
        ):
            raise UsageError(
                f"{path}: was started with {name}={before.get(name)}, not {value}; resume it with its own settings "
                "(--config OUT/settings.yaml), or name another --out"
            )


def _checksum(weights: Path, step: int, state: Mapping[str, Any]) -> str:
    """Over the tensors' file and what its record says."""
    return hashlib.sha256(f"{sha256(weights)} {json.dumps([step, state])}".encode()).hexdigest()


def _code_hash() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
