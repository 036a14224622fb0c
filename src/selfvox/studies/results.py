"""What a study's run folders hold: the cells that are done, and their scores."""

from __future__ import annotations

import csv
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.data import strict_json
from selfvox.data.naming import natural
from selfvox.studies import cells as layout
from selfvox.studies.cells import Facts
from selfvox.studies.plan import Plan

MEAN = "mean of classes"
MEAN_OF_REGIONS = "mean of regions"
KAPPA = "quadratic_kappa"
SCORES = ("dice", KAPPA)  # columns that a study compares: the first that is there


@dataclass(frozen=True, kw_only=True)
class Result:
    """A cell that is done; the folds of one are taken together, since each scores other subjects."""

    paths: tuple[Path, ...]  # its runs: one, or one for each fold
    method: str
    twin: str | None  # the method it is compared with
    labels: int
    fraction: float
    seed: int
    pretrain_seed: int | None
    transductive: bool
    rows: tuple[dict[str, str], ...]  # of scores.csv, with their `fold`

    @property
    def key(self) -> str:
        """The column that is compared."""
        return next(name for name in SCORES if name in self.rows[0])

    def names(self) -> list[str]:
        """The classes and regions that are scored, and their mean where there are several."""
        names = list(dict.fromkeys(row["name"] for row in self.rows))
        return names if self.overall in names else [*names, self.overall]

    def averaged(self) -> list[str]:
        """The names that the mean goes over: the regions where there are some, else the classes."""
        rows = [row for row in self.rows if row["case"] == self.rows[0]["case"]]
        names, classes = [row["name"] for row in rows], [row["class"] for row in rows]
        # regions come after the classes, and are made of them
        first = next((n for n, each in enumerate(classes) if "+" in each or each in classes[:n]), 0)
        return names[first:]

    @property
    def overall(self) -> str:
        """What the mean is called, or the only class."""
        averaged = self.averaged()
        if len(averaged) == 1:
            return averaged[0]
        return MEAN if averaged[0] == self.rows[0]["name"] else MEAN_OF_REGIONS

    def of_case(self, name: str) -> dict[str, float]:
        """The score of each case in one class or region, or its mean over those that are averaged."""
        wanted = set(self.averaged() if name == self.overall else [name])
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if row["name"] in wanted:
                found.setdefault(row["case"], []).append(float(row[self.key] or "nan"))
        return {case: sum(values) / len(values) for case, values in found.items()}

    def mean(self, name: str) -> float:
        """The mean score over the cases, those left out where it is not defined."""
        values = [value for value in self.of_case(name).values() if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan


def read(plan: Plan, out: Path) -> list[Result]:
    """The cells that are done, method by method in the order of the plan."""
    order = [arm.name for arm in layout.arms(plan, _facts(out))]
    found: dict[tuple[Any, ...], Result] = {}
    for done in sorted(out.glob("cells/*/*/done.json"), key=lambda path: natural(str(path.parent))):
        said = strict_json.read(done)
        if said["method"] not in order:
            continue
        names = ("method", "twin", "labels", "fraction", "seed", "pretrain_seed", "transductive")
        rows = rows_of(done.parent / "scores.csv", said["fold"])
        key = (done.parent.name.rpartition("-fold-")[0] or done.parent.name, said["method"])
        if key in found:
            before = found[key]
            found[key] = dataclasses.replace(before, paths=(*before.paths, done.parent), rows=(*before.rows, *rows))
        else:
            found[key] = Result(paths=(done.parent,), rows=rows, **{name: said[name] for name in names})
    return sorted(
        found.values(), key=lambda one: (order.index(one.method), one.labels, one.seed, one.pretrain_seed or 0)
    )


def rows_of(table: Path, fold: int | None) -> tuple[dict[str, str], ...]:
    """The rows of scores.csv. Where whole scans are classified, kappa is that of all test cases, as if of one."""
    with table.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    place = {"fold": "" if fold is None else str(fold)}
    if "value" in rows[0]:
        case = "all" if fold is None else f"fold {fold}"
        values = [row["value"] for row in rows if row["score"] == KAPPA]
        return tuple({**place, "case": case, "class": "", "name": "all classes", KAPPA: value} for value in values)
    return tuple(place | row for row in rows)


def missing(plan: Plan, out: Path) -> list[str]:
    """The cells of the plan that are not done."""
    return [str(cell) for cell in layout.cells(plan, _facts(out)) if not (out / cell.folder / "done.json").exists()]


def _facts(out: Path) -> dict[str, Facts]:
    return {name: Facts(**each) for name, each in strict_json.read(out / "methods.json")["methods"].items()}
