"""The page of predictions: a table of cases, the least trusted first, and what the viewer shows."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfvox.data.preparation.store import hash_texts
from selfvox.ops.metrics import dice_per_class, volume_ml
from selfvox.plotting import class_colour
from selfvox.prediction.output_folder import CLASS_TABLE
from selfvox.prediction.read_predictions import (
    has_region_probabilities,
    read_class_names,
    read_region_classes,
)
from selfvox.prediction.review_marks import MARKS_TABLE, read_marks
from selfvox.reports.bundle import Bundle
from selfvox.reports.charts import points_of
from selfvox.reports.known_truth import KnownTruth
from selfvox.reports.mosaic import draw_mosaic, jpeg_bytes
from selfvox.reports.page import Page, number
from selfvox.reports.predicted_cases import (
    PredictedCase,
    is_picture,
    list_cases,
    scans_folder,
)
from selfvox.reports.viewer_case import CaseWriter, ReadCase, read_case
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import Report


@dataclasses.dataclass
class CaseRow:
    """A row of the table, in words and numbers."""

    key: str  # of its data
    id: str
    trust: float | None
    predicted_dice: float | None
    entropy: float | None
    parts: Mapping[str, Mapping[str, Any]]  # by name of the class or region
    dice: Mapping[str, float]  # by name of the class, where the truth is known
    answer: str  # the class of the whole scan; empty where it is segmented
    probability: float | None  # of that class
    grade: str  # the true class; empty where it is not known
    flags: Sequence[str]
    picture: str | None
    alt: str


def predictions_page(name: str, folder: Path, settings: Report, bundle: Bundle) -> Page:
    """The page of a folder of predictions; writes its data and pictures.

    Args:
        name: of the page, which its data are called after.
        folder: of the predictions.
        settings: of the verb.
        bundle: of the report.
    """
    cases = list_cases(folder, settings)
    classes = read_class_names(folder) or {}
    map_parts = _map_parts(folder, classes)
    is_classification = (folder / CLASS_TABLE).is_file()
    regions = read_region_classes(folder) if has_region_probabilities(folder) else None
    rows = []
    shown = []
    known = KnownTruth()
    with progress_bar("report", len(cases), 0) as bar:
        for place, case in enumerate(cases, start=1):
            key = f"{name}/{place:04}"
            voxels = read_case(case)
            row = _row(key, voxels, classes, bundle)
            rows.append(row)
            known.add(case.id, row.dice, row.trust, row.predicted_dice)
            if case.label is not None and case.truth is not None:
                known.add_probabilities(case.label, case.truth, sorted(classes), regions)
            largest = max(classes, default=0)
            writer = CaseWriter(key, voxels, largest, map_parts, classes.get(0), bundle)
            shown.append(writer.write())
            bar.advance()
    part_names = list(dict.fromkeys(part for row in rows for part in row.parts))
    marks = _earlier_marks(folder)
    charts = known.charts()
    unit = next((part["unit"] for row in rows for part in row.parts.values()), "ml")
    context = {
        "rows": rows,
        "part_names": part_names,
        "unit": unit,
        "has_trust": any(row.trust is not None for row in rows),
        "has_predicted_dice": any(row.predicted_dice is not None for row in rows),
        "has_truth": any(row.dice for row in rows),
        "mean_dice": known.dice,
        "has_answer": any(row.answer for row in rows),
        "has_grade": any(row.grade for row in rows),
        "right": sum(row.answer == row.grade for row in rows if row.grade),
        "graded": sum(bool(row.grade) for row in rows),
        "scores": _summarise(rows),
        "findings": known.findings(),
        "charts": charts,
        "points": points_of(charts),
        "colours": {
            name: class_colour(value)
            for value, name in classes.items()
            if value and not is_classification
        },
        "review": {
            "id": _fingerprint(cases),
            "classes": {str(value): text for value, text in classes.items()},
            "colours": {str(value): class_colour(value) for value in classes if value},
            "cases": shown,
            "marks": marks,
            "folders": {
                "scans": _shown_folder(scans_folder(cases)),
                "predictions": _shown_folder(folder),
            },
        },
    }
    folder_name = folder.resolve().name
    title = "Predictions" if folder_name == "predictions" else f"Predictions {folder_name}"
    return Page(name, title, "predictions", context)


def _row(key: str, voxels: ReadCase, classes: Mapping[int, str], bundle: Bundle) -> CaseRow:
    """The row of a case; draws its mosaic."""
    case = voxels.case
    parts = _parts(voxels, classes)
    answer = case.record.get("answer", {})
    grade = None if case.scan is None else case.scan.grade
    picture = None
    if voxels.image is not None:
        pixels = draw_mosaic(voxels.image, voxels.label, voxels.truth)
        picture = bundle.add_picture(key, jpeg_bytes(pixels))
    return CaseRow(
        key=key,
        id=case.id,
        trust=case.review.get("trust"),
        predicted_dice=case.review.get("predicted dice"),
        entropy=case.review.get("entropy"),
        parts=parts,
        dice=_dice(voxels, classes),
        answer=_class_name(answer["class"], classes) if answer else "",
        probability=max(answer["probabilities"]) if answer else None,
        grade="" if grade is None else _class_name(grade, classes),
        flags=[*_flags(case), *voxels.problems],
        picture=picture,
        alt=_alt(voxels, parts, classes),
    )


def _parts(voxels: ReadCase, classes: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """Volume of each class and region, with its interval or the spread of the passes."""
    review = voxels.case.review
    flat = is_picture(voxels.case)
    unit = "px" if flat else "ml"
    names = [name.removesuffix(f" {unit}") for name in review if name.endswith(f" {unit}")]
    parts: dict[str, dict[str, Any]] = {}
    for name in names:
        kind = "interval" if f"{name} low" in review else "spread"
        prefix = name if kind == "interval" else f"{name} spread"
        parts[name] = {
            "value": review[f"{name} {unit}"],
            "low": review.get(f"{prefix} low"),
            "high": review.get(f"{prefix} high"),
            "kind": kind,
            "unit": unit,
        }
    if parts or voxels.label is None or voxels.image is None:
        return parts
    for value, name in classes.items():
        if value == 0:
            continue
        mask = voxels.label == value
        size = float(mask.sum()) if flat else volume_ml(mask, voxels.image.spacing_mm)
        parts[name] = {"value": size, "low": None, "high": None, "unit": unit}
    return parts


def _dice(voxels: ReadCase, classes: Mapping[int, str]) -> dict[str, float]:
    """Of each class, where the truth is known."""
    if voxels.label is None or voxels.truth is None:
        return {}
    scores = dice_per_class(voxels.label, voxels.truth, max(classes, default=0) + 1)
    return {name: scores[value - 1] for value, name in classes.items() if value}


def _flags(case: PredictedCase) -> list[str]:
    flags = list(case.record.get("notes", ()))
    if case.record.get("trained_on"):
        flags.append("trained the network")
    if case.is_corrected:
        flags.append("corrected by hand")
    return flags


def _class_name(value: str | int, classes: Mapping[int, str]) -> str:
    """Of the class of a whole scan."""
    return classes.get(int(value), str(value))


def _alt(
    voxels: ReadCase, parts: Mapping[str, Mapping[str, Any]], classes: Mapping[int, str]
) -> str:
    answer = voxels.case.record.get("answer")
    if answer:
        return f"The scan {voxels.case.id}, predicted as {_class_name(answer['class'], classes)}"
    sizes = [f"{name} {number(part['value'])} {part['unit']}" for name, part in parts.items()]
    truth = "; the dotted outlines are the truth" if voxels.truth is not None else ""
    return f"Slices of {voxels.case.id} with outlines: {', '.join(sizes) or 'no classes'}{truth}"


def _map_parts(folder: Path, classes: Mapping[int, str]) -> list[str]:
    """The names of the classes and regions that maps are of, in the order of their layers."""
    regions = list(read_region_classes(folder) or {})
    if has_region_probabilities(folder):
        return regions
    return [*(classes[value] for value in sorted(classes)), *regions]


def _summarise(rows: Sequence[CaseRow]) -> list[dict[str, Any]]:
    """Mean and spread of the Dice of each class, over the cases with a truth."""
    names = list(dict.fromkeys(name for row in rows for name in row.dice))
    summary = []
    for name in names:
        values = [row.dice[name] for row in rows if name in row.dice]
        values = [value for value in values if not math.isnan(value)]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            summary.append(
                {"name": name, "mean": statistics.fmean(values), "sd": spread, "cases": len(values)}
            )
    return summary


def _earlier_marks(folder: Path) -> dict[str, dict[str, str]]:
    """Marks that somebody put into the folder of the predictions, to go on from."""
    path = folder / MARKS_TABLE
    if not path.exists():
        return {}
    marks = read_marks(path)
    echo(f"{path}: {len(marks)} marks are shown, and can be changed")
    return {case: dataclasses.asdict(mark) for case, mark in marks.items()}


def _fingerprint(cases: Sequence[PredictedCase]) -> str:
    """By which a browser finds the marks again: the same for the same predictions."""
    texts = [f"{case.id} {sorted(case.record.get('files', {}).items())}" for case in cases]
    return hash_texts(*sorted(texts))[:16]


def _shown_folder(folder: Path | None) -> str | None:
    """A folder as it was named, unless that reveals where a person keeps files."""
    if folder is None or folder.is_absolute() or ".." in folder.parts:
        return None
    return str(folder)
