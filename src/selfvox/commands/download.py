"""The verb `download`: a task of the Medical Segmentation Decathlon, by MONAI's own downloader and its checksums.

All happens in `FOLDER/.TASK.part`, and the task is moved to its place when it is whole. A download that was killed
begins anew; one that was killed while it unpacked goes on from the archive, which is removed at the end.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from monai.apps import DecathlonDataset, utils

from selfvox.data.naming import printable
from selfvox.data.sources import Dataset, find_dataset
from selfvox.errors import BusyError, DataError, ResourceError, UsageError, did_you_mean
from selfvox.runs.atomic_files import DISK_FULL_ERRORS, folder_lock
from selfvox.runs.progress import ProgressBar, echo, progress_bar
from selfvox.settings.verbs import Download

_PATIENCE_SECONDS = 60  # without a byte
_MB = 1_000_000


def download(settings: Download) -> Path:
    """Fetch one task into its own folder under `settings.folder`.

    Returns:
        The folder of the task, with its `dataset.json`.

    Raises:
        UsageError: no such task, or the task is there already.
        DataError: what came has another checksum, or is no decathlon data set.
        ResourceError: no network, or no room.
    """
    task = settings.dataset
    if task not in DecathlonDataset.resource:
        hint = did_you_mean(task, DecathlonDataset.resource)
        raise UsageError(f"'{printable(task)}' is no task of the decathlon{hint}")
    place, part = settings.folder / task, settings.folder / f".{task}.part"
    if place.exists():
        raise UsageError(
            f"{printable(place)}: is there already; use it, or remove it to download it anew"
        )
    try:
        part.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            f"{printable(settings.folder)}: is no folder; name another place"
        ) from None
    with _alone(part, task):
        archive = part / f"{task}.tar"
        with _left_clean(part, archive):
            _fetch(task, archive)
            dataset = _unpack(archive, place)
    labelled = sum(case.label is not None for case in dataset.cases)
    echo(
        f"{task}: {len(dataset.cases)} scans, {labelled} with a label   licence: CC-BY-SA 4.0, medicaldecathlon.com"
    )
    echo(f"next: selfvox pretrain {place} --task simclr --out runs/{task}")
    return place


@contextlib.contextmanager
def _alone(part: Path, task: str) -> Iterator[None]:
    try:
        with folder_lock(part):
            yield
    except BusyError:
        raise BusyError(
            f"{printable(part.parent)}: another process is downloading {task} here; wait for it"
        ) from None


@contextlib.contextmanager
def _left_clean(part: Path, archive: Path) -> Iterator[None]:
    """Empty `part` of what a killed process left there; afterwards keep nothing but an archive still to be unpacked."""
    _clear(part, archive)
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRORS:
            raise
        raise _no_room(part.parent, "more") from error
    finally:
        _clear(part, archive)
        if not archive.exists():
            shutil.rmtree(part)


def _clear(part: Path, archive: Path) -> None:
    for path in part.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path not in (archive, part / ".lock"):
            path.unlink()


def _fetch(task: str, archive: Path) -> None:
    """Have the task's archive, with the checksum that MONAI knows; it appears whole or not at all."""
    address, checksum = DecathlonDataset.resource[task], DecathlonDataset.md5.get(task)
    host = urlsplit(address).netloc
    if urlsplit(address).scheme == "http" or not checksum:  # MONAI itself would only warn
        raise DataError(
            f"{task}: this MONAI has no safe address or checksum of it; install another monai"
        )
    try:
        size = archive.stat().st_size if archive.exists() else _size(address)
        room, need = shutil.disk_usage(archive.parent).free, size if archive.exists() else 2 * size
        if room < need:
            raise _no_room(archive.parent.parent, f"{need / 1e9:.1f} GB")
        echo(
            f"{task}: {size / 1e9:.1f} GB from {host}"
            + (", here already" if archive.exists() else "")
        )
        with _borrowed(archive.parent), _watched(archive.parent, size):
            utils.download_url(address, archive, checksum, "md5", progress=False)
    except utils.HashCheckError:
        archive.unlink(missing_ok=True)
        remedy = "run the same command again; should it stay so, install another release of monai"
        raise DataError(
            f"{task}: what came from {host} has not the checksum that MONAI knows; {remedy}"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
            raise
        reason = printable(" ".join(str(error).split())[:200])
        remedy = "is there a network? Run the same command again, or get it from medicaldecathlon.com by hand"
        raise ResourceError(f"{task}: cannot be had from {host} ({reason}); {remedy}") from error


def _size(address: str) -> int:
    """Bytes that are about to come, 0 where the server does not say."""
    with urlopen(Request(address, method="HEAD"), timeout=_PATIENCE_SECONDS) as answer:  # noqa: S310 - MONAI's address
        return int(answer.headers.get("Content-Length") or 0)


@contextlib.contextmanager
def _borrowed(part: Path) -> Iterator[None]:
    """Let MONAI download beside its goal, not to the system's small temporary disk; give up; and say nothing itself."""
    folder, patience, quiet = tempfile.tempdir, socket.getdefaulttimeout(), utils.logger.disabled
    tempfile.tempdir, utils.logger.disabled = str(part), True
    socket.setdefaulttimeout(_PATIENCE_SECONDS)
    try:
        yield
    finally:
        tempfile.tempdir, utils.logger.disabled = folder, quiet
        socket.setdefaulttimeout(patience)


@contextlib.contextmanager
def _watched(part: Path, size: int) -> Iterator[None]:
    """Show how far the archive in `part` has grown, once a second."""
    done = threading.Event()

    def watch(bar: ProgressBar) -> None:
        while not done.wait(1):
            there = 0
            for path in part.rglob("*.tar"):
                with contextlib.suppress(FileNotFoundError):  # moved to its place just now
                    there = max(there, path.stat().st_size)
            bar.advance(count=there // _MB - bar.done)

    with progress_bar("download, MB", size // _MB) as bar:
        watcher = threading.Thread(target=watch, args=(bar,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _unpack(archive: Path, place: Path) -> Dataset:
    """Unpack beside the archive, see that the data set is whole, move it to its place; then the archive may go."""
    inside = archive.parent / "unpacked"
    echo(f"unpack {place.name}")
    try:
        with _borrowed(archive.parent):
            utils.extractall(archive, inside)  # noqa: S202 - MONAI's, which refuses links and ways out
        find_dataset(inside / place.name, "decathlon")
    except (ValueError, tarfile.TarError, DataError) as error:
        archive.unlink()
        reason = printable(" ".join(str(error).split())[:300])
        raise DataError(
            f"{place.name}: the archive is no decathlon data set ({reason}); get it by hand"
        ) from error
    (inside / place.name).replace(place)
    archive.unlink()
    return find_dataset(place, "decathlon")


def _no_room(folder: Path, need: str) -> ResourceError:
    remedy = "free some space and run the same command again, or name a folder on another disk"
    return ResourceError(f"{printable(folder)}: the disk is too full, {need} is needed; {remedy}")
