"""A process that dies, stops, fails or is late is named, and the others end with its exit code."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from selfvox.errors import DataError
from selfvox.runs import process_watch
from selfvox.runs.lost_process import Beat, Judge
from selfvox.runs.meeting_point import reach, serve
from selfvox.runs.process_watch import Contact, ProcessLostError

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(process_watch, "BEAT_S", 0.05)
    monkeypatch.setattr(process_watch, "LOST_AFTER_S", 0.8)
    monkeypatch.setattr(process_watch, "LATE_AFTER_S", 0.3)
    monkeypatch.setattr(process_watch, "GRACE_S", 0.2)


@pytest.fixture
def contacts():
    """Makes the contacts of some processes, all in this one; `ended` has their exit codes."""
    started = []

    def start(count, children=()):
        server = serve(HOST, 20.0)
        stores = [server, *(reach(HOST, server.port, 20.0) for _ in range(count - 1))]
        for rank, store in enumerate(stores):
            ended = []
            contact = Contact(
                store,
                rank,
                count,
                f"rank {rank}",
                children if rank == 0 else (),
                end=ended.append,
            )
            contact.ended = ended
            contact.start()
            started.append(contact)
        return started

    yield start
    for contact in started:
        contact._left.set()


def wait_until(condition, seconds=20.0):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.fault(
    "G3 F17",
    "one of several processes gives no sign of life",
    "named, the others are ended",
)
def test_a_process_without_a_sign_of_life_is_named_and_the_others_are_ended(contacts, capsys):
    first, second, third = contacts(3)
    notes = []
    first.on_end = notes.append
    second._left.set()  # as if stopped: its threads do nothing more
    wait_until(lambda: first.ended and third.ended)
    assert first.ended == third.ended == [5]
    assert [note.message for note in notes] == [first.verdict.message]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("selfvox: rank 1 gave no sign of life for")


@pytest.mark.fault(
    "G9",
    "an error in one of several processes",
    "the others end with its exit code",
)
def test_an_error_of_one_process_ends_the_others_with_its_exit_code(contacts):
    first, second = contacts(2)
    error = DataError("scan_07.nii.gz: is damaged")
    leaving = threading.Thread(target=second.leave, args=(error,))
    leaving.start()
    wait_until(lambda: first.verdict is not None)
    with pytest.raises(ProcessLostError, match=r"^rank 1: scan_07.nii.gz: is damaged$") as lost:
        first.advance()
    assert lost.value.exit_code == DataError.exit_code
    leaving.join()


@pytest.mark.fault("F17 G3", "SIGKILL of one of several processes", "named at once")
def test_a_process_that_another_one_started_is_named_as_soon_as_it_dies(contacts):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    first, _ = contacts(2, [child])
    child.kill()
    wait_until(lambda: first.verdict is not None)
    assert f"rank 1 (process {child.pid}) was ended by SIGKILL" in first.verdict.message


def test_processes_that_are_done_are_not_lost(contacts):
    first, second = contacts(2)
    second.leave(None)
    time.sleep(2 * process_watch.LOST_AFTER_S)
    first.leave(None)
    assert first.verdict is None


@pytest.mark.fault("F20", "one of several processes is slow", "named once, and waited for")
def test_a_late_process_is_named_once_and_not_while_it_does_what_the_others_must_wait_for(
    contacts, capsys
):
    first, second, third = contacts(3)
    third.is_busy = True
    first.advance()
    time.sleep(3 * process_watch.LATE_AFTER_S)
    assert capsys.readouterr().err.count("is late") == 1
    assert first.verdict is None
    second.advance()
    third.advance()
    time.sleep(2 * process_watch.LATE_AFTER_S)
    assert capsys.readouterr().err == ""


def test_who_was_stopped_itself_blames_nobody():
    beats = [Beat(1, 0, "rank 0"), Beat(1, 0, "rank 1")]
    judge = Judge(2, process_watch.LOST_AFTER_S, process_watch.LATE_AFTER_S)
    began = time.monotonic()
    assert judge.find_lost(beats, began) is None
    assert judge.find_lost(beats, began + 100.0) is None
    # seen often enough since, and still silent
    moments = [began + 100.0 + 0.1 * number for number in range(10)]
    assert [judge.find_lost(beats, moment) for moment in moments][-1] == "rank 0"


FIRST = f"""
import time
from selfvox.runs.meeting_point import serve
server = serve({HOST!r}, 20.0)
print(server.port, flush=True)
time.sleep(60)
"""


def test_a_first_process_that_is_stopped_or_dies_is_named():
    first = subprocess.Popen([sys.executable, "-c", FIRST], stdout=subprocess.PIPE, text=True)
    port = int(first.stdout.readline())
    ended = []
    contacts = [
        Contact(reach(HOST, port, 20.0), rank, 3, f"rank {rank}", end=ended.append)
        for rank in (1, 2)
    ]
    contacts[0].start()
    time.sleep(0.2)
    first.send_signal(signal.SIGSTOP)
    wait_until(lambda: ended == [5])
    assert "rank 0, the first process, gave no sign of life" in contacts[0].verdict.message
    first.send_signal(signal.SIGCONT)
    contacts[1].start()
    time.sleep(0.2)
    first.kill()
    first.communicate()
    wait_until(lambda: ended == [5, 5])
    assert "rank 0, the first process, died" in contacts[1].verdict.message
