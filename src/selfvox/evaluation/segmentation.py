"""Scores of predicted segmentations, per case and class or region, and their summary."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfvox.data.formats import image as images
from selfvox.data.naming import printable
from selfvox.errors import DataError
from selfvox.evaluation.pairs import LabelPair
from selfvox.ops.metrics import dice_per_class, nan_mean, surface_distances, volume_ml
from selfvox.ops.regions import Regions
from selfvox.runs.progress import echo, progress_bar

EMPTY_RULE = (
    "A class or region that is in neither label has Dice 1, one that is in one of them has 0; "
    "its surface distances are not defined."
)

Row = dict[str, Any]  # of the table of scores: case, class, name, and the column of each score


@dataclass(frozen=True)
class MaskPair:
    """The predicted and the true mask (*space) of one class or region."""

    predicted: np.ndarray
    true: np.ndarray
    spacing_mm: Sequence[float]  # edges of a voxel; 1 for pictures

    @property
    def dice(self) -> float:
        """1 where both are empty, 0 where one is."""
        as_classes = (self.predicted.astype(np.uint8), self.true.astype(np.uint8))
        return dice_per_class(*as_classes, 2)[0]

    @functools.cached_property
    def distances(self) -> tuple[float, float]:
        """HD95 and mean surface distance in mm, computed together; nan where a mask is empty."""
        return surface_distances(self.predicted, self.true, self.spacing_mm)

    def content(self, mask: np.ndarray) -> float:
        """Volume of a mask in ml; in a picture, number of pixels, which have no known size."""
        if len(self.spacing_mm) == 2:
            return float(np.count_nonzero(mask))
        return volume_ml(mask, self.spacing_mm)


@dataclass(frozen=True)
class Score:
    """A score of a mask.

    Args:
        columns: its column, with the unit, by number of spatial axes.
        compute: the score of a pair of masks.
        empty: the score where neither label has the class or region.
        is_summarised: whether the printed summary has it.
    """

    columns: Mapping[int, str]
    compute: Callable[[MaskPair], float]
    empty: float
    is_summarised: bool = True


SCORES = (
    Score({3: "dice", 2: "dice"}, lambda pair: pair.dice, empty=1.0),
    Score({3: "hd95_mm", 2: "hd95_px"}, lambda pair: pair.distances[0], empty=math.nan),
    Score(
        {3: "surface_distance_mm", 2: "surface_distance_px"},
        lambda pair: pair.distances[1],
        empty=math.nan,
    ),
    Score(
        {3: "predicted_volume_ml", 2: "predicted_area_px"},
        lambda pair: pair.content(pair.predicted),
        empty=0.0,
        is_summarised=False,
    ),
    Score(
        {3: "true_volume_ml", 2: "true_area_px"},
        lambda pair: pair.content(pair.true),
        empty=0.0,
        is_summarised=False,
    ),
)


@dataclass(frozen=True)
class _CaseScores:
    """The scores of the classes and regions that a case has."""

    spatial_dims: int
    of_class: Mapping[int, Row]  # scores by column
    of_region: Mapping[str, Row]


def score_pairs(
    pairs: Mapping[str, LabelPair], class_names: Mapping[int, str] | None, regions: Regions
) -> tuple[list[Row], int]:
    """The rows of the table, and how many pairs could not be compared, which is printed.

    Every case has a row for each class that any case has, and then for each region.
    """
    scored: dict[str, _CaseScores] = {}
    # a case that cannot be compared is printed, and the others are still scored
    with progress_bar("evaluate", len(pairs)) as bar:
        for case, pair in pairs.items():
            try:
                scored[case] = _score_case(pair, class_names, regions)
            except DataError as error:
                echo(str(error))
            bar.advance()
    names = class_names
    if not names:
        # without names, the numbers that occur in any case
        present = {value for scores in scored.values() for value in scores.of_class}
        names = {value: f"class {value}" for value in present}
    rows: list[Row] = []
    for case, scores in scored.items():
        empty = _empty_scores(scores.spatial_dims)
        for value in sorted(names):
            if value != 0:
                row = {"case": case, "class": value, "name": names[value]}
                rows.append({**row, **scores.of_class.get(value, empty)})
        for region, values in regions.items():
            row = {"case": case, "class": "+".join(map(str, values)), "name": region}
            rows.append({**row, **scores.of_region.get(region, empty)})
    return rows, len(pairs) - len(scored)


def _score_case(
    pair: LabelPair, class_names: Mapping[int, str] | None, regions: Regions
) -> _CaseScores:
    """The scores of the classes and regions that the prediction or the truth has.

    Raises:
        DataError: a label cannot be read, or the truth is on another grid.
    """
    grid = images.read_grid(pair.prediction)
    # the truth has to be on the grid of the prediction: scores compare voxels
    predicted = images.read_label(pair.prediction, grid, class_names)
    true = images.read_label(pair.truth, grid, class_names)
    present = (_values(predicted) | _values(true)) - {0}

    def scores(values: Sequence[int]) -> Row:
        masks = MaskPair(np.isin(predicted, values), np.isin(true, values), grid.spacing_mm)
        return {score.columns[grid.spatial_dims]: score.compute(masks) for score in SCORES}

    return _CaseScores(
        spatial_dims=grid.spatial_dims,
        of_class={value: scores([value]) for value in sorted(present)},
        of_region={
            name: scores(values) for name, values in regions.items() if present & set(values)
        },
    )


def _values(label: np.ndarray) -> set[int]:
    """The class numbers that occur; counting is faster than the sorting of `numpy.unique`."""
    return {int(value) for value in np.flatnonzero(np.bincount(label.ravel()))}


def _empty_scores(spatial_dims: int) -> Row:
    """The scores of a class or region that neither label has."""
    return {score.columns[spatial_dims]: score.empty for score in SCORES}


def mean_dice(rows: Sequence[Row], of_regions: bool) -> dict[str, float]:
    """Mean Dice of each case, over its classes or over its regions; nan without any."""
    values: dict[str, list[float]] = {row["case"]: [] for row in rows}
    for row in rows:
        if _is_of_region(row) == of_regions:
            values[row["case"]].append(row["dice"])
    return {case: nan_mean(dice) for case, dice in values.items()}


def print_summary(rows: Sequence[Row], cases: int) -> None:
    """Print mean, spread and median of each score, by class, by region and over both."""
    columns = [
        column
        for score in SCORES
        for column in score.columns.values()
        if score.is_summarised and column in rows[0]
    ]
    columns = list(dict.fromkeys(columns))
    table = Table(title=f"{cases} cases", title_justify="left", box=SIMPLE)
    for heading in ("class", "score", "mean ± sd", "median", "cases"):
        table.add_column(heading, justify="left" if heading in ("class", "score") else "right")
    groups: dict[tuple[int | str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["class"], row["name"]), []).append(row)
    for (_, name), group in groups.items():
        values = {column: [row[column] for row in group] for column in columns}
        _add_section(table, printable(name), values)
    for name, of_regions in (("mean of classes", False), ("mean of regions", True)):
        several = [group for group in groups.values() if _is_of_region(group[0]) == of_regions]
        if len(several) > 1:
            _add_section(table, name, _means_over_groups(several, columns))
    console = Console(highlight=False)
    console.print(table)
    console.print(EMPTY_RULE, soft_wrap=True)


def _is_of_region(row: Row) -> bool:
    """Whether a row is of a region: its class is text like `1+4`."""
    return not isinstance(row["class"], int)


def _means_over_groups(
    groups: Sequence[Sequence[Row]], columns: Sequence[str]
) -> dict[str, list[float]]:
    """Mean of each score over classes or regions, for each case; each group has all cases."""
    by_case = list(zip(*groups, strict=True))
    return {
        column: [nan_mean(row[column] for row in rows) for rows in by_case] for column in columns
    }


def _add_section(table: Table, name: str, scores: Mapping[str, Sequence[float]]) -> None:
    """Add the rows of one class or region; its name is in the first."""
    for column, values in scores.items():
        defined = [value for value in values if not math.isnan(value)]
        mean = f"{statistics.fmean(defined):.3f}" if defined else "-"
        spread = f" ± {statistics.stdev(defined):.3f}" if len(defined) > 1 else ""
        median = f"{statistics.median(defined):.3f}" if defined else "-"
        counts = f"{len(defined)} of {len(values)}"
        # Text: rich would take a name in brackets for a style
        table.add_row(Text(name), column.replace("_", " "), mean + spread, median, counts)
        name = ""
    table.add_section()
