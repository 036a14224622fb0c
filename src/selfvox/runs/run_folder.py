"""A run folder: its settings, provenance and metrics, and whether a run may continue in it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field

from selfvox.errors import DataError, UsageError
from selfvox.runs import tensorboard
from selfvox.runs.atomic_files import remove_temporary_files, write_text
from selfvox.runs.card import Seen
from selfvox.runs.checkpoints import (
    CHECKPOINTS,
    Checkpoint,
    has_checkpoint,
    newest_step,
    read_last_checkpoint,
    write_checkpoint,
)
from selfvox.runs.folder_lock import folder_lock
from selfvox.runs.ledger import append_record, read_records, write_records
from selfvox.runs.log_file import log_to
from selfvox.runs.progress import echo
from selfvox.runs.typed_json import parse, read_checked, write_checked
from selfvox.settings import safe_yaml
from selfvox.settings.options import as_dict, to_yaml

FORMAT = 1
METRICS = "metrics.jsonl"
LOG = "log.txt"
# they say where a run computes, not what; a run may be resumed elsewhere
_NOT_COMPARED = {"resume", "out", "device", "devices", "workers", "scheduler", "log_to"}
_PACKAGES = (
    "selfvox",
    "torch",
    "numpy",
    "lightning-fabric",
    "dynamic-network-architectures",
    "monai",
    "nibabel",
    "numba",
)


@dataclass(frozen=True)
class _DataRecord:
    """The scans of a pre-training, of which there may be too many to list."""

    cases: int
    sha256: str


@dataclass(frozen=True)
class _RecordKeys:
    """The keys of `run.json` that a resumed run reads."""

    verb: str | None = None
    status: str | None = None
    data: _DataRecord | Seen | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    devices: Annotated[int, Field(ge=1)] | None = None
    warned: list[str] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)
    damaged_scans: list[str] = field(default_factory=list)
    lost_classes: list[str] = field(default_factory=list)
    lost_classes_saved: list[str] = field(default_factory=list)
    lost_problem: str = ""  # of the saved weights, in words
    teacher: str | None = None
    tracked: dict[str, str] = field(default_factory=dict)


OnMetrics = Callable[[int, dict[str, float]], object]


def _check_step(line: dict[str, float]) -> dict[str, float]:
    if not line.get("step", 0.5).is_integer():
        raise ValueError("has no step")
    return line


MetricsLine = Annotated[dict[str, float], AfterValidator(_check_step)]


class Run:
    """A run folder, which the first of several processes writes; made by `open_run`."""

    def __init__(
        self,
        path: Path,
        record: dict[str, Any],
        on_metrics: OnMetrics | None = None,
        is_main: bool = True,
    ):
        self.path = path
        self.record = record
        self.on_metrics = [on_metrics] if on_metrics else []
        self.is_main = is_main  # of several processes only the first one writes

    def note(self, **facts: Any) -> None:
        """Add facts to `run.json`."""
        self.record.update(facts)
        if self.is_main:
            write_checked(self.path / "run.json", self.record)

    def depends_on(self, **facts: Any) -> None:
        """Add facts that the result depends on, and report those that changed since the start."""
        # through JSON, as the record is read: tuples become lists
        current = json.loads(json.dumps(facts))
        changed = [name for name, fact in current.items() if self.record.get(name, fact) != fact]
        if changed:
            echo(
                f"{', '.join(changed)}: changed since the run began, "
                "so its weights will not be bit-identical"
            )
        self.note(**current)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics to `metrics.jsonl` and to TensorBoard's file."""
        append_record(self.path / METRICS, {"step": step, **metrics})
        tensorboard.add_scalars(self.path / "tensorboard", step, metrics)
        for receive in self.on_metrics:
            receive(step, dict(metrics))

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and remove all but the last two.

        Raises:
            ResourceError: the disk is full; the earlier checkpoints are intact.
        """
        write_checkpoint(self.path / CHECKPOINTS, checkpoint)

    def newest_checkpoint(self) -> int | None:
        """The step of the newest checkpoint, intact or not; None if there is none."""
        return newest_step(self.path / CHECKPOINTS)

    def last_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that is intact; None if none was ever written.

        Raises:
            WeightsError: every checkpoint is damaged, or the newest one has a newer format.
        """
        return read_last_checkpoint(self.path / CHECKPOINTS)

    def forget_metrics_after(self, step: int) -> None:
        """Drop the metrics of steps after `step`, which a resumed run computes again."""
        ledger = self.path / METRICS
        if ledger.exists():
            write_records(
                ledger, [record for record in read_metrics(self.path) if record["step"] <= step]
            )
        tensorboard.drop_scalars_after(self.path / "tensorboard", step)


@contextlib.contextmanager
def open_run(
    path: Path,
    settings: Any,
    *,
    resume: bool,
    main: bool = True,
    on_metrics: OnMetrics | None = None,
) -> Iterator[Run]:
    """Open a run folder for writing; `run.json` records how the run ends.

    Args:
        path: the folder; created if it is missing.
        settings: the verb's resolved settings, kept as `settings.yaml`.
        resume: continue the run of this folder, with the same settings.
        main: False on all but the first of several processes: nothing is locked or written.
        on_metrics: called with the step and its metrics after each line of `metrics.jsonl`.

    Raises:
        UsageError: the folder is a store, it contains a run and `resume` is not given, the
            settings differ from the run's, or the folder cannot be written.
        BusyError: another process writes to it.
    """
    # of several processes only one may write, or their lines would mix
    if not main:
        yield Run(path, {}, is_main=False)
        return
    # the split of a store would be overwritten
    if (path / "manifest.json").exists():
        raise UsageError(f"{path}: is a store; name another --out")
    continues = _contains_run(path)
    if continues and not resume:
        raise UsageError(
            f"{path}: already contains a run; continue it with --resume, or name another --out"
        )
    if continues:
        _check_same_settings(path, settings)
    # after the checks: a refused command leaves no folder behind
    _make_folder(path)
    with folder_lock(path), log_to(path / LOG):
        # facts of the start, such as hashes of the data
        record = read_run_record(path) if continues else {}
        if not continues:
            write_text(path / "settings.yaml", to_yaml(settings))
        # of a process that was killed while it wrote; the lock says that none writes now
        for folder in ("", CHECKPOINTS, "encoder", "network"):
            remove_temporary_files(path / folder)
        run = Run(path, record, on_metrics)
        run.depends_on(**provenance(settings))
        run.note(status="running", started=_timestamp())
        try:
            yield run
        # also of Ctrl-C and signals, which are no Exception
        except BaseException as error:
            # a full disk must not hide the error that ended the run
            with contextlib.suppress(OSError):
                status = "stopped" if _is_stop(error) else "failed"
                run.note(status=status, ended=_timestamp(), reason=_reason(error, settings))
            raise
        run.note(status="finished", ended=_timestamp())


def is_finished(path: Path, settings: Any) -> bool:
    """Whether a run with these settings is complete here.

    Raises:
        UsageError: there is a run with other settings.
    """
    if not _contains_run(path):
        return False
    _check_same_settings(path, settings)
    return bool(read_run_record(path).get("status") == "finished")


def _contains_run(path: Path) -> bool:
    """Whether there is a run to continue.

    A run that failed before it saved a checkpoint, for example because of a mistyped path, does
    not count and is started again.
    """
    if not (path / "settings.yaml").exists():
        return False
    # a killed run still says "running": it counts as one to continue
    failed = read_run_record(path).get("status") == "failed"
    return not failed or has_checkpoint(path / CHECKPOINTS)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / ".writable", "")
        # a folder may exist and yet be read-only, as on a mounted archive
        (path / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); choose another --out"
        ) from None


def read_run_record(path: Path) -> dict[str, Any]:
    """What `run.json` contains; nothing if it is missing or damaged."""
    file = path / "run.json"
    if not file.exists():
        return {}
    try:
        record = read_checked(file)
        parse(_RecordKeys, record, str(file))
    # a resumed run writes it again: a damaged one must not block --resume
    except DataError as error:
        echo(f"{error}; taken as missing")
        return {}
    return record


def _is_stop(error: BaseException) -> bool:
    """Whether a person or a scheduler stopped the run: exit codes above 128 are of signals."""
    return getattr(error, "exit_code", 1) > 128 or isinstance(error, KeyboardInterrupt)


def _reason(error: BaseException, settings: Any) -> str:
    """The error in one text, without the folders above the given paths: they may name people."""
    text = f"{type(error).__name__}: {error}"
    paths = [
        Path(value)
        for value in as_dict(settings).values()
        if isinstance(value, str) and os.sep in value
    ]
    folders = [*(path.parent for path in paths), Path.cwd(), Path(os.path.expanduser("~"))]
    # the longest first: a folder contains the text of the folders above it
    for folder in sorted(folders, key=lambda folder: -len(str(folder))):
        if folder.is_absolute():
            prefix = f"{folder}{os.sep}".replace(2 * os.sep, os.sep)
            text = text.replace(prefix, "")
    return text[:500]


def provenance(settings: Any) -> dict[str, Any]:
    """What a run depends on, except its data: versions, code, seed, threads.

    It names no host, user or absolute path.
    """
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "format": FORMAT,
        "verb": type(settings).__name__.lower(),
        "seed": getattr(settings, "seed", None),
        "versions": versions,
        "code_sha256": _code_hash(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`; damaged lines are left out."""
    return read_records(path / METRICS, MetricsLine)


def _check_same_settings(path: Path, settings: Any) -> None:
    """Refuse to resume a run with other settings than it was started with.

    Raises:
        UsageError: the first setting that differs.
    """
    previous = safe_yaml.read_yaml(path / "settings.yaml")
    # through JSON, so that tuples compare equal to the lists of the file
    current = json.loads(json.dumps(as_dict(settings)))
    for name, value in current.items():
        if name not in _NOT_COMPARED and previous.get(name) != value:
            raise UsageError(
                f"{path}: was started with {name}={previous.get(name)}, not {value}; resume it "
                "with its own settings (--config OUT/settings.yaml), or name another --out"
            )


def _code_hash() -> str:
    digest = hashlib.sha256()
    # file systems list files in different orders
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
