"""The cells of a study, run in this process or on a cluster."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfvox.data.preparation import parallel
from selfvox.errors import (
    BusyError,
    DataError,
    NumericalError,
    ResourceError,
    SelfvoxError,
    UsageError,
    WeightsError,
)
from selfvox.runs.progress import echo, format_seconds
from selfvox.studies import run_cell
from selfvox.studies.cost import cell_seconds, pretrain_seconds
from selfvox.studies.design import Cell, pretrain_folder
from selfvox.studies.facts import MethodFacts
from selfvox.studies.plan import Plan
from selfvox.studies.run_once import is_done, note_failure

# what ends a cell; others go on
_FAILURES = (DataError, NumericalError, ResourceError, UsageError, WeightsError)
PATIENCE_S = 2  # before looking again at cells that other processes make
_ONE_AT_A_TIME = threading.Lock()  # torch has one random state for all threads of a worker


@dataclass(frozen=True)
class StudyRunner:
    """A study that is set up and measured."""

    plan: Plan
    facts: Mapping[str, MethodFacts]
    out: Path

    def run_here(self, cells: Sequence[Cell]) -> dict[str, SelfvoxError]:
        """Make the cells one after the other; those that other processes make come last.

        Cells that need a pre-training that failed are not made.

        Returns:
            The cells that failed, each with the reason.
        """
        failed: dict[str, SelfvoxError] = {}
        failed_pretrainings: dict[Path, SelfvoxError] = {}
        estimate = _TimeEstimate()
        # finished cells first: wrong settings show before any work
        waiting = sorted(cells, key=lambda cell: not self._is_done(cell))
        waited_for: set[str] = set()  # announced once: their turn comes every few seconds
        while waiting:
            busy: list[Cell] = []
            for number, cell in enumerate(waiting):
                if self._is_done(cell):
                    self.make(cell)  # checks that it was made with these settings
                    continue
                remaining = [*busy, *waiting[number + 1 :]]
                left_s = estimate.correct(self.expected_seconds([cell, *remaining]))
                finished = len(cells) - len(remaining) - 1
                time_left = format_seconds(left_s)
                if str(cell) not in waited_for:
                    echo(f"{finished}/{len(cells)} done  now {cell}  {time_left} left")
                pretraining = self._pretrain_folder(cell)
                try:
                    if pretraining in failed_pretrainings:
                        raise failed_pretrainings[pretraining]
                    with estimate.compare(self.expected_seconds([cell])):
                        self.make(cell)
                # another process makes it: looked at again after the others
                except BusyError as error:
                    if str(cell) not in waited_for:
                        echo(f"{cell}: later ({error})")
                    waited_for.add(str(cell))
                    busy.append(cell)
                except _FAILURES as error:
                    echo(f"{cell}: failed ({error})")
                    failed[str(cell)] = error
                    note_failure(self.out / cell.folder, str(error))
                    if pretraining is not None and not is_done(self.out / pretraining):
                        failed_pretrainings[pretraining] = error
            if busy and len(busy) == len(waiting):
                time.sleep(PATIENCE_S)
            waiting = busy
        return failed

    def run_on_cluster(self, cells: Sequence[Cell], scheduler: str) -> dict[str, SelfvoxError]:
        """Have a dask cluster make the cells: those that need a pre-training after these.

        Args:
            cells: to make.
            scheduler: its address.

        Returns:
            The cells that failed, each with the reason.
        """
        failed: dict[str, SelfvoxError] = {}
        failed_pretrainings: dict[Path | None, SelfvoxError] = {}
        stages = self._stages(cells)
        pace = _Pace(sum(self._job_seconds(job) for jobs in stages for job in jobs))

        def note(job: _Job, error: SelfvoxError) -> None:
            failed[str(job.cell)] = error
            note_failure(self.out / job.cell.folder, str(error))

        for stage in stages:
            jobs = []
            for job in stage:
                error = failed_pretrainings.get(self._pretrain_folder(job.cell))
                if error is None:
                    jobs.append(job)
                else:
                    note(job, error)
                    pace.time_left(self._job_seconds(job), counts=False)
            # before any is done
            seconds = [self._job_seconds(job) for job in jobs]
            for count, (number, result) in enumerate(
                parallel.run(_make, jobs, 1, scheduler), start=1
            ):
                job = jobs[number]
                if isinstance(result, parallel.WorkerDiedError):
                    reason: SelfvoxError | None = ResourceError("its worker died")
                else:
                    reason = result
                if reason and not job.only_pretrain:
                    note(job, reason)
                # what killed one worker may not kill another
                elif reason and not isinstance(result, parallel.WorkerDiedError):
                    failed_pretrainings[self._pretrain_folder(job.cell)] = reason
                left = pace.time_left(seconds[number], counts=reason is None)
                echo(f"{count}/{len(jobs)}  {job}  {reason or 'done'}{left}")
        return failed

    def _stages(self, cells: Sequence[Cell]) -> tuple[list[_Job], list[_Job]]:
        """What a cluster makes first, and what needs this: two workers would wait for one."""
        pretrainings: dict[Path, _Job] = {}
        from_scratch: list[_Job] = []
        pretrained: list[_Job] = []
        for cell in cells:
            folder = self._pretrain_folder(cell)
            if folder is None:
                from_scratch.append(_Job(self, cell))
                continue
            if not self._is_done(cell):
                pretrainings[folder] = _Job(self, cell, only_pretrain=True)
            pretrained.append(_Job(self, cell))
        return [*pretrainings.values(), *from_scratch], pretrained

    def _job_seconds(self, job: _Job) -> float:
        """What a job is expected to take; nothing if it is done."""
        facts = self.facts[job.cell.arm.method.name]
        folder = self._pretrain_folder(job.cell) if job.only_pretrain else job.cell.folder
        if folder is None or is_done(self.out / folder):
            return 0.0
        return (
            pretrain_seconds(facts)
            if job.only_pretrain
            else cell_seconds(self.plan, job.cell, facts)
        )

    def make(self, cell: Cell, wait: bool = False) -> None:
        """Make one cell unless it is done."""
        run_cell.run_cell(self.plan, self.facts, self.out, cell, wait)

    def expected_seconds(self, cells: Sequence[Cell]) -> float:
        """What cells are expected to take, with the pre-trainings that are not done yet."""
        total = 0.0
        counted: set[Path] = set()
        for cell in cells:
            facts = self.facts[cell.arm.method.name]
            total += cell_seconds(self.plan, cell, facts)
            folder = self._pretrain_folder(cell)
            if folder is None:
                continue
            if folder not in counted and not is_done(self.out / folder):
                total += pretrain_seconds(facts)
            counted.add(folder)
        return total

    def _is_done(self, cell: Cell) -> bool:
        return is_done(self.out / cell.folder)

    def _pretrain_folder(self, cell: Cell) -> Path | None:
        """The pre-training that a cell needs; None from scratch or from a run of elsewhere."""
        if cell.pretrain_seed is None:
            return None
        return pretrain_folder(self.plan, cell.arm.method, cell.pretrain_seed, cell.fold)


@dataclass(frozen=True)
class _Job:
    """What a worker of a cluster is sent."""

    study: StudyRunner
    cell: Cell
    only_pretrain: bool = False

    def __str__(self) -> str:
        return f"pre-training of {self.cell.arm.name}" if self.only_pretrain else str(self.cell)


def _make(job: _Job) -> SelfvoxError | None:
    """On a worker: make a cell or a pre-training; returns why it failed, or nothing."""
    study = job.study
    cell = job.cell
    with _ONE_AT_A_TIME:
        try:
            if job.only_pretrain:
                assert cell.pretrain_seed is not None
                run_cell.pretrain_once(
                    study.plan, study.out, cell.arm.method, cell.pretrain_seed, cell.fold, wait=True
                )
            else:
                study.make(cell, wait=True)
        except _FAILURES as error:
            return error
    return None


class _Pace:
    """The time left by the pace so far, of all workers of a cluster together."""

    def __init__(self, expected_s: float) -> None:
        self._began = time.monotonic()
        self._left_s = expected_s
        self._done_s = 0.0

    def time_left(self, expected_s: float, counts: bool) -> str:
        """The time left as text once a job has ended; empty where nothing was timed yet.

        Args:
            expected_s: seconds that the job was expected to take.
            counts: whether it tells of the pace: one that failed does not.
        """
        self._left_s -= expected_s
        if counts:
            self._done_s += expected_s
        if not self._done_s:
            return ""
        seconds = (time.monotonic() - self._began) * self._left_s / self._done_s
        return f"  {format_seconds(seconds)} left"


class _TimeEstimate:
    """Corrects expected times by what the work so far took."""

    def __init__(self) -> None:
        self._expected_s = 0.0
        self._actual_s = 0.0

    def correct(self, expected_s: float) -> float:
        """Seconds that the work is likely to take."""
        return expected_s * (self._actual_s / self._expected_s if self._expected_s else 1.0)

    @contextlib.contextmanager
    def compare(self, expected_s: float) -> Iterator[None]:
        """Time the work within; work that fails does not count."""
        began = time.monotonic()
        yield
        self._expected_s += expected_s
        self._actual_s += time.monotonic() - began
