"""What a study's run folders hold: the cells that are done, and their scores."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from selfvox.data import strict_json
from selfvox.data.naming import natural
from selfvox.studies import cells as layout
from selfvox.studies.cells import Facts
from selfvox.studies.plan import Plan

MEAN = "mean of classes"
SCORES = ("dice",)  # columns of scores.csv that a study compares: the first that is there


@dataclass(frozen=True, kw_only=True)
class Result:
    """A cell that is done."""

    path: Path
    method: str
    twin: str | None  # the method it is compared with
    labels: int
    fraction: float
    seed: int
    pretrain_seed: int | None
    transductive: bool
    rows: tuple[dict[str, str], ...]  # of scores.csv

    @property
    def key(self) -> str:
        """The column that is compared."""
        return next(name for name in SCORES if name in self.rows[0])

    def names(self) -> list[str]:
        """The classes that are scored, and their mean where there are several."""
        names = list(dict.fromkeys(row["name"] for row in self.rows))
        return names if len(names) == 1 else [*names, MEAN]

    def of_case(self, name: str) -> dict[str, float]:
        """The score of each case in one class, or its mean over the classes."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if name in (row["name"], MEAN):
                found.setdefault(row["case"], []).append(float(row[self.key]))
        return {case: sum(values) / len(values) for case, values in found.items()}

    def mean(self, name: str) -> float:
        """The mean score over the cases."""
        values = list(self.of_case(name).values())
        return sum(values) / len(values)


def read(plan: Plan, out: Path) -> list[Result]:
    """The cells that are done, method by method in the order of the plan."""
    order = [arm.name for arm in layout.arms(plan, _facts(out))]
    found = []
    for done in sorted(out.glob("cells/*/*/done.json"), key=lambda path: natural(str(path.parent))):
        said = strict_json.read(done)
        with (done.parent / "scores.csv").open(newline="", encoding="utf-8") as lines:
            rows = tuple(csv.DictReader(lines))
        names = ("method", "twin", "labels", "fraction", "seed", "pretrain_seed", "transductive")
        found.append(Result(path=done.parent, rows=rows, **{name: said[name] for name in names}))
    known = [each for each in found if each.method in order]
    return sorted(known, key=lambda one: (order.index(one.method), one.labels, one.seed, one.pretrain_seed or 0))


def missing(plan: Plan, out: Path) -> list[str]:
    """The cells of the plan that are not done."""
    return [str(cell) for cell in layout.cells(plan, _facts(out)) if not (out / cell.folder / "done.json").exists()]


def _facts(out: Path) -> dict[str, Facts]:
    return {name: Facts(**each) for name, each in strict_json.read(out / "methods.json")["methods"].items()}
