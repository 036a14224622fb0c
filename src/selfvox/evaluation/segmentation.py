"""Scores of predicted segmentations, per case and class."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfvox.data.formats import image as images
from selfvox.data.formats import strict_json
from selfvox.data.naming import natural_key, printable
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError
from selfvox.ops.metrics import dice_per_class, surface_distances, volume_ml
from selfvox.ops.regions import Regions, regions_from_json
from selfvox.prediction import output_folder
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import Evaluate

_ENDING = re.compile(r"[-_](?:seg|label|mask)$", re.IGNORECASE)
EMPTY_RULE = (
    "A class or region that neither holds has Dice 1, one that only one holds has 0; its surface distances are not "
    "defined."
)


# pairing


def _truths(
    root: Path, source: str, predictions: Mapping[str, Path]
) -> tuple[dict[str, Path], dict[int, str] | None, Regions | None]:
    """Files of true labels by case id, the classes' names and regions: a data set's, or just the files in a folder."""
    try:
        dataset = find_dataset(root, source)
    except DataError:
        # files that are all called labels, with no scan beside them
        if not root.is_dir() or source != "auto":
            raise
        return _named_like(output_folder.label_files(root), predictions), None, None
    labelled = {case.id: case.label for case in dataset.cases if case.label is not None}
    if labelled:
        return labelled, dataset.classes, dataset.regions
    if root.is_dir():
        return _named_like(output_folder.label_files(root), predictions), None, None
    raise DataError(f"{root}: holds no labels; name a folder of labels, or a data set with labels")


def _named_like(files: Mapping[str, Path], predictions: Mapping[str, Path]) -> dict[str, Path]:
    """`ann_seg` is the truth of `ann`, unless a prediction is called `ann_seg` itself."""
    return {
        name if name in predictions else _ENDING.sub("", name): path for name, path in files.items()
    }


def _names(predictions: Path) -> dict[int, str] | None:
    """The classes' names that `predict` wrote beside its labels."""
    file = predictions / "classes.json"
    if not file.exists():
        return None
    written = strict_json.read_json(file)
    numbers = isinstance(written, dict) and all(
        key.isascii() and key.isdecimal() and len(key) < 6 for key in written
    )
    if not numbers or not all(isinstance(name, str) for name in written.values()):
        raise DataError(
            f'{file}: is not {{"0": "background", "1": name, ...}}; correct or remove it'
        )
    return {int(key): name for key, name in written.items()}


def _regions(predictions: Path) -> Regions | None:
    """The regions that `predict` wrote beside its labels."""
    file = predictions / "regions.json"
    try:
        return regions_from_json(strict_json.read_json(file)) if file.exists() else None
    except ValueError:
        raise DataError(f'{file}: is not {{"NAME": [1, 2], ...}}; correct or remove it') from None


def _pairs(
    predictions: Mapping[str, Path], truths: Mapping[str, Path], settings: Evaluate
) -> dict[str, tuple[Path, Path]]:
    both = sorted(predictions.keys() & truths.keys(), key=natural_key)
    if not both:
        one, other = min(predictions, key=natural_key), min(truths, key=natural_key)
        raise DataError(
            f"{settings.predictions}: no prediction is called like a truth in {settings.truth} "
            f"(such as {printable(one)} and {printable(other)}); give both the same names"
        )
    for what, alone in (
        ("predictions have no truth", predictions.keys() - truths.keys()),
        ("truths have no prediction", truths.keys() - predictions.keys()),
    ):
        if alone:
            echo(f"{len(alone)} {what} and are left out: {_listed(alone)}")
    return {name: (predictions[name], truths[name]) for name in both}


def _listed(names: Iterable[str]) -> str:
    first = [printable(name) for name in sorted(names, key=natural_key)]
    return ", ".join(first[:10]) + (f" and {len(first) - 10} more" if len(first) > 10 else "")


# scoring


def _score_all(
    pairs: Mapping[str, tuple[Path, Path]], named: Mapping[int, str] | None, regions: Regions
) -> tuple[list[dict[str, Any]], int]:
    """The rows, and how many pairs could not be compared.

    Every case has a row for each class met anywhere, and then for each region.
    """
    scored: dict[str, tuple[int, dict[int | str, dict[str, Any]]]] = {}
    with progress_bar("evaluate", len(pairs)) as bar:
        for name, (prediction, truth) in pairs.items():
            try:
                scored[name] = _score(prediction, truth, named, regions)
            except DataError as error:
                echo(str(error))
            bar.advance()
    met = {value for _, found in scored.values() for value in found if isinstance(value, int)}
    names = dict(named) if named else {value: f"class {value}" for value in met}
    rows = []
    for name, (spatial_dims, found) in scored.items():
        empty = _measured(spatial_dims, 1.0, (math.nan, math.nan), 0.0, 0.0)
        parts: list[tuple[int | str, int | str, str]] = [
            (v, v, names[v]) for v in sorted(names) if v != 0
        ]
        parts += [
            (region, "+".join(map(str, values)), region) for region, values in regions.items()
        ]
        rows += [
            {"case": name, "class": of, "name": called, **found.get(key, empty)}
            for key, of, called in parts
        ]
    return rows, len(pairs) - len(scored)


def _score(
    prediction: Path, truth: Path, named: Mapping[int, str] | None, regions: Regions
) -> tuple[int, dict[int | str, dict[str, Any]]]:
    """The scan's number of axes, and the scores of the classes and regions that prediction or truth holds."""
    grid = images.read_grid(prediction)
    one, other = (images.read_label(path, grid, named) for path in (prediction, truth))
    there = np.flatnonzero(
        np.bincount(one.ravel(), minlength=2**16) + np.bincount(other.ravel(), minlength=2**16)
    )
    parts: dict[int | str, tuple[int, ...]] = {
        int(value): (int(value),) for value in there if value != 0
    }
    parts |= {name: values for name, values in regions.items() if set(values) & parts.keys()}
    found = {}
    for key, values in parts.items():
        p, t = (np.isin(label, values) for label in (one, other))
        distances = surface_distances(p, t, grid.spacing_mm)
        volumes = [volume_ml(mask, grid.spacing_mm) for mask in (p, t)]
        if grid.spatial_dims == 2:
            volumes = [float(np.count_nonzero(mask)) for mask in (p, t)]
        dice = dice_per_class(p.astype(np.uint8), t.astype(np.uint8), 2)[0]
        found[key] = _measured(grid.spatial_dims, dice, distances, *volumes)
    return grid.spatial_dims, found


def _measured(
    spatial_dims: int, dice: float, distances: tuple[float, float], predicted: float, true: float
) -> dict[str, Any]:
    length, content = ("mm", "volume_ml") if spatial_dims == 3 else ("px", "area_px")
    return {
        "dice": dice,
        f"hd95_{length}": distances[0],
        f"surface_distance_{length}": distances[1],
        f"predicted_{content}": predicted,
        f"true_{content}": true,
    }


# showing


def _show(rows: Sequence[Mapping[str, Any]], cases: int) -> None:
    """Mean, spread and median of each score of each class and region, and of the cases' means over their classes."""
    scores = [
        name for name in rows[0] if name == "dice" or name.startswith(("hd95", "surface_distance"))
    ]
    table = Table(title=f"{cases} cases", title_justify="left", box=SIMPLE)
    for heading in ("class", "score", "mean ± sd", "median", "cases"):
        table.add_column(heading, justify="left" if heading in ("class", "score") else "right")
    groups: dict[tuple[int | str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["class"], row["name"]), []).append(row)
    for group in groups.values():
        _add(
            table,
            printable(group[0]["name"]),
            {score: [row[score] for row in group] for score in scores},
        )
    of_classes = [group for (of, _), group in groups.items() if isinstance(of, int)]
    of_regions = [group for (of, _), group in groups.items() if not isinstance(of, int)]
    for name, several in (("mean of classes", of_classes), ("mean of regions", of_regions)):
        if len(several) > 1:
            by_case = list(zip(*several, strict=True))
            means = {
                score: [_mean([row[score] for row in case]) for case in by_case] for score in scores
            }
            _add(table, name, means)
    console = Console(highlight=False)
    console.print(table)
    console.print(EMPTY_RULE, soft_wrap=True)


def _add(table: Table, name: str, scores: Mapping[str, Sequence[float]]) -> None:
    for score, values in scores.items():
        known = [value for value in values if not math.isnan(value)]
        mean = f"{statistics.fmean(known):.3f}" if known else "-"
        spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
        median = f"{statistics.median(known):.3f}" if known else "-"
        # Text: a name in brackets is no style
        table.add_row(
            Text(name),
            score.replace("_", " "),
            mean + spread,
            median,
            f"{len(known)} of {len(values)}",
        )
        name = ""
    table.add_section()


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan
