"""The file system of a folder: space, locks, fsync, rename and mapped files, each tried."""

from __future__ import annotations

import errno
import fcntl
import mmap
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from selfvox.errors import printable
from selfvox.machine.check import Check, gigabytes

_LEAST_FREE_BYTES = 2e9  # for the checkpoints and tables of a run
_MOST_SHARE = 0.9  # of the free space, before it is a warning
_FILES_PER_SCAN = 4  # image, label, foreground, record
_IN_MEMORY = ("tmpfs", "ramfs")
_CONTENT = b"selfvox" * 1000
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - of the system, and only looked at


def check_file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> list[Check]:
    """Try in a folder what stores and runs need; nothing is left behind.

    Args:
        folder: where stores and runs are to be, or the nearest folder above it that exists.
        mounts: the kernel's list of file systems.
    """
    kind = _kind(folder, mounts)
    try:
        with tempfile.TemporaryDirectory(prefix=".selfvox-doctor-", dir=folder) as trial:
            checks = [
                _try(about, work, Path(trial))
                for about, work in (
                    ("locks", _try_lock),
                    ("fsync", _try_fsync),
                    ("rename", _try_rename),
                    ("mapped files", _try_mapping),
                )
            ]
    except OSError as error:
        text = f"{printable(folder)}: {error.strerror}"
        return [Check("file system", "fail", text, "another --out, to which you may write")]
    if kind in _IN_MEMORY:
        text = f"{printable(folder)} is in memory ({kind}) and gone after a restart"
        return [Check("file system", "warn", text, "another --out"), *checks]
    return [Check("file system", "ok", f"{kind}, {printable(folder)} can be written"), *checks]


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def check_space(folder: Path, needed_bytes: float, scans: int) -> list[Check]:
    """Compare the free space with the estimate.

    Args:
        folder: where stores and runs are to be.
        needed_bytes: of the prepared scans.
        scans: their number.
    """
    state = os.statvfs(folder)
    free = float(state.f_bavail) * state.f_frsize
    needed = needed_bytes + _LEAST_FREE_BYTES
    text = f"{gigabytes(free)} free"
    if scans:
        text += f", a store of {scans} scans needs up to {gigabytes(needed_bytes)}"
    remedy = f"free {gigabytes(needed / _MOST_SHARE - free)}, or another --out"
    if needed_bytes > free or free < _LEAST_FREE_BYTES / 10:
        return [Check("disk", "fail", text, remedy)]
    if needed > free * _MOST_SHARE:
        return [Check("disk", "warn", f"{text}, a run more than that", remedy)]
    # some file systems have no fixed number of files and say 0
    if state.f_files > 0 and state.f_favail < scans * _FILES_PER_SCAN:
        text = f"{state.f_favail} more files fit; a store has {_FILES_PER_SCAN} for each scan"
        return [Check("disk", "fail", text, "remove small files, or another --out")]
    return [Check("disk", "ok", text)]


def check_shared_memory(needed_bytes: float, folder: Path = _SHARED_MEMORY) -> list[Check]:
    """Whether processes can share memory: locks of all, and batches where a GPU trains.

    Args:
        needed_bytes: of the batches that wait for the GPU; 0 for training on the CPU.
        folder: where the system keeps shared memory.
    """
    try:
        # what pools of processes begin with
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        text = f"processes cannot share a lock ({error.strerror})"
        return [Check("shared memory", "fail", text, "mount /dev/shm, or --workers 1")]
    if not folder.is_dir():
        return [Check("shared memory", "ok", "of another kind than on Linux")]
    state = os.statvfs(folder)
    free = float(state.f_bavail) * state.f_frsize
    text = f"{gigabytes(free)} free"
    if needed_bytes:
        text += f", batches for the GPU take about {gigabytes(needed_bytes)}"
    if needed_bytes > free:
        return [Check("shared memory", "fail", text, "docker run --ipc=host or --shm-size 8g")]
    return [Check("shared memory", "ok", text)]


def _try(about: str, work: Callable[[Path], Check | None], trial: Path) -> Check:
    """Try one thing; whatever the system refuses is a failure."""
    try:
        return work(trial) or Check(about, "ok", "tried")
    except OSError as error:
        return Check(about, "fail", f"{error.strerror}", "another --out, on a local disk")


def _try_lock(trial: Path) -> Check | None:
    """Lock a file twice: the second time must be refused."""
    path = trial / "lock"
    with path.open("w") as first, path.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            text = f"none here ({error.strerror}); a file with process and host takes their place"
            remedy = "after a crash of another host, remove .lock.owner by hand"
            return Check("locks", "warn", text, remedy)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
    text = "have no effect here; two processes could write one run"
    return Check("locks", "warn", text, "give each process an --out of its own")


def _try_fsync(trial: Path) -> Check | None:
    path = trial / "fsync"
    path.write_bytes(_CONTENT)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        descriptor = os.open(trial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        text = f"not of folders ({error.strerror}); after a power failure the last files may miss"
        return Check("fsync", "warn", text, "a local disk, where power may fail")
    return None


def _try_rename(trial: Path) -> Check | None:
    old = trial / "old"
    new = trial / "new"
    old.write_bytes(b"old")
    new.write_bytes(_CONTENT)
    new.replace(old)
    if new.exists() or old.read_bytes() != _CONTENT:
        raise OSError(errno.EIO, "a renamed file did not replace the old one")
    return None


def _try_mapping(trial: Path) -> Check | None:
    path = trial / "mapped"
    path.write_bytes(_CONTENT)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        if mapped[:] != _CONTENT:
            raise OSError(errno.EIO, "a mapped file has other contents")
    return None


def _kind(folder: Path, mounts: Path) -> str:
    """The type of the file system, such as ext4 or nfs4; `unknown` where the system is silent."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return "unknown"
    kinds = {}
    for line in lines:
        words = line.split()
        if len(words) >= 3:
            # the kernel writes a space of a name as \040
            kinds[Path(words[1].replace("\\040", " "))] = words[2]
    resolved = folder.resolve()
    for place in (resolved, *resolved.parents):
        if place in kinds:
            return kinds[place]
    return "unknown"
