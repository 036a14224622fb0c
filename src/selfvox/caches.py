"""Caches of libraries: in folders of this user alone, also where there is no home or no user."""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_up_for_missing_home() -> None:
    """Give libraries a user's name and a home, where the system knows none.

    In a container, a user may have neither an entry in `passwd` nor a home that can be written.
    Parts of torch and MONAI then fail when they are imported.
    """
    try:
        getpass.getuser()
    # an OSError from Python 3.13 on
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"
    home = os.path.expanduser("~")
    name = "HOME" if home == "~" else "MPLCONFIGDIR"
    if not os.access(home, os.W_OK):
        folder = private_folder(name.lower())
        if folder is not None:
            os.environ.setdefault(name, str(folder))


def private_folder(name: str) -> Path | None:
    """A folder for a cache, which no other user can write; made where it is missing.

    Libraries run code that they find in their cache.

    Returns:
        The folder; None where there is none, as in a container that is read-only.
    """
    for base in _bases():
        folder = base / name
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if _is_private(base) and _is_private(folder) and os.access(folder, os.W_OK):
            return folder
    return None


def _bases() -> Iterator[Path]:
    """Where caches may be, the best first; each is of selfvox alone."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(caches):
        yield Path(caches) / "selfvox"
    yield Path(os.environ.get("TMPDIR", "/tmp")) / f"selfvox-{os.getuid()}"  # noqa: S108 - checked


def _is_private(folder: Path) -> bool:
    state = folder.lstat()
    is_own_folder = stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid()
    return is_own_folder and not state.st_mode & _OTHERS_MAY_WRITE
