"""Run the cells of a study in this process or on a cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfvox.data.preparation import parallel
from selfvox.errors import BusyError, NumericalError
from selfvox.runs.progress import echo, format_seconds
from selfvox.studies import cost, run_cell
from selfvox.studies import design as layout
from selfvox.studies.design import Cell, MethodFacts
from selfvox.studies.plan import Plan
from selfvox.studies.run_once import is_done

PATIENCE_S = 2  # between looks at what other processes make
_ONE_AT_A_TIME = threading.Lock()  # torch has one random state for all threads of a worker


@dataclass(frozen=True)
class _Study:
    """A study at work."""

    plan: Plan
    facts: dict[str, MethodFacts]
    out: Path

    def in_this_process(self, todo: Sequence[Cell]) -> dict[str, str]:
        """Make the cells one after the other, those that other processes are at last; what failed, and why."""
        failed: dict[str, str] = {}
        total, watch = len(todo), _Watch()
        left = sorted(todo, key=lambda cell: not is_done(self.out / cell.folder))
        while left:
            busy: list[Cell] = []
            for place, cell in enumerate(left):
                if is_done(self.out / cell.folder):
                    self.do(cell)  # sees that it was made with these settings
                    continue
                later = [*busy, *left[place + 1 :]]
                left_s = watch.left(self.cost([cell, *later]))
                echo(
                    f"{total - len(later) - 1}/{total} done  now {cell}  {format_seconds(left_s)} left"
                )
                cost = self.cost([cell])
                try:
                    with watch.on(cost):
                        self.do(cell)
                except BusyError:
                    busy.append(cell)
                except NumericalError as error:
                    echo(f"{cell}: failed ({error})")
                    failed[str(cell)] = str(error)
            if busy and len(busy) == len(left):
                time.sleep(PATIENCE_S)
            left = busy
        return failed

    def on_cluster(self, todo: Sequence[Cell], scheduler: str) -> dict[str, str]:
        """Let a dask cluster make the cells: first the pre-trainings and what needs none; what failed, and why."""
        failed: dict[str, str] = {}
        first = [cell for cell in todo if cell.pretrain_seed is None]
        pretrainings = {
            layout.pretraining(self.plan, cell.arm.method, cell.pretrain_seed, cell.fold): _Job(
                self, cell, only_pretrain=True
            )
            for cell in todo
            if cell.pretrain_seed is not None
        }
        second = [_Job(self, cell) for cell in todo if cell.pretrain_seed is not None]
        for jobs in ([*pretrainings.values(), *(_Job(self, cell) for cell in first)], second):
            for done, (number, result) in enumerate(
                parallel.run(_make, jobs, 1, scheduler), start=1
            ):
                said = "its worker died" if isinstance(result, parallel.WorkerDiedError) else result
                if said and not jobs[number].only_pretrain:
                    failed[str(jobs[number].cell)] = said
                echo(f"{done}/{len(jobs)}  {jobs[number]}  {said or 'done'}")
        return failed

    def do(self, cell: Cell, wait: bool = False) -> None:
        """Make one cell unless it is there."""
        run_cell.run_cell(self.plan, self.facts, self.out, cell, wait)

    def cost(self, cells: Sequence[Cell]) -> float:
        """Seconds that cells will take by the trial, the pre-trainings that are not there included."""
        total, counted = 0.0, set[Path]()
        for cell in cells:
            known = self.facts[cell.arm.method]
            total += cost.seconds(self.plan, cell, known)
            if cell.pretrain_seed is not None:
                before = layout.pretraining(
                    self.plan, cell.arm.method, cell.pretrain_seed, cell.fold
                )
                if before not in counted and not is_done(self.out / before):
                    total += cost.pretrain_seconds(known)
                counted.add(before)
        return total


@dataclass(frozen=True)
class _Job:
    """What a worker of a cluster is told."""

    study: _Study
    cell: Cell
    only_pretrain: bool = False

    def __str__(self) -> str:
        return f"pre-training of {self.cell.arm.name}" if self.only_pretrain else str(self.cell)


def _make(job: _Job) -> str:
    """On a worker: make a cell or a pre-training; why it failed, or nothing."""
    study, cell = job.study, job.cell
    with _ONE_AT_A_TIME:
        try:
            if job.only_pretrain:
                assert cell.pretrain_seed is not None
                run_cell.pretrain_once(
                    study.plan, study.out, cell.arm.method, cell.pretrain_seed, cell.fold, wait=True
                )
            else:
                study.do(cell, wait=True)
        except NumericalError as error:
            return str(error)
    return ""


class _Watch:
    """Compares the time that work took with what was expected."""

    def __init__(self) -> None:
        self.expected, self.took = 0.0, 0.0

    def left(self, expected: float) -> float:
        """Seconds that work will take which was expected to take so many."""
        return expected * (self.took / self.expected if self.expected else 1.0)

    def on(self, expected: float) -> _Watch:
        self._now = expected
        return self

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.expected += self._now
            self.took += time.monotonic() - self._began
