"""The verb `study`: how many labels does pre-training save?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfvox.errors import NumericalError, Stopped, UsageError
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Study, parse_shard
from selfvox.studies import cost, mc_dropout, results, table
from selfvox.studies import design as layout
from selfvox.studies import plan as plans
from selfvox.studies.plan import Plan
from selfvox.studies.run_once import study_lock
from selfvox.studies.run_study import _Study
from selfvox.studies.setup import set_up


def study(settings: Study) -> list[dict[str, Any]]:
    """Run a study, or go on with it, and make its tables.

    Returns:
        The rows of `summary.csv`.

    Raises:
        SelfvoxError: a plan, setting, scan, resource or number that cannot be; says what to do. What is done stays.
        Stopped: a signal came; the same command goes on.
    """
    out = settings.out.absolute()  # workers of a cluster stand elsewhere
    if settings.passes is not None:
        if settings.scheduler is not None:
            raise UsageError(
                "scheduler: does not go with --passes; give --shard 0/4 and so on to several processes"
            )
        mc_dropout.predict_with_passes(
            out,
            plans.load_plan(out / "plan.yaml"),
            settings.passes,
            settings.shard,
            settings.dry_run,
        )
        if settings.dry_run:
            return []
    if settings.table or settings.passes is not None:
        return _tables(plans.load_plan(out / "plan.yaml"), out)
    plan = plans.read_plan(settings.plan, settings.data, settings.scale)
    plan = set_up(plan, out)
    facts = cost.measure_facts(plan, out)
    cost.show_costs(plan, facts)
    if settings.dry_run:
        return []
    number, of = parse_shard(settings.shard)
    todo = layout.list_cells(plan, facts)[number::of]
    here = _Study(plan, facts, out)
    try:
        failed = (
            here.on_cluster(todo, settings.scheduler)
            if settings.scheduler
            else here.in_this_process(todo)
        )
    except Stopped as error:  # of a cell, which by itself would go on in another way
        raise Stopped(
            f"{out}: stopped; run the same command again to go on", error.exit_code - 128
        ) from None
    rows = _tables(plan, out) if results.read_results(plan, out) else []
    if failed:
        first, reason = next(iter(failed.items()))
        raise NumericalError(
            f"{out}: {len(failed)} of {len(todo)} cells failed; the first, {first}: {reason}"
        )
    if not rows:
        echo(f"{out}: no table yet, since no cell is done{' in all folds' if plan.folds else ''}")
    return rows


def _tables(plan: Plan, out: Path) -> list[dict[str, Any]]:
    # those who end at the same time write one after the other
    with study_lock(out, "tables", wait=True):
        rows = table.make_tables(plan, out)
        mc_dropout.summarise_passes(out, plan)
        return rows
