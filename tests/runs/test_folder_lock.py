"""One process at a time writes into a folder, also where the file system has no locks."""

import errno
import fcntl
import multiprocessing
import os
import platform
import threading

import pytest

from selfvox.errors import BusyError, UsageError
from selfvox.runs import progress
from selfvox.runs.folder_lock import folder_lock


def test_a_lock_leaves_no_file_behind_and_the_folder_can_be_locked_again(tmp_path):
    for _ in range(2):
        with folder_lock(tmp_path):
            assert (tmp_path / ".lock").read_text() == str(os.getpid())
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that answers a request for a lock with an error."""
    progress.echo_once.cache_clear()

    def answer(number):
        def flock(file, how):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return answer


def lock_in_turns(folder):
    """Lock a folder in four threads; the numbers of those that had the lock at once."""
    inside = []
    most = []

    def lock_often():
        for _ in range(100):
            try:
                with folder_lock(folder):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except BusyError:
                pass

    threads = [threading.Thread(target=lock_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most


@pytest.mark.fault("F24 F25", "many processes at one folder", "one at a time")
@pytest.mark.parametrize("has_locks", [True, False])
def test_of_many_that_lock_a_folder_in_turns_never_two_have_it_at_once(
    tmp_path, without_locks, has_locks
):
    if not has_locks:
        without_locks(errno.ENOLCK)
    most = lock_in_turns(tmp_path)
    assert len(most) > 10
    assert max(most) == 1


def test_a_lock_file_that_was_removed_between_opening_and_locking_is_no_lock(tmp_path, monkeypatch):
    real = fcntl.flock
    removed = []

    def remove_first(file, how):
        if not removed:
            (tmp_path / ".lock").unlink()
            removed.append(1)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with (
        folder_lock(tmp_path),
        # of the file that others open too
        pytest.raises(BusyError),
        folder_lock(tmp_path),
    ):
        pass


@pytest.mark.fault(
    "E31",
    "flock answers ENOSYS, ENOLCK, EOPNOTSUPP",
    "a file takes the place of the lock; printed once",
)
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_file_takes_their_place_and_this_is_printed_once(
    tmp_path, without_locks, capsys, number
):
    without_locks(number)
    for _ in range(2):
        with folder_lock(tmp_path):
            owner = (tmp_path / ".lock.owner").read_text()
            assert owner == f"{os.getpid()} of {platform.node()}"
            with pytest.raises(BusyError, match=f"process {owner} is writing here"):
                folder_lock(tmp_path).__enter__()
        assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.count("this file system has no locks") == 1


def dead_process():
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    return process.pid


@pytest.mark.fault("E31 F24", "the owner of a folder died", "the folder is free")
def test_a_process_that_died_here_owns_nothing_and_one_elsewhere_is_believed(
    tmp_path, without_locks
):
    without_locks(errno.ENOLCK)
    (tmp_path / ".lock.owner").write_text(f"{dead_process()} of {platform.node()}")
    with folder_lock(tmp_path):
        pass
    (tmp_path / ".lock.owner").write_text(f"{dead_process()} of another host")
    with (
        pytest.raises(BusyError, match=r"of another host.*if it is gone, remove .lock.owner"),
        folder_lock(tmp_path),
    ):
        pass


def test_another_error_of_a_lock_is_passed_on(tmp_path, without_locks):
    without_locks(errno.EIO)
    with pytest.raises(OSError, match="Input/output"), folder_lock(tmp_path):
        pass


@pytest.mark.fault("X2l", "a link in place of `.lock`", "refused, not followed")
@pytest.mark.parametrize("what", ["link", "broken link", "folder", "pipe"])
def test_the_lock_is_no_link_to_a_file_that_would_be_overwritten(tmp_path, what):
    victim = tmp_path / "victim"
    if what != "broken link":
        victim.write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    if what == "folder":
        (out / ".lock").mkdir()
    elif what == "pipe":
        os.mkfifo(out / ".lock")
    else:
        (out / ".lock").symlink_to(victim)
    with pytest.raises(UsageError, match=r"\.lock: is a link, or no regular file; remove it"):
        folder_lock(out).__enter__()
    assert not victim.exists() or victim.read_text() == "precious"
