"""What a study's run folders hold: the cells that are done, and their scores."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfvox.data.formats import strict_json
from selfvox.data.naming import natural_key
from selfvox.data.preparation.store import is_store, open_store
from selfvox.studies import class_scores
from selfvox.studies import design as layout
from selfvox.studies.design import MethodFacts
from selfvox.studies.plan import Plan

MEAN = "mean of classes"
MEAN_OF_REGIONS = "mean of regions"
ALL = "all classes"  # what the score of whole scans that were classified is called


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
    slices: str | None  # of a 2D network's
    key: str  # what is compared: dice, quadratic_kappa or balanced_accuracy
    rows: tuple[
        dict[str, str], ...
    ]  # of scores.csv, or of answers.csv where whole scans are classified; with `fold`
    from_scratch: bool = False
    subjects: Mapping[str, str] = field(
        default_factory=dict
    )  # of the cases; one that is not there is its own

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

    def cases(self) -> list[str]:
        """The test cases."""
        return list(dict.fromkeys(row["case"] for row in self.rows))

    def answers(self) -> dict[str, tuple[int, int]]:
        """The true and the predicted class of each case, where whole scans are classified; else empty."""
        return {
            row["case"]: (int(row["true"]), int(row["predicted"]))
            for row in self.rows
            if "predicted" in row
        }

    def mean(self, name: str) -> float:
        """The mean score over the cases; where whole scans are classified, the score of all."""
        if answers := self.answers():
            return class_scores.score(self.key, list(answers.values()))
        values = [value for value in self.of_case(name).values() if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan


def read_results(plan: Plan, out: Path) -> list[Result]:
    """The cells that are done, in all of their folds, method by method in the order of the plan."""
    arms = {arm.name: arm for arm in layout.list_arms(plan, _facts(out))}
    order, subjects = list(arms), _subjects(out)
    found: dict[tuple[Any, ...], Result] = {}
    for done in sorted(
        out.glob("cells/*/*/done.json"), key=lambda path: natural_key(str(path.parent))
    ):
        said = strict_json.read_json(done)
        if said["method"] not in order:
            continue
        names = (
            "method",
            "twin",
            "labels",
            "fraction",
            "seed",
            "pretrain_seed",
            "transductive",
            "slices",
        )
        rows = rows_of(done.parent, said["fold"])
        key = (done.parent.name.rpartition("-fold-")[0] or done.parent.name, said["method"])
        if key in found:
            before = found[key]
            found[key] = dataclasses.replace(
                before,
                paths=(*before.paths, done.parent),
                rows=(*before.rows, *rows),
                transductive=before.transductive or said["transductive"],
            )
        else:
            values = {name: said[name] for name in names}
            values |= {"from_scratch": arms[said["method"]].pretrain is None, "subjects": subjects}
            found[key] = Result(paths=(done.parent,), rows=rows, key=said["score"], **values)
    whole = [one for one in found.values() if len(one.paths) == (plan.folds or 1)]
    return sorted(
        whole,
        key=lambda one: (order.index(one.method), one.labels, one.seed, one.pretrain_seed or 0),
    )


def rows_of(run: Path, fold: int | None) -> tuple[dict[str, str], ...]:
    """A row for each case and class; for each case, where whole scans are classified."""
    classified = (run / "answers.csv").exists()
    with (run / ("answers.csv" if classified else "scores.csv")).open(
        newline="", encoding="utf-8"
    ) as lines:
        rows = list(csv.DictReader(lines))
    place = {"fold": "" if fold is None else str(fold)}
    if classified:
        place |= {"class": "", "name": ALL}
    return tuple(place | row for row in rows)


def at_equal_compute(plan: Plan, out: Path) -> list[tuple[str, str]]:
    """Each method with its from-scratch twin at equal compute."""
    return [(arm.name, arm.equal) for arm in layout.list_arms(plan, _facts(out)) if arm.equal]


def in_2d(plan: Plan, out: Path) -> list[tuple[str, str]]:
    """Each method with the one that does the same on slices; then their twins, whose training is theirs."""
    arms = {arm.name: arm for arm in layout.list_arms(plan, _facts(out))}
    methods = [arms[name] for name in layout.methods_to_time(plan) if name in arms]
    pairs = [(arm, arms[f"2D-{arm.name}"]) for arm in methods if f"2D-{arm.name}" in arms]
    twins = [
        both for one, flat in pairs for both in ((one.twin, flat.twin), (one.equal, flat.equal))
    ]
    of_methods = [(one.name, flat.name) for one, flat in pairs]
    return [*of_methods, *dict.fromkeys((one, flat) for one, flat in twins if one and flat)]


def missing(plan: Plan, out: Path) -> tuple[list[str], int]:
    """The cells of the plan that are not done, and how many it has."""
    cells = layout.list_cells(plan, _facts(out))
    return [str(cell) for cell in cells if not (out / cell.folder / "done.json").exists()], len(
        cells
    )


def _subjects(out: Path) -> dict[str, str]:
    """Whose the cases are, by the store; empty where it was left behind."""
    store = out / "store"
    return {case.id: case.subject for case in open_store(store).cases} if is_store(store) else {}


def _facts(out: Path) -> dict[str, MethodFacts]:
    """What is known of each method; nothing yet of one that the plan was given last."""
    file = out / "methods.json"
    known = strict_json.read_json(file)["methods"] if file.exists() else {}
    return {name: MethodFacts(**each) for name, each in known.items()}
