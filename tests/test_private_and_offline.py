"""From scans to predictions without a connection or a shell, in files that nobody else can read."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess

import pytest

import selfvox

from .conftest import SMALL


@pytest.fixture(scope="module")
def journey(shapes_store, tmp_path_factory):
    """The files of all stages, made under a strict umask; the connections and shells tried."""
    folder = tmp_path_factory.mktemp("journey")
    tried = []
    shells = []
    connect = socket.socket.connect
    start = subprocess.Popen.__init__

    def refuse(self, address):
        # processes of this computer talk to each other
        if self.family == socket.AF_UNIX:
            return connect(self, address)
        tried.append(address)
        raise OSError("no network")

    def watch(self, *words, **options):
        shells.extend(words if options.get("shell") else ())
        start(self, *words, **options)

    before = os.umask(0o077)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "connect", refuse)
            patch.setattr(socket, "getaddrinfo", lambda *address, **_: tried.append(address))
            patch.setattr(subprocess.Popen, "__init__", watch)
            patch.setattr(os, "system", shells.append)
            patch.chdir(folder)
            scans = (
                tmp_path_factory.mktemp("named") / "$(touch canary) `touch canary`; touch canary"
            )
            shutil.copytree(shapes_store.parent / "scans", scans)
            selfvox.prepare(scans, out=folder / "store", workers=1)
            store = folder / "store"
            selfvox.pretrain(store, out=folder / "pre", task="rotation", steps=1, batch=2, **SMALL)
            small = {name: value for name, value in SMALL.items() if name != "network"}
            selfvox.finetune(
                store, encoder=folder / "pre", out=folder / "seg", steps=1, batch=2, **small
            )
            selfvox.predict(folder / "seg", scans / "images", out=folder / "out", device="cpu")
            selfvox.evaluate(folder / "out", scans / "labels", out=folder / "scores.csv")
    finally:
        os.umask(before)
    return folder, tried, shells


@pytest.mark.fault("X13", "every connection refused", "from scans to scores without one")
def test_no_stage_opens_a_connection(journey):
    assert journey[1] == []


@pytest.mark.fault("X15", "a folder named `$(touch canary)`", "no stage starts a shell")
def test_no_stage_starts_a_shell(journey):
    folder, _, shells = journey
    assert shells == []
    assert not (folder / "canary").exists()


@pytest.mark.fault("X14", "a umask of 077", "no file or folder that others may read")
def test_no_file_is_readable_for_others_than_the_umask_says(journey):
    files = list(journey[0].rglob("*"))
    assert len(files) > 50
    assert [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
