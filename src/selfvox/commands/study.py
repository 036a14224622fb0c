"""The command `study`: how many labels does pre-training save?"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from selfvox.errors import SelfvoxError, Stopped, UsageError
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Study, parse_shard
from selfvox.studies import mc_dropout
from selfvox.studies.check_paths import check_paths
from selfvox.studies.cost import show_costs
from selfvox.studies.design import Cell, list_cells
from selfvox.studies.measure_facts import measure_facts
from selfvox.studies.plan import Plan
from selfvox.studies.read_plan import read_plan
from selfvox.studies.results import read_results
from selfvox.studies.run_once import study_lock
from selfvox.studies.run_study import StudyRunner
from selfvox.studies.saved_plan import load_plan
from selfvox.studies.setup import set_up
from selfvox.studies.table import make_tables


def study(settings: Study) -> list[dict[str, Any]]:
    """Run or continue a study, and make its tables.

    Returns:
        The rows of `summary.csv`.

    Raises:
        SelfvoxError: a plan, setting, scan, resource or number is invalid; finished work stays.
        Stopped: a signal came; the same command continues.
    """
    out = settings.out.absolute()  # workers of a cluster have other working folders
    if settings.passes is not None:
        _predict_with_passes(settings, out, settings.passes)
        return [] if settings.dry_run else _tables(load_plan(out / "plan.yaml"), out)
    if settings.table:
        return _tables(load_plan(out / "plan.yaml"), out)
    plan = read_plan(settings.plan, settings.data, settings.scale, settings.corpus)
    check_paths(plan)
    plan = set_up(plan, out)
    facts = measure_facts(plan, out)
    show_costs(plan, facts)
    if settings.dry_run:
        return []
    number, count = parse_shard(settings.shard)
    cells = list_cells(plan, facts)[number::count]
    failed = _run(StudyRunner(plan, facts, out), cells, settings.scheduler)
    rows = _tables(plan, out) if read_results(plan, out) else []
    if failed:
        # again at the end, below the tables
        for cell, error in failed.items():
            echo(f"failed: {cell}: {error}")
        first, reason = next(iter(failed.items()))
        raise type(reason)(
            f"{out}: {len(failed)} of {len(cells)} cells failed; the first, {first}: {reason}"
        )
    if not rows:
        folds = " in all folds" if plan.folds else ""
        echo(f"{out}: no table yet, since no cell is done{folds}")
    return rows


def _predict_with_passes(settings: Study, out: Path, passes: int) -> None:
    if settings.scheduler is not None:
        raise UsageError(
            "scheduler: cannot be combined with --passes; "
            "start several processes with --shard 0/4 and so on"
        )
    plan = load_plan(out / "plan.yaml")
    mc_dropout.predict_with_passes(out, plan, passes, settings.shard, settings.dry_run)


def _run(study: StudyRunner, cells: list[Cell], scheduler: str | None) -> dict[str, SelfvoxError]:
    """Make the cells; returns those that failed, each with the reason."""
    try:
        if scheduler:
            return study.run_on_cluster(cells, scheduler)
        return study.run_here(cells)
    except Stopped as error:  # its message is of a single run, which would go on with --resume
        raise Stopped(
            f"{study.out}: stopped; run the same command again to continue", error.exit_code - 128
        ) from None


def _tables(plan: Plan, out: Path) -> list[dict[str, Any]]:
    # processes that end at the same time write one after the other
    with study_lock(out, "tables", wait=True):
        rows = make_tables(plan, out)
        mc_dropout.summarise_passes(out, plan)
        echo(f"look: selfvox report {shlex.quote(str(out))} --out report/")
        return rows
