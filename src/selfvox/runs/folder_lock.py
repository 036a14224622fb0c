"""Folder locks: one process at a time writes into a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from selfvox.errors import BusyError, UsageError
from selfvox.runs.progress import echo_once

LOCK = ".lock"
OWNER = ".lock.owner"  # where the file system has no locks
# of Lustre without -o flock, of NFS without its lock daemon, and of some FUSE file systems
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into `folder`, by a file `.lock` that goes at the end.

    The operating system releases the lock of a process that dies. Where the file system has no
    locks, a file with the process and its host takes their place, and this is printed once.

    Raises:
        BusyError: another process has the lock.
        UsageError: the file of the lock is a link, or no regular file.
    """
    path = folder / LOCK
    with _locked(path) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            # still locked: who opened this file meanwhile notices that it is gone
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    """The file of a lock, created where it is missing, opened and locked.

    Raises:
        BusyError: another process has the lock.
    """
    while True:
        with _open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _busy(path.parent, file.read().strip()) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                echo_once(
                    f"{path.parent}: this file system has no locks ({error.strerror}); the file "
                    f"{OWNER} takes their place"
                )
                with _owned(path.with_name(OWNER)):
                    yield file
                    return
            # between opening and locking, the process before may have removed the file
            if _is_the_file(path, file):
                yield file
                return


def _open(path: Path) -> TextIO:
    """Open the file of a lock, for reading and writing.

    Raises:
        UsageError: it is a link, which would be overwritten, or no regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    raise UsageError(f"{path}: is a link, or no regular file; remove it")


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[None]:
    """Own a folder by a file that only one process can create.

    Raises:
        BusyError: another process has created it, and is alive as far as this host knows.
    """
    me = f"{os.getpid()} of {platform.node()}"
    while True:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(me)
            break
        except FileExistsError:
            # it may be removed just now
            with contextlib.suppress(FileNotFoundError):
                owner = path.read_text(encoding="utf-8", errors="replace")
                if not _is_dead(owner):
                    hint = f"; if it is gone, remove {path.name}"
                    raise _busy(path.parent, owner, hint) from None
                path.unlink()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _is_dead(owner: str) -> bool:
    """Whether the owner was a process of this host that is gone."""
    number, _, host = owner.partition(" of ")
    if host != platform.node() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # alive, of another user; no number of a process
        return False
    return False


def _busy(folder: Path, process: str, hint: str = "") -> BusyError:
    return BusyError(
        f"{folder}: process {process or '?'} is writing here; wait for it, or name another "
        f"--out{hint}"
    )


def _is_the_file(path: Path, file: TextIO) -> bool:
    """Whether the path leads to this open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
