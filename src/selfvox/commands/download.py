"""The command `download`: a task of the Medical Segmentation Decathlon.

MONAI downloads and unpacks it, and knows the checksum. Everything happens in `FOLDER/.TASK.part`;
the complete task is moved to its place at the end. A download that was killed starts again; a
complete archive that was killed while unpacking is unpacked again.
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
from selfvox.errors import (
    DISK_FULL_ERRORS,
    BusyError,
    DataError,
    ResourceError,
    UsageError,
    did_you_mean,
)
from selfvox.runs.atomic_files import sha256
from selfvox.runs.folder_lock import folder_lock
from selfvox.runs.progress import ProgressBar, echo, progress_bar
from selfvox.settings.verbs import Download

_TIMEOUT_S = 60  # without a byte
_MB = 1_000_000


def download(settings: Download) -> Path:
    """Download one task into its own folder under `settings.folder`.

    Returns:
        The folder of the task, with its `dataset.json`.

    Raises:
        UsageError: there is no such task, or it is already there.
        DataError: the checksum is wrong, or the archive is not a decathlon data set.
        ResourceError: the server cannot be reached, or the disk is full.
    """
    task = settings.dataset
    if task not in DecathlonDataset.resource:
        hint = did_you_mean(task, DecathlonDataset.resource)
        raise UsageError(f"'{printable(task)}' is not a task of the decathlon{hint}")
    place = settings.folder / task
    work_folder = settings.folder / f".{task}.part"
    if place.exists():
        raise UsageError(
            f"{printable(place)}: already exists; use it, or remove it to download it again"
        )
    try:
        work_folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            f"{printable(settings.folder)}: is not a folder; name another one"
        ) from None
    with _lock(work_folder, task):
        archive = work_folder / f"{task}.tar"
        with _keep_only(archive):
            _fetch(task, archive)
            dataset = _unpack(archive, place)
    labelled = sum(case.label is not None for case in dataset.cases)
    echo(
        f"{task}: {len(dataset.cases)} scans, {labelled} with a label   "
        "licence: CC-BY-SA 4.0, medicaldecathlon.com"
    )
    echo(f"next: selfvox pretrain {place} --out runs/{task}")
    return place


@contextlib.contextmanager
def _lock(work_folder: Path, task: str) -> Iterator[None]:
    try:
        with folder_lock(work_folder):
            yield
    except BusyError:
        raise BusyError(
            f"{printable(work_folder.parent)}: another process is downloading {task} here; "
            "wait for it"
        ) from None


@contextlib.contextmanager
def _keep_only(archive: Path) -> Iterator[None]:
    """Remove all but the archive from its folder, before and after; without it, the folder too.

    Before, that is what a killed process left there.
    """
    work_folder = archive.parent
    _clear(work_folder, archive)
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRORS:
            raise
        raise _disk_full(work_folder.parent, "more") from error
    finally:
        _clear(work_folder, archive)
        if not archive.exists():
            shutil.rmtree(work_folder)


def _clear(work_folder: Path, archive: Path) -> None:
    for path in work_folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path not in (archive, work_folder / ".lock"):
            path.unlink()


def _fetch(task: str, archive: Path) -> None:
    """Download the task's archive unless it is there; check it with MONAI's checksum."""
    address = DecathlonDataset.resource[task]
    checksum = DecathlonDataset.md5.get(task)
    host = urlsplit(address).netloc
    if urlsplit(address).scheme == "http" or not checksum:  # MONAI itself would only warn
        raise DataError(
            f"{task}: the installed MONAI has no encrypted address or no checksum for it; "
            "install another version of monai"
        )
    try:
        size = _check_room(address, archive)
        cached = ", already downloaded" if archive.exists() else ""
        echo(f"{task}: {size / 1e9:.1f} GB from {host}{cached}")
        with _monai_settings(archive.parent), _show_progress(archive.parent, size):
            utils.download_url(address, archive, checksum, "md5", progress=False)
    except utils.HashCheckError:
        archive.unlink(missing_ok=True)
        raise DataError(
            f"{task}: the download from {host} has the wrong checksum; run the same command "
            "again; if that does not help, install another version of monai"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
            raise
        reason = printable(" ".join(str(error).split())[:200])
        raise ResourceError(
            f"{task}: cannot be downloaded from {host} ({reason}); check the network and run the "
            "same command again, or download it by hand from medicaldecathlon.com"
        ) from error


def _check_room(address: str, archive: Path) -> int:
    """The archive's size in bytes.

    Raises:
        ResourceError: the disk is too full to download and unpack it.
    """
    if archive.exists():
        size = archive.stat().st_size
        need = size  # to unpack it
    else:
        size = _remote_size(address)
        # the archive, and what is unpacked from it
        need = 2 * size
    if shutil.disk_usage(archive.parent).free < need:
        raise _disk_full(archive.parent.parent, f"{need / 1e9:.1f} GB")
    return size


def _remote_size(address: str) -> int:
    """Bytes of a file on a server; 0 where the server does not report them."""
    request = Request(address, method="HEAD")  # noqa: S310 - MONAI's address
    # HEAD: the size without the file
    with urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
        return int(answer.headers.get("Content-Length") or 0)


@contextlib.contextmanager
def _monai_settings(work_folder: Path) -> Iterator[None]:
    """Let MONAI download to `work_folder`, give up after a timeout, and print nothing.

    Its default is the system's temporary folder, which is often small.
    """
    folder = tempfile.tempdir
    timeout = socket.getdefaulttimeout()
    quiet = utils.logger.disabled
    tempfile.tempdir = str(work_folder)
    # MONAI has no option for a timeout
    socket.setdefaulttimeout(_TIMEOUT_S)
    utils.logger.disabled = True
    try:
        yield
    finally:
        tempfile.tempdir = folder
        socket.setdefaulttimeout(timeout)
        utils.logger.disabled = quiet


@contextlib.contextmanager
def _show_progress(work_folder: Path, size: int) -> Iterator[None]:
    """Show once a second how large the archive in `work_folder` is."""
    finished = threading.Event()

    def watch(bar: ProgressBar) -> None:
        while not finished.wait(1):
            downloaded = 0
            # MONAI downloads into a folder of its own, and moves the archive at the end
            for path in work_folder.rglob("*.tar"):
                with contextlib.suppress(FileNotFoundError):  # it was just moved to its place
                    downloaded = max(downloaded, path.stat().st_size)
            bar.advance(count=downloaded // _MB - bar.done)

    with progress_bar("download, MB", size // _MB) as bar:
        watcher = threading.Thread(target=watch, args=(bar,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()


def _unpack(archive: Path, place: Path) -> Dataset:
    """Unpack next to the archive, check that the data set is complete, move it to its place.

    Raises:
        DataError: the archive is damaged or is not a decathlon data set; it is removed.
    """
    unpacked = archive.parent / "unpacked"
    echo(f"unpack {place.name}")
    try:
        _check_members(archive)
        echo(f"SHA-256 of the archive: {sha256(archive)}")
        with _monai_settings(archive.parent):
            utils.extractall(archive, unpacked)  # noqa: S202 - MONAI refuses links and ways out
        find_dataset(unpacked / place.name, "decathlon")
    except (ValueError, tarfile.TarError, DataError) as error:
        archive.unlink()
        reason = printable(" ".join(str(error).split())[:300])
        raise DataError(
            f"{place.name}: the archive is not a decathlon data set ({reason}); "
            "download it by hand from medicaldecathlon.com"
        ) from error
    # one rename: the folder is there whole or not at all
    (unpacked / place.name).replace(place)
    archive.unlink()
    return find_dataset(place, "decathlon")


def _check_members(archive: Path) -> None:
    """Refuse an archive of more than files and folders.

    MONAI refuses links and ways out, but unpacks devices and pipes, and archives that are packed
    once more, which can grow without bound.

    Raises:
        ValueError: it names the member.
        tarfile.TarError: this is not a plain tar file.
    """
    with tarfile.open(archive, "r:") as members:
        for member in members:
            if not (member.isreg() or member.isdir()):
                raise ValueError(f"{member.name} is a link, a device or a pipe")


def _disk_full(folder: Path, need: str) -> ResourceError:
    return ResourceError(
        f"{printable(folder)}: the disk is too full, {need} is needed; free some space and run "
        "the same command again, or name a folder on another disk"
    )
