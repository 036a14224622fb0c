"""Work that is done once, however many processes share the study's folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selfvox.errors import BusyError, SelfvoxError, UsageError
from selfvox.runs.folder_lock import folder_lock
from selfvox.runs.progress import redirect_output
from selfvox.runs.typed_json import read_checked, write_checked
from selfvox.runs.usage import Meter, joined

FORMAT = 1
USAGE = "usage.json"  # of executions that did not end
FAILURE = "failed.json"


def run_once(
    out: Path,
    folder: Path,
    settings: dict[str, Any],
    work: Callable[[], dict[str, Any]],
    wait: bool = False,
) -> None:
    """Do the work unless `folder` has a `done.json`, which is written last.

    Its output goes to `log.txt`. Checkpoints are removed at the end: finished work is not resumed.

    Args:
        out: the study's folder.
        folder: of the work, within `out`.
        settings: what the result depends on.
        work: returns what `done.json` records.
        wait: for another process that does the same work.

    Raises:
        BusyError: another process does this work, and `wait` is False.
        UsageError: it was done with other settings.
    """
    # sorted keys: the order of a plan file does not matter
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    if is_done(out / folder, digest):
        return
    with study_lock(out, str(folder), wait):
        # another process may have done it while this one waited
        if is_done(out / folder, digest):
            return
        (out / folder).mkdir(parents=True, exist_ok=True)
        meter = Meter()
        earlier = _earlier_usage(out / folder)
        try:
            with redirect_output(out / folder / "log.txt"):
                facts = work()
        # also of a signal: the work goes on later
        except BaseException:
            # a full disk must not hide the error
            with contextlib.suppress(OSError, SelfvoxError):
                write_checked(out / folder / USAGE, joined(earlier, meter.read()))
            raise
        usage = joined(earlier, meter.read())
        record = {"format": FORMAT, **facts, **usage, "settings_sha256": digest}
        write_checked(out / folder / "done.json", record)
        for name in (USAGE, FAILURE):
            (out / folder / name).unlink(missing_ok=True)
        shutil.rmtree(out / folder / "checkpoints", ignore_errors=True)


def _earlier_usage(folder: Path) -> dict[str, float]:
    """What executions that did not end used."""
    file = folder / USAGE
    return read_checked(file) if file.exists() else {}


def note_failure(folder: Path, reason: str) -> None:
    """Keep why the work of a folder failed, until it is done."""
    # a full disk must not hide the reason
    with contextlib.suppress(OSError, SelfvoxError):
        folder.mkdir(parents=True, exist_ok=True)
        write_checked(folder / FAILURE, {"reason": reason})


def failure_of(folder: Path) -> str | None:
    """Why the work of a folder failed last; None if it did not."""
    file = folder / FAILURE
    return str(read_checked(file).get("reason")) if file.exists() else None


def is_done(folder: Path, digest: str | None = None) -> bool:
    """Whether the work of this folder is done.

    Args:
        folder: of the work.
        digest: of its settings; None accepts any.

    Raises:
        UsageError: it was done with other settings.
    """
    file = folder / "done.json"
    if not file.exists():
        return False
    if digest not in (None, read_checked(file).get("settings_sha256")):
        raise UsageError(
            f"{folder}: was made with settings other than the plan's; "
            "name another --out, or remove this folder"
        )
    return True


@contextlib.contextmanager
def study_lock(out: Path, name: str, wait: bool = False) -> Iterator[None]:
    """Keep other processes from the same work; the system releases the lock of a dead process.

    Raises:
        BusyError: another process has the lock, and `wait` is False.
    """
    # in a folder of its own: the folder of the work may be removed
    lock = out / "locks" / name.replace("/", "+")
    lock.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(folder_lock(lock))
                break
            except BusyError:
                if not wait:
                    raise
                time.sleep(1)
        yield
