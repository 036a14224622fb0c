"""The verb `study`: how many labels does pre-training save?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfvox.errors import NumericalError, Stopped, UsageError
from selfvox.runs.progress import say
from selfvox.settings.verbs import Study
from selfvox.studies import cost, mc_dropout, results, table
from selfvox.studies import design as layout
from selfvox.studies import plan as plans
from selfvox.studies.plan import Plan
from selfvox.studies.run_once import held
from selfvox.studies.run_study import _Study
from selfvox.studies.setup import begin


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
        mc_dropout.ask(
            out, plans.load(out / "plan.yaml"), settings.passes, settings.shard, settings.dry_run
        )
        if settings.dry_run:
            return []
    if settings.table or settings.passes is not None:
        return _tables(plans.load(out / "plan.yaml"), out)
    plan = plans.read(settings.plan, settings.data, settings.scale)
    plan = begin(plan, out)
    facts = cost.facts_of(plan, out)
    cost.show(plan, facts)
    if settings.dry_run:
        return []
    number, of = map(int, settings.shard.split("/"))
    todo = layout.cells(plan, facts)[number::of]
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
    rows = _tables(plan, out) if results.read(plan, out) else []
    if failed:
        first, reason = next(iter(failed.items()))
        raise NumericalError(
            f"{out}: {len(failed)} of {len(todo)} cells failed; the first, {first}: {reason}"
        )
    if not rows:
        say(f"{out}: no table yet, since no cell is done{' in all folds' if plan.folds else ''}")
    return rows


def _tables(plan: Plan, out: Path) -> list[dict[str, Any]]:
    # those who end at the same time write one after the other
    with held(out, "tables", wait=True):
        rows = table.make(plan, out)
        mc_dropout.tell(out, plan)
        return rows
