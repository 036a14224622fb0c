"""The verb `evaluate`: predictions against the truth."""

from __future__ import annotations

import math
from typing import Any

from selfvox.errors import DataError, UsageError
from selfvox.evaluation import calibration, classification
from selfvox.evaluation.segmentation import (
    _mean,
    _names,
    _pairs,
    _regions,
    _score_all,
    _show,
    _truths,
)
from selfvox.ops.regions import parse_regions
from selfvox.prediction import output_folder
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Evaluate


def evaluate(settings: Evaluate) -> list[dict[str, Any]]:
    """Score predictions against the truth.

    Returns:
        One row per case and foreground class, and one per case and region, whose class is like "1+4":
        case, class, name, dice, and in 3D hd95_mm, surface_distance_mm, predicted_volume_ml, true_volume_ml; in 2D,
        where pixels have no known size, hd95_px, surface_distance_px, predicted_area_px, true_area_px. Distances are
        nan where a mask is empty. Of classified scans, one row per score: score, class, value.

    Raises:
        DataError: nothing can be compared, or at least one pair could not; the others were.
        UsageError: `out` is no .csv.
    """
    out = settings.out
    if out is not None and (out.suffix.lower() != ".csv" or out.is_dir()):
        raise UsageError(f"{out}: is no name for a table; end it in .csv")
    if (settings.predictions / output_folder.CLASS_TABLE).is_file():
        if settings.regions is not None:
            raise UsageError(
                f"regions: {settings.predictions} holds classes of whole scans; leave --regions out"
            )
        return classification.evaluate_classes(settings)
    predictions = output_folder.label_files(settings.predictions)
    asked = parse_regions(settings.regions) if settings.regions is not None else None
    truths, named, declared = _truths(settings.truth, settings.source, predictions)
    named = _names(settings.predictions) or named
    regions = asked or _regions(settings.predictions) or declared or {}
    pairs = _pairs(predictions, truths, settings)
    rows, failed = _score_all(pairs, named, regions)
    if rows:
        _show(rows, len(pairs) - failed)
    if rows and out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(out, list(rows[0]), (row.values() for row in rows))
        echo(f"scores: {out}")
    if rows and named:
        of_regions = (
            _regions(settings.predictions)
            if output_folder.has_region_probabilities(settings.predictions)
            else None
        )
        # as trust is: over the classes, which regions would count again, or over the regions it was trained on
        counted = [row for row in rows if isinstance(row["class"], int) == (of_regions is None)]
        dice = {
            name: _mean([row["dice"] for row in counted if row["case"] == name]) for name in pairs
        }
        scored = {name: both for name, both in pairs.items() if not math.isnan(dice[name])}
        # the trust in other regions than those that were scored says nothing of these
        known = dice if of_regions is None or regions == of_regions else {}
        calibration.report_calibration(
            settings.predictions, scored, sorted(named), known, out, of_regions
        )
    if failed:
        raise DataError(
            f"{settings.predictions}: {failed} of {len(pairs)} cases could not be scored; correct the files named above"
        )
    return rows
