"""The verb `evaluate`: predictions against the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfvox.errors import DataError, UsageError
from selfvox.evaluation.calibration import report_calibration
from selfvox.evaluation.certainty import report_certainty
from selfvox.evaluation.classification import evaluate_classes
from selfvox.evaluation.pairs import LabelPair, find_truth, pair_cases
from selfvox.evaluation.regression import evaluate_targets, has_targets
from selfvox.evaluation.segmentation import Row, mean_dice, print_summary, score_pairs
from selfvox.ops.regions import Regions, check_region_names, parse_regions
from selfvox.prediction import output_folder, read_predictions
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Evaluate


def evaluate(settings: Evaluate) -> list[dict[str, Any]]:
    """Score predictions against the truth.

    Returns:
        One row per case and foreground class, and one per case and region, with a class like "1+4":
        case, class, name, dice, and in 3D hd95_mm, surface_distance_mm, predicted_volume_ml,
        true_volume_ml; in 2D, where pixels have no known size, hd95_px, surface_distance_px,
        predicted_area_px, true_area_px. Distances are nan where a mask is empty. Of classified
        scans, one row per score: score, class, value. Of predicted numbers, one row per score:
        score, value, low, high, the ends of its 95 % interval.

    Raises:
        DataError: nothing can be compared, or at least one pair could not; the others were.
        UsageError: `out` is no .csv.
    """
    out = settings.out
    if out is not None and (out.suffix.lower() != ".csv" or out.is_dir()):
        raise UsageError(f"{out}: is no name for a table; end it in .csv")
    if has_targets(settings.predictions):
        if settings.regions is not None:
            raise UsageError(
                f"regions: {settings.predictions} has numbers of whole scans; leave --regions out"
            )
        return evaluate_targets(settings)
    if not (settings.predictions / output_folder.CLASS_TABLE).is_file():
        return _evaluate_segmentations(settings)
    if settings.regions is not None:
        raise UsageError(
            f"regions: {settings.predictions} has classes of whole scans; leave --regions out"
        )
    return evaluate_classes(settings)


def _evaluate_segmentations(settings: Evaluate) -> list[Row]:
    folder = settings.predictions
    predictions = read_predictions.label_files(folder)
    requested = parse_regions(settings.regions) if settings.regions is not None else None
    truth = find_truth(settings.truth, settings.source)
    class_names = read_predictions.read_class_names(folder) or truth.class_names
    # the option, else what the network was trained with, else what the data set declares
    regions = requested or read_predictions.read_region_classes(folder) or truth.regions or {}
    check_region_names(regions, class_names or {})
    pairs = pair_cases(predictions, truth.labels, folder, settings.truth)
    read_predictions.warn_of_trained_scans(folder, pairs)
    rows, failed = score_pairs(pairs, class_names, regions)
    if not rows and not failed:
        raise DataError(
            f"{folder}: neither predictions nor truth have a class above 0, and no class is "
            "declared, so that nothing can be scored; correct the labels, or declare the classes"
        )
    if rows:
        print_summary(rows, len(pairs) - failed)
        if settings.out is not None:
            _write_rows(settings.out, rows)
        report_certainty(folder, rows, regions)
        if class_names:
            _calibrate(settings, pairs, class_names, regions, rows)
    if failed:
        raise DataError(
            f"{folder}: {failed} of {len(pairs)} cases could not be scored; "
            "correct the files named above"
        )
    return rows


def _write_rows(out: Path, rows: list[Row]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(out, list(rows[0]), (row.values() for row in rows))
    echo(f"scores: {out}")


def _calibrate(
    settings: Evaluate,
    pairs: Mapping[str, LabelPair],
    class_names: Mapping[int, str],
    regions: Regions,
    rows: list[Row],
) -> None:
    """Compare probabilities and trust with the truth, where `predict` wrote them."""
    folder = settings.predictions
    trained_regions = None
    if read_predictions.has_region_probabilities(folder):
        trained_regions = read_predictions.read_region_classes(folder)
    # trust is a mean over the regions that a network was trained on, or over the classes
    dice = mean_dice(rows, of_regions=trained_regions is not None)
    scored = {
        case: pair for case, pair in pairs.items() if not math.isnan(dice.get(case, math.nan))
    }
    comparable = dice
    if trained_regions is not None and regions != trained_regions:
        # other regions were scored than the trust is about
        comparable = {}
    report_calibration(
        folder, scored, sorted(class_names), comparable, settings.out, trained_regions
    )
