"""Processes that train together: which of them died, was stopped, failed or is late.

A process that waits for another one waits in a library, for as long as that takes. So two threads
of each process keep contact through a small server in the first process. They name the process that
is lost within half a minute, and end the others with the exit code of the cause.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from selfvox.errors import ResourceError, SelfvoxError, Stopped
from selfvox.runs.lost_process import NO_BEAT, Beat, Judge
from selfvox.runs.meeting_point import LOOPBACK, meet_here, reach, serve

if TYPE_CHECKING:
    from selfvox.runs.device import Fabric

BEAT_S = 1.0
LOST_AFTER_S = 20.0  # without a sign of life
LATE_AFTER_S = 20.0  # while the others wait
GRACE_S = 5.0  # for a process to end by itself, before it is ended
_VERDICT = "verdict"
# how errors of the libraries begin that exchange tensors
_OF_LIBRARIES = ("gloo", "nccl", "connection", "timed out", "socket")


class Verdict(NamedTuple):
    """Why all processes end."""

    exit_code: int
    message: str


class ProcessLostError(ResourceError):
    """Another process of this training died, was stopped or failed."""

    def __init__(self, message: str, exit_code: int = ResourceError.exit_code):
        super().__init__(message)
        self.exit_code = exit_code


class ProcessWatch:
    """Launches the processes of a training, and watches them; a single one has nothing to watch.

    Args:
        fabric: launches the processes, or finds those that were launched.
    """

    def __init__(self, fabric: Fabric):
        self.fabric = fabric
        self.contact: Contact | None = None
        # called, in another thread, before the first process is ended because of another one
        self.on_end: Callable[[Verdict], None] = lambda verdict: None

    def __enter__(self) -> ProcessWatch:
        return self

    def join(self) -> None:
        """Launch the other processes, or wait for them; from here on they are watched."""
        if self.contact is not None:
            return
        children = self._launch()
        if self.fabric.world_size == 1:
            return
        rank = self.fabric.global_rank
        host = os.environ["MASTER_ADDR"]
        server = serve(host, LOST_AFTER_S) if rank == 0 else None
        port = self.fabric.broadcast(server.port if server else 0)
        name = f"rank {rank} (process {os.getpid()} of node {self.fabric.node_rank})"
        store = server or reach(host, port, LOST_AFTER_S)
        self.contact = Contact(store, rank, self.fabric.world_size, name, children)
        if rank == 0:
            self.contact.on_end = lambda verdict: self.on_end(verdict)
        self.contact.start()

    def _launch(self) -> list[subprocess.Popen[bytes]]:
        """The processes that this one started, of ranks 1 and up."""
        strategy: Any = self.fabric.strategy
        launcher = strategy.launcher
        if launcher is None or strategy.cluster_environment.creates_processes_externally:
            self.fabric.launch()
            return []
        # until the end of this process, as what torch would start in its place
        self._meeting_point = serve(LOOPBACK, LOST_AFTER_S)
        with meet_here(self._meeting_point):
            self.fabric.launch()
        children = list(launcher.procs)
        # Fabric would end this process by SIGKILL as soon as one of them fails
        launcher.procs.clear()
        return children

    def advance(self) -> None:
        """Say that this process is as far as it can be without the others.

        Raises:
            ProcessLostError: another one is lost.
        """
        if self.contact is not None:
            self.contact.advance()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Do something that the others wait for, as they should: this process is not late."""
        if self.contact is None:
            yield
            return
        self.contact.is_busy = True
        try:
            yield
        finally:
            self.contact.is_busy = False

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Replace errors of the libraries that exchange tensors by one that names the process.

        Raises:
            ProcessLostError: another one is lost.
        """
        try:
            yield
        except RuntimeError as error:
            if self.contact is None or not _is_of_library(error):
                raise
            raise self.contact.wait_for_verdict() from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.contact is None:
            return
        if isinstance(error, RuntimeError) and _is_of_library(error):
            lost = self.contact.wait_for_verdict()
            self.contact.leave(lost)
            raise lost from error
        self.contact.leave(error)
        if isinstance(error, SelfvoxError) and self.fabric.global_rank > 0:
            # the first process prints it
            error.is_silent = True


class Contact:
    """The threads of one process that keep contact with those of the others.

    Args:
        store: in the first process, the server; in the others, a client of it.
        rank: of this process.
        processes: number of all.
        name: of this process, in words.
        children: processes that this one started, of ranks 1 and up.
        end: ends this process.
    """

    def __init__(
        self,
        store: TCPStore,
        rank: int,
        processes: int,
        name: str,
        children: Sequence[subprocess.Popen[bytes]] = (),
        end: Callable[[int], object] = os._exit,
    ):
        self.store = store
        self.rank = rank
        self.processes = processes
        self.name = name
        self.children = children
        self.end = end
        self.on_end: Callable[[Verdict], None] = lambda verdict: None
        self.verdict: Verdict | None = None
        self.is_busy = False
        self._is_cut_off = False  # the first process does not answer
        self._progress = 0
        self._beats = 0
        self._left = threading.Event()
        self._judged = threading.Event()
        self._last_contact = time.monotonic()
        self._judge = Judge(processes, LOST_AFTER_S, LATE_AFTER_S)
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._keep_contact, self._end_stuck)
        ]

    def start(self) -> None:
        """Begin to keep contact."""
        self._beat()
        self._last_contact = time.monotonic()
        for thread in self._threads:
            thread.start()

    def advance(self) -> None:
        """Count one more thing that the others may wait for.

        Raises:
            ProcessLostError: another process is lost.
        """
        self._progress += 1
        if self.verdict is not None:
            raise ProcessLostError(self.verdict.message, self.verdict.exit_code)

    def wait_for_verdict(self) -> ProcessLostError:
        """The error that names the process that was lost."""
        self._judged.wait(LOST_AFTER_S + GRACE_S)
        if self.verdict is None:
            return ProcessLostError(
                "the processes lost contact although all of them live; is the network of the "
                "nodes down? go on with --resume"
            )
        return ProcessLostError(self.verdict.message, self.verdict.exit_code)

    def leave(self, error: BaseException | None) -> None:
        """End the watch; the other processes learn of an error, and end, too."""
        is_cause = error is not None and not isinstance(error, (Stopped, ProcessLostError))
        if error is not None and is_cause:
            self._publish(_verdict_of(error, self.name))
        self._left.set()
        for thread in self._threads:
            thread.join(2 * BEAT_S)
        if not self._is_cut_off:
            with contextlib.suppress(RuntimeError):
                self._beat(is_done=True)
                self._wait_for_others(is_cause)
        self._end_children()

    def _wait_for_others(self, is_cause: bool) -> None:
        """In the first process until all have left; in one that failed until the first has ended.

        The server ends with the first process. And torchrun ends all others at once when one fails:
        until then the first one has written and printed why.
        """
        wait_s = LOST_AFTER_S if self.verdict is None else 3 * BEAT_S
        if self.rank > 0:
            wait_s = GRACE_S + BEAT_S if is_cause else 0.0
        ends = time.monotonic() + wait_s
        while time.monotonic() < ends and not (self._are_done() and self.rank == 0):
            time.sleep(BEAT_S / 20)

    def _are_done(self) -> bool:
        return all(
            beat.is_done or self._is_dead(rank)
            for rank, beat in enumerate(self._read_beats())
            if rank > 0
        )

    def _is_dead(self, rank: int) -> bool:
        return bool(self.children) and self.children[rank - 1].poll() is not None

    def _end_children(self) -> None:
        for child in self.children:
            if child.poll() is None and self.verdict is not None:
                # a stopped process heeds no other signal
                child.kill()

    def _beat(self, is_done: bool = False) -> None:
        self._beats += 1
        beat = Beat(self._beats, self._progress, self.name, self.is_busy, is_done)
        self.store.set(_beat_key(self.rank), json.dumps(beat))

    def _read_beats(self) -> list[Beat]:
        keys = [_beat_key(rank) for rank in range(self.processes)]
        if not self.store.check(keys):
            return [
                Beat(*json.loads(self.store.get(key))) if self.store.check([key]) else NO_BEAT
                for key in keys
            ]
        return [Beat(*json.loads(value)) for value in self.store.multi_get(keys)]

    def _publish(self, verdict: Verdict) -> None:
        """The first verdict counts: what happens after it follows from it."""
        with contextlib.suppress(RuntimeError):
            current = self.store.compare_set(_VERDICT, "", json.dumps(verdict))
            verdict = Verdict(*json.loads(current))
        self._set_verdict(verdict)

    def _set_verdict(self, verdict: Verdict) -> None:
        self.verdict = self.verdict or verdict
        self._judged.set()

    def _keep_contact(self) -> None:
        """Give and look for signs of life, until there is a verdict."""
        while self.verdict is None and not self._left.wait(BEAT_S):
            try:
                self._beat()
                if self.store.check([_VERDICT]):
                    self._set_verdict(Verdict(*json.loads(self.store.get(_VERDICT))))
                    self._beat(is_done=True)
                elif self.rank == 0:
                    self._judge_others()
                self._last_contact = time.monotonic()
            except RuntimeError:
                self._is_cut_off = True
                if not self._left.is_set():
                    self._set_verdict(_lost("rank 0, the first process,", "died"))

    def _judge_others(self) -> None:
        beats = self._read_beats()
        for number, child in enumerate(self.children):
            code = child.poll()
            if code and not beats[number + 1].is_done:
                how = f"ended with exit code {code}"
                if code < 0:
                    how = f"was ended by {signal.Signals(-code).name}"
                return self._publish(_lost(f"rank {number + 1} (process {child.pid})", how))
        lost = self._judge.find_lost(beats, time.monotonic())
        if lost is not None:
            self._publish(_lost(lost, f"gave no sign of life for {LOST_AFTER_S:.0f} s"))
        return None

    def _end_stuck(self) -> None:
        """End this process if it does not end by itself after a verdict."""
        while not self._left.wait(BEAT_S / 4):
            silent_s = time.monotonic() - self._last_contact
            # a server that is stopped answers nothing: the other thread waits for it
            if self.verdict is None and silent_s > LOST_AFTER_S and self.rank > 0:
                self._is_cut_off = True
                what = f"gave no sign of life for {LOST_AFTER_S:.0f} s"
                self._set_verdict(_lost("rank 0, the first process,", what))
            if self.verdict is None or self._left.wait(GRACE_S):
                continue
            with contextlib.suppress(OSError):
                self.on_end(self.verdict)
            if self.rank == 0 or "rank 0" in self.verdict.message:
                with contextlib.suppress(OSError):
                    sys.stderr.write(f"selfvox: {self.verdict.message}\n")
                    sys.stderr.flush()
            self._end_children()
            self.end(self.verdict.exit_code)
            return


def _beat_key(rank: int) -> str:
    return f"beat {rank}"


def _lost(name: str, what: str) -> Verdict:
    return Verdict(
        ProcessLostError.exit_code, f"{name} {what}; go on with --resume once all can run"
    )


def _verdict_of(error: BaseException, name: str) -> Verdict:
    number = getattr(error, "signal_number", None)
    if number is not None or isinstance(error, KeyboardInterrupt):
        number = int(number or signal.SIGINT)
        return Verdict(128 + number, f"{name}: stopped by {signal.Signals(number).name}")
    code = getattr(error, "exit_code", 1)
    kind = "" if isinstance(error, SelfvoxError) else f"internal error: {type(error).__name__}: "
    return Verdict(code, f"{name}: {kind}{error}")


def _is_of_library(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, DistError) or any(word in text for word in _OF_LIBRARIES)
