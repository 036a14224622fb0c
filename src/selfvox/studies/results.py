"""Results of a study, read from its run folders: the cells that are done, and their scores."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from selfvox.data.naming import natural_key
from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError
from selfvox.runs.typed_json import read_checked
from selfvox.studies import class_scores
from selfvox.studies.design import Arm, list_arms, list_cells, pretrain_folder
from selfvox.studies.facts import load_facts
from selfvox.studies.plan import Plan
from selfvox.studies.run_once import failure_of

MEAN = "mean of classes"
MEAN_OF_REGIONS = "mean of regions"
EQUAL_COMPUTE = "equal compute"  # the comparison with the twins at equal compute
ALL = "all classes"  # name of the score of classified scans

_OF_DONE = (
    "method",
    "labels",
    "fraction",
    "seed",
    "pretrain_seed",
    "transductive",
    "slices",
)


def labels_text(labels: int, validation_labels: int | None) -> str:
    """Labelled subjects that train, and those that choose the weights: `10 + 12`."""
    return f"{labels} + {validation_labels}" if validation_labels else str(labels)


class Cost(NamedTuple):
    """What a run took: seconds of the processor, or seconds on a GPU; all its folds together."""

    unit: str  # cpu or gpu
    seconds: float  # to fine-tune, predict and score
    pretrainings: Mapping[str, float] | None  # seconds by folder; None: not known
    peak_memory_mib: float  # of the process, or of the GPU

    @property
    def pretraining_s(self) -> float | None:
        """Seconds of all pre-trainings, each once."""
        return None if self.pretrainings is None else sum(self.pretrainings.values())


@dataclass(frozen=True, kw_only=True)
class Result:
    """A cell that is done; all its folds together, since each of them scores other subjects."""

    paths: tuple[Path, ...]  # its runs: one, or one for each fold
    method: str
    twin: str | None  # the method it is compared with
    labels: int  # subjects that train
    fraction: float
    seed: int
    pretrain_seed: int | None
    transductive: bool
    slices: str | None  # of a 2D network
    key: str  # the score that is compared: dice, quadratic_kappa or balanced_accuracy
    # rows of scores.csv, or of answers.csv where scans are classified; with `fold`
    rows: tuple[dict[str, str], ...]
    from_scratch: bool = False
    # subjects with labels that choose the weights; None: not recorded, by an older version
    validation_labels: int | None = None
    is_network: bool = True  # else registration alone, or predictions made elsewhere
    cost: Cost | None = None  # None: not known
    # by case; a case that is missing is a subject of its own
    subjects: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The classes and regions that are scored, and their mean where there are several."""
        names = list(dict.fromkeys(row["name"] for row in self.rows))
        return names if self.overall in names else [*names, self.overall]

    def averaged(self) -> list[str]:
        """The names that the mean is taken over: the regions if there are any, else the classes."""
        rows = [row for row in self.rows if row["case"] == self.rows[0]["case"]]
        names = [row["name"] for row in rows]
        return names[_first_region([row["class"] for row in rows]) :]

    @property
    def overall(self) -> str:
        """The name of the mean, or the only class."""
        averaged = self.averaged()
        if len(averaged) == 1:
            return averaged[0]
        return MEAN if averaged[0] == self.rows[0]["name"] else MEAN_OF_REGIONS

    def of_case(self, name: str) -> dict[str, float]:
        """The score of each case in one class or region, or in the mean; nan where undefined."""
        names = set(self.averaged() if name == self.overall else [name])
        values: dict[str, list[float]] = {}
        for row in self.rows:
            if row["name"] in names:
                values.setdefault(row["case"], []).append(float(row[self.key] or "nan"))
        return {case: sum(scores) / len(scores) for case, scores in values.items()}

    def cases(self) -> list[str]:
        """The test cases."""
        return list(dict.fromkeys(row["case"] for row in self.rows))

    def answers(self) -> dict[str, tuple[int, int]]:
        """The true and predicted class number of each case; empty unless scans are classified."""
        return {
            row["case"]: (int(row["true"]), int(row["predicted"]))
            for row in self.rows
            if "predicted" in row
        }

    def scored(self, name: str) -> set[str]:
        """The cases with a defined score in one class or region."""
        if self.answers():
            return set(self.cases())
        return {case for case, value in self.of_case(name).items() if not math.isnan(value)}

    def mean(self, name: str) -> float:
        """The mean score over the cases; for classified scans the score of all cases together."""
        answers = self.answers()
        if answers:
            return class_scores.score(self.key, list(answers.values()))
        values = [value for value in self.of_case(name).values() if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan


def _first_region(classes: list[str]) -> int:
    """Where regions begin among the rows of a case; 0 where there are none.

    Regions come after the classes and consist of them: of several, or of one again.
    """
    for number, value in enumerate(classes):
        if "+" in value or value in classes[:number]:
            return number
    return 0


def read_results(plan: Plan, out: Path) -> list[Result]:
    """The cells of the plan that are done in all of their folds, by method, labels and seed."""
    facts = load_facts(out)
    arms = [arm.name for arm in list_arms(plan, facts)]
    arm_of = {cell.folder: cell.arm for cell in list_cells(plan, facts)}
    subjects = _subjects(out)
    results: dict[tuple[str, str], Result] = {}
    files = sorted(out.glob("cells/*/*/done.json"), key=lambda path: natural_key(str(path.parent)))
    for file in files:
        run = file.parent
        arm = arm_of.get(run.relative_to(out))
        # left out of the plan since then: it stays on disk
        if arm is None:
            continue
        record = read_checked(file)
        cell = (run.name.rpartition("-fold-")[0] or run.name, arm.name)
        try:
            cost = _read_cost(plan, out, arm, record)
            result = _read_result(run, record, arm, subjects, cost)
        except KeyError as error:
            raise DataError(f"{file}: damaged (has no {error}); remove it") from None
        results[cell] = _join_folds(results[cell], result) if cell in results else result
    # a mean over some of the folds would be over other subjects
    complete = [result for result in results.values() if len(result.paths) == (plan.folds or 1)]
    return sorted(
        complete,
        key=lambda result: (
            arms.index(result.method),
            result.labels,
            result.seed,
            result.pretrain_seed or 0,
        ),
    )


def _read_cost(plan: Plan, out: Path, arm: Arm, record: Mapping[str, Any]) -> Cost | None:
    """The cost of a run and of its encoder, from their `done.json`."""
    # of predictions made elsewhere, only scoring was measured
    if "cpu_s" not in record or arm.method.predictions is not None:
        return None
    unit = "gpu" if "gpu_s" in record else "cpu"
    pretrainings: dict[str, float] | None = {}
    if isinstance(arm.pretrain, dict):
        folder = pretrain_folder(plan, arm.method, record["pretrain_seed"], record["fold"])
        file = out / folder / "done.json"
        seconds = read_checked(file).get(f"{unit}_s") if file.exists() else None
        pretrainings = None if seconds is None else {str(folder): seconds}
    elif arm.pretrain is not None:
        pretrainings = None
    memory = "peak_gpu_memory_mib" if unit == "gpu" else "peak_memory_mib"
    return Cost(unit, record[f"{unit}_s"], pretrainings, record[memory])


def _read_result(
    run: Path,
    record: Mapping[str, Any],
    arm: Arm,
    subjects: Mapping[str, str],
    cost: Cost | None,
) -> Result:
    """One run as a result, from its `done.json` and its scores."""
    return Result(
        paths=(run,),
        rows=read_rows(run, record["fold"]),
        # of the plan, since a method that was added may bring another
        twin=arm.twin,
        key=record["score"],
        from_scratch=arm.pretrain is None,
        is_network=arm.method.is_network,
        cost=cost,
        validation_labels=record.get("validation_labels"),
        subjects=subjects,
        **{name: record[name] for name in _OF_DONE},
    )


def _join_folds(first: Result, second: Result) -> Result:
    return dataclasses.replace(
        first,
        paths=first.paths + second.paths,
        rows=first.rows + second.rows,
        transductive=first.transductive or second.transductive,
        cost=_join_costs(first.cost, second.cost),
    )


def _join_costs(first: Cost | None, second: Cost | None) -> Cost | None:
    """The cost of two folds, which have their own encoders or share one."""
    if first is None or second is None or first.unit != second.unit:
        return None
    pretrainings = None
    if first.pretrainings is not None and second.pretrainings is not None:
        pretrainings = {**first.pretrainings, **second.pretrainings}
    return Cost(
        first.unit,
        first.seconds + second.seconds,
        pretrainings,
        max(first.peak_memory_mib, second.peak_memory_mib),
    )


def read_rows(run: Path, fold: int | None) -> tuple[dict[str, str], ...]:
    """A row for each case and class of a run; for each case, where scans are classified."""
    columns = {"fold": "" if fold is None else str(fold)}
    file = run / "scores.csv"
    if (run / "answers.csv").exists():
        file = run / "answers.csv"
        columns |= {"class": "", "name": ALL}
    with file.open(newline="", encoding="utf-8") as lines:
        return _with_distinct_names([columns | row for row in csv.DictReader(lines)])


def _with_distinct_names(rows: Sequence[dict[str, str]]) -> tuple[dict[str, str], ...]:
    """Rows of scores in which no region has the name of a class: it becomes `NAME (region)`."""
    seen: set[tuple[str, str]] = set()
    is_region = []
    for row in rows:
        is_region.append("+" in row["class"] or (row["case"], row["class"]) in seen)
        seen.add((row["case"], row["class"]))
    pairs = list(zip(rows, is_region, strict=True))
    of_classes = {row["name"] for row, region in pairs if not region}
    return tuple(
        row | {"name": f"{row['name']} (region)"} if region and row["name"] in of_classes else row
        for row, region in pairs
    )


def pairs_at_equal_compute(plan: Plan, out: Path) -> list[tuple[str, str]]:
    """Each method with its from-scratch twin at equal compute."""
    return [(arm.name, arm.equal) for arm in list_arms(plan, load_facts(out)) if arm.equal]


def pairs_in_2d(plan: Plan, out: Path) -> list[tuple[str, str]]:
    """Each method with the same on slices; after them, their from-scratch twins likewise."""
    arms = {arm.name: arm for arm in list_arms(plan, load_facts(out))}
    methods: list[tuple[str, str]] = []
    twins: list[tuple[str | None, str | None]] = []
    for method in plan.trained_methods:
        arm = arms.get(method.name)
        arm_2d = arms.get(f"2D-{method.name}")
        if arm is not None and arm_2d is not None:
            methods.append((arm.name, arm_2d.name))
            twins += [(arm.twin, arm_2d.twin), (arm.equal, arm_2d.equal)]
    pairs = [(twin, twin_2d) for twin, twin_2d in twins if twin and twin_2d]
    # methods may share a twin
    return methods + list(dict.fromkeys(pairs))


def pairs_against(plan: Plan, out: Path, reference: str) -> list[tuple[str, str]]:
    """Every arm with one that the plan compares all with."""
    names = [arm.name for arm in list_arms(plan, load_facts(out))]
    return [(name, reference) for name in names if name != reference]


def missing_cells(plan: Plan, out: Path) -> tuple[list[str], int]:
    """The cells of the plan that are not done, failed ones with the reason; and how many it has."""
    cells = list_cells(plan, load_facts(out))
    missing = []
    for cell in cells:
        if not (out / cell.folder / "done.json").exists():
            reason = failure_of(out / cell.folder)
            missing.append(f"{cell}: failed ({reason})" if reason else str(cell))
    return missing, len(cells)


def _subjects(out: Path) -> dict[str, str]:
    """The subject of each case; empty where the store was not kept."""
    store = out / "store"
    return {case.id: case.subject for case in open_store(store).cases} if is_store(store) else {}
