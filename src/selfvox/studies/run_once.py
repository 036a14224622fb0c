"""A piece of work done once, however many processes share the folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selfvox.data.formats import strict_json
from selfvox.errors import BusyError, UsageError
from selfvox.runs import atomic_files
from selfvox.runs.progress import redirect_output

FORMAT = 1


def run_once(
    out: Path,
    folder: Path,
    settings: dict[str, Any],
    work: Callable[[], dict[str, Any]],
    wait: bool = False,
) -> None:
    """Do the work in `folder` unless `done.json` there, which is written last, says that it was.

    What the work says goes to `log.txt`. The checkpoints of what is done are removed: nobody goes on from them.

    Raises:
        BusyError: another process is at it, and `wait` is not given.
        UsageError: it was done with other settings.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    if is_done(out / folder, digest):
        return
    with study_lock(out, str(folder), wait):
        if is_done(out / folder, digest):
            return
        (out / folder).mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with redirect_output(out / folder / "log.txt"):
            facts = work()
        seconds = round(time.monotonic() - began, 1)
        done = {"format": FORMAT, **facts, "seconds": seconds, "settings_sha256": digest}
        atomic_files.write_json(out / folder / "done.json", done)
        shutil.rmtree(out / folder / "checkpoints", ignore_errors=True)


def is_done(folder: Path, digest: str | None = None) -> bool:
    """Whether the work of this folder was done, with the settings of this digest where one is given.

    Raises:
        UsageError: it was done with others.
    """
    if not (folder / "done.json").exists():
        return False
    if digest not in (None, strict_json.read_json(folder / "done.json")["settings_sha256"]):
        raise UsageError(
            f"{folder}: was made with other settings than the plan's; name another --out, or remove it"
        )
    return True


@contextlib.contextmanager
def study_lock(out: Path, name: str, wait: bool = False) -> Iterator[None]:
    """Keep other processes from the same piece of work; the system lifts the lock of a process that died."""
    lock = out / "locks" / name.replace("/", "+")
    lock.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(atomic_files.folder_lock(lock))
                break
            except BusyError:
                if not wait:
                    raise
                time.sleep(1)
        yield
