"""Caches are in folders that nobody else can write, also where there is no home."""

import os
import pwd
import subprocess
import sys

import pytest

from selfvox import caches
from selfvox.ops import numba_kernels


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A user id without an entry in passwd and without HOME, as in many containers."""
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.mark.fault("E20 E21", "no HOME, no passwd entry", "a name and a home for libraries")
def test_a_user_without_a_name_and_a_home_gets_both(nobody, tmp_path):
    with pytest.raises(RuntimeError):
        tmp_path.home()
    caches.make_up_for_missing_home()
    assert os.environ["USER"] == f"user-{os.getuid()}"
    assert tmp_path.home().is_relative_to(tmp_path)
    assert tmp_path.home().is_dir()


def test_a_home_that_is_there_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    before = dict(os.environ)
    caches.make_up_for_missing_home()
    assert dict(os.environ) == before


@pytest.mark.fault("X17 X17b", "a cache folder that others may write", "not used")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_a_folder_that_others_may_write_is_not_used(nobody, monkeypatch, tmp_path, mode):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = caches.private_folder("numba")
    assert own == tmp_path / "cache" / "selfvox" / "numba"
    assert own.stat().st_mode & 0o077 == 0
    own.chmod(mode)
    elsewhere = caches.private_folder("numba")
    assert elsewhere.is_relative_to(tmp_path / f"selfvox-{os.getuid()}")
    # the next choice was put there by somebody else: as a link
    elsewhere.rmdir()
    elsewhere.symlink_to(own)
    assert caches.private_folder("numba") is None


@pytest.mark.fault("X17b", "numba's cache", "in a private folder")
def test_compiled_loops_are_cached_in_the_private_folder(nobody, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = numba_kernels.compiled(numba_kernels._add.py_func)
    assert str(code._cache.cache_path).startswith(str(tmp_path / "selfvox" / "numba"))


@pytest.mark.fault("E20-E22", "a user id that the system does not know", "starts")
def test_the_package_starts_for_a_user_that_the_system_does_not_know(tmp_path):
    code = (
        "import os, pwd\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "import selfvox, pathlib, monai.metrics\n"
        "print(pathlib.Path.home())"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["TMPDIR"] = str(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().startswith(str(tmp_path))
