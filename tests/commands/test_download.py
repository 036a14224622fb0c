"""The command `download`, from an archive on this disk in the place of MONAI's address."""

import errno
import gzip
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import tarfile
import time
from collections import namedtuple

import nibabel as nib
import numpy as np
import pytest
from monai.apps import DecathlonDataset

import selfvox
from selfvox.cli import main
from selfvox.commands import download as verb
from selfvox.errors import BusyError, DataError, ResourceError, UsageError
from selfvox.runs.folder_lock import folder_lock

TASK = "Task09_Spleen"


@pytest.fixture
def archive(tmp_path):
    """A decathlon task of two scans, one of them with a label, as the archive to download."""
    root = tmp_path / "far" / TASK
    for name in ("imagesTr/a", "imagesTs/b", "labelsTr/a"):
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(
            np.random.default_rng(0).integers(2, size=(4, 5, 6), dtype=np.uint8), np.eye(4)
        ).to_filename(path)
    listed = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "spleen"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": ["./imagesTs/b.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(listed))
    return packed(root)


def packed(root):
    path = root.parent / f"{TASK}.tar"
    with tarfile.open(path, "w") as file:
        file.add(root, TASK)
    return path


@pytest.fixture
def served(archive, monkeypatch):
    """Let MONAI's table lead to the archive; each call takes the archive's present checksum."""

    def serve():
        monkeypatch.setitem(DecathlonDataset.resource, TASK, archive.as_uri())
        monkeypatch.setitem(
            DecathlonDataset.md5, TASK, hashlib.md5(archive.read_bytes()).hexdigest()
        )

    serve()
    return serve


def test_a_task_comes_whole_says_what_is_next_and_leaves_nothing_else(
    served, archive, tmp_path, capsys
):
    assert main(["download", TASK, str(tmp_path / "data")]) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert (
        lines[-2]
        == f"{TASK}: 2 scans, 1 with a label   licence: CC-BY-SA 4.0, medicaldecathlon.com"
    )
    assert lines[-1] == f"next: selfvox pretrain {tmp_path}/data/{TASK} --out runs/{TASK}"
    assert [path.name for path in (tmp_path / "data").iterdir()] == [TASK]
    for path in (archive.parent / TASK).rglob("*.*"):
        assert (
            tmp_path / "data" / TASK / path.relative_to(archive.parent / TASK)
        ).read_bytes() == path.read_bytes()


def test_an_existing_task_is_left_alone(served, tmp_path):
    place = selfvox.download(TASK, tmp_path)
    with pytest.raises(UsageError, match=f"{TASK}: already exists; use it, or remove it"):
        selfvox.download(TASK, tmp_path)
    assert (place / "dataset.json").exists()


def test_a_mistyped_task_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(
        UsageError,
        match="'pancreas' is not a task of the decathlon; did you mean 'Task07_Pancreas'",
    ):
        selfvox.download("pancreas", tmp_path / "data")
    with pytest.raises(UsageError, match="known: Task01_BrainTumour, Task02_Heart"):
        selfvox.download("../x", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_every_task_of_monai_has_a_safe_address_and_a_checksum():
    assert set(DecathlonDataset.resource) == set(DecathlonDataset.md5)
    assert all(address.startswith("https://") for address in DecathlonDataset.resource.values())


@pytest.mark.fault("X20", "http:// and missing checksums", "refused")
@pytest.mark.parametrize("change", [("resource", "http://localhost/x.tar"), ("md5", None)])
def test_an_address_without_encryption_or_checksum_is_refused(
    change, served, tmp_path, monkeypatch
):
    monkeypatch.setitem(getattr(DecathlonDataset, change[0]), TASK, change[1])
    with pytest.raises(DataError, match="no encrypted address or no checksum"):
        selfvox.download(TASK, tmp_path / "data")
    assert [*(tmp_path / "data").iterdir()] == []


@pytest.mark.fault("X20", "a changed archive", "refused, nothing is left")
def test_a_wrong_checksum_is_refused_and_nothing_is_left(served, archive, tmp_path, monkeypatch):
    words = logging.Handler()
    monkeypatch.setattr(words, "emit", lambda record: pytest.fail(f"MONAI said {record.msg}"))
    monkeypatch.setattr(verb.utils.logger, "handlers", [words])
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="has the wrong checksum; run the same command again"):
        selfvox.download(TASK, tmp_path / "data")
    assert [*(tmp_path / "data").iterdir()] == []


def test_a_missing_network_is_reported_in_one_line_and_nothing_is_left(
    served, archive, tmp_path, capsys
):
    archive.unlink()
    assert main(["download", TASK, str(tmp_path / "data")]) == ResourceError.exit_code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{TASK}: cannot be downloaded from" in err
    assert "check the network" in err
    assert [*(tmp_path / "data").iterdir()] == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_download_killed_half_way_starts_again(served, archive, tmp_path):
    complete = archive.with_suffix(".whole")
    archive.rename(complete)
    os.mkfifo(archive)
    victim = multiprocessing.get_context("fork").Process(
        target=selfvox.download, args=(TASK, tmp_path / "data")
    )
    with archive.open("r+b", buffering=0) as pipe:
        pipe.write(bytes(50_000))
        victim.start()
        patience = time.monotonic() + 15
        try:
            while not any(path.stat().st_size for path in tmp_path.glob("data/.*/tmp*/*.tar")):
                assert time.monotonic() < patience
                time.sleep(0.01)
        finally:
            victim.kill()
            victim.join()
    complete.replace(archive)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [f".{TASK}.part"]
    selfvox.download(TASK, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [TASK]


def test_unpacking_that_was_killed_goes_on_from_the_archive(served, archive, tmp_path):
    half = tmp_path / "data" / f".{TASK}.part" / "unpacked" / TASK
    half.mkdir(parents=True)
    (half / "dataset.json").write_text("{")
    archive.rename(half.parent.parent / f"{TASK}.tar")
    place = selfvox.download(
        TASK, tmp_path / "data"
    )  # where it came from there is nothing any more
    assert json.loads((place / "dataset.json").read_text())["labels"]["1"] == "spleen"
    assert [path.name for path in (tmp_path / "data").iterdir()] == [TASK]


def test_a_disk_that_would_not_hold_it_is_refused_beforehand(
    served, archive, tmp_path, monkeypatch
):
    size = archive.stat().st_size
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(2 * size - 1)
    )
    with pytest.raises(
        ResourceError, match=r"the disk is too full, 0\.0 GB is needed; free some space"
    ):
        selfvox.download(TASK, tmp_path / "data")
    assert [*(tmp_path / "data").iterdir()] == []


@pytest.mark.fault("F8", "a full disk while unpacking", "only the archive stays")
def test_a_disk_that_fills_while_unpacking_keeps_the_archive_alone(
    served, archive, tmp_path, monkeypatch
):
    def full(file, folder):
        folder.mkdir()
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(verb.utils, "extractall", full)
        with pytest.raises(ResourceError, match="the disk is too full, more is needed"):
            selfvox.download(TASK, tmp_path / "data")
    work_folder = tmp_path / "data" / f".{TASK}.part"
    assert [path.name for path in work_folder.iterdir()] == [f"{TASK}.tar"]
    archive.unlink()
    selfvox.download(TASK, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [TASK]


@pytest.mark.fault(
    "X3",
    "pipe, device and hard link in an archive",
    "refused before it is unpacked",
)
@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.LNKTYPE])
def test_an_archive_with_more_than_files_is_refused_before_it_is_unpacked(
    kind, served, archive, tmp_path, monkeypatch
):
    with tarfile.open(archive, "a") as file:
        member = tarfile.TarInfo(f"{TASK}/imagesTr/odd")
        member.type = kind
        member.linkname = f"{TASK}/dataset.json"
        file.addfile(member)
    served()
    monkeypatch.setattr(verb.utils, "extractall", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(DataError, match=r"imagesTr/odd is a link, a device or a pipe"):
        selfvox.download(TASK, tmp_path / "data")
    assert [*(tmp_path / "data").iterdir()] == []


@pytest.mark.fault("X3 X4", "an archive that is packed once more", "refused")
def test_an_archive_that_is_packed_once_more_is_refused(served, archive, tmp_path):
    archive.write_bytes(gzip.compress(archive.read_bytes()))
    served()
    with pytest.raises(DataError, match="is not a decathlon data set"):
        selfvox.download(TASK, tmp_path / "data")


def test_the_sha_256_of_the_archive_is_printed(served, archive, tmp_path, capsys):
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    selfvox.download(TASK, tmp_path / "data")
    assert f"SHA-256 of the archive: {digest}" in capsys.readouterr().err


@pytest.mark.fault("X3", "a link out of an archive", "refused, nothing is left")
@pytest.mark.parametrize("bad", ["link", "listed"])
def test_an_archive_that_is_no_decathlon_task_is_refused(bad, served, archive, tmp_path):
    root = archive.parent / TASK
    if bad == "link":
        (root / "out").symlink_to("/etc")
    else:
        (root / "imagesTs" / "b.nii.gz").unlink()
    packed(root)
    served()
    with pytest.raises(DataError, match="is not a decathlon data set"):
        selfvox.download(TASK, tmp_path / "data")
    assert [*(tmp_path / "data").iterdir()] == []


def test_two_downloads_of_one_task_do_not_meet(served, tmp_path):
    work_folder = tmp_path / f".{TASK}.part"
    work_folder.mkdir()
    with folder_lock(work_folder), pytest.raises(BusyError, match="another process is downloading"):
        selfvox.download(TASK, tmp_path)


def test_a_file_in_the_folder_s_place_is_refused(served, tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        selfvox.download(TASK, tmp_path / "data")
