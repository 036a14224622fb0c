"""The verb `correct`: corrected predictions become labelled scans to train on again."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfvox.data.formats.image import Image, write_label, write_volume
from selfvox.data.naming import natural_key, printable
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.data.sources._channel_table import CHANNEL_TABLE
from selfvox.data.sources._class_table import CLASS_TABLE
from selfvox.errors import DataError, UsageError
from selfvox.prediction.case_ledger import LEDGER, CaseRecord
from selfvox.prediction.corrections import CORRECTED, Correction, CorrectionFinder
from selfvox.prediction.output_folder import CARD
from selfvox.prediction.predicted_scans import (
    find_predicted_scans,
    predict_settings,
    scans_by_case,
    tested_subjects,
)
from selfvox.prediction.read_predictions import label_files, read_class_names
from selfvox.prediction.review_marks import MARKS_TABLE, Mark, read_marks
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.ledger import read_records
from selfvox.runs.progress import echo, progress_bar
from selfvox.runs.typed_json import read_checked, write_checked
from selfvox.settings.verbs import Correct

TABLE = "labelled.csv"
PROVENANCE = "corrections.json"
SERIES = "dicom_series"  # a folder
REJECTED = "rejected.csv"
FORMAT = 1

Row = dict[str, Any]


def correct(settings: Correct) -> Path:
    """Check the corrected labels, and write them, and a table of all labelled scans.

    Returns:
        The table.

    Raises:
        UsageError: `out` has corrections already.
        DataError: nothing was corrected, or at least one label cannot be used; the others are in
            the table.
    """
    if (settings.out / TABLE).exists():
        raise UsageError(f"{settings.out}: contains corrections already; name another --out")
    records = _records(settings.predictions)
    dataset, cases = _predicted_cases(settings, records)
    card = read_checked(settings.predictions / CARD)
    classes = read_class_names(settings.predictions)
    if classes is None:
        raise DataError(
            f"{settings.predictions}: has no classes.json; name a folder of segmentations that "
            "`predict` wrote"
        )
    finder = CorrectionFinder(
        label_files(settings.predictions),
        records,
        {} if settings.corrections is None else label_files(settings.corrections),
        _marks(settings.predictions),
        classes,
        len(dataset.channel_names),
        settings.passed,
    )
    tested = tested_subjects(settings.predictions)
    # refused before a label is written
    labelled = _labelled_rows(settings, dataset)
    rows: list[Row] = []
    rejected: list[tuple[str, str]] = []
    provenance: list[Row] = []
    with progress_bar("correct", len(cases)) as bar:
        for name, case in cases.items():
            try:
                correction = finder.find(name, case)
                if correction is not None:
                    _check_trainable(case, tested)
                    label = _write_label(settings.out, name, case, correction)
                    scan = _in_table(settings.out, name, case, correction.image)
                    rows.append(_row(scan, label, correction.origin, dataset.channel_names))
                    provenance.append(_record(name, case, correction, finder.marks.get(name)))
            except DataError as error:
                rejected.append((name, str(error)))
                echo(f"{printable(name)}: {error}")
            bar.advance()
    if not rows and not rejected:
        raise DataError(
            f"{settings.predictions}: no label was changed since it was predicted; correct some "
            "there, or name a folder of corrected ones by --corrections"
        )
    if rows:
        count = len(rows)
        rows = [*_without_replaced(labelled, rows), *rows]
        _write(settings.out, rows, classes, dataset.channel_names)
        facts = {"format": FORMAT, "network_sha256": card["network_sha256"], "cases": provenance}
        write_checked(settings.out / PROVENANCE, facts)
        _summarise(settings, rows, count, provenance)
    if rejected:
        settings.out.mkdir(parents=True, exist_ok=True)
        write_csv(settings.out / REJECTED, ["case", "reason"], rejected)
        raise DataError(
            f"{settings.out}: {len(rejected)} corrected labels cannot be used, see {REJECTED} there"
        )
    return settings.out / TABLE


def _records(folder: Path) -> dict[str, CaseRecord]:
    """What `predict` recorded of each case; of several records, the last."""
    if not (folder / CARD).exists():
        raise DataError(f"{folder}: has no {CARD}; name a folder that `predict` wrote")
    return {
        record["id"]: CaseRecord(
            record["id"], record["scan"], record["files"], file=record.get("file")
        )
        for record in read_records(folder / LEDGER, CaseRecord)
    }


def _predicted_cases(
    settings: Correct, records: Mapping[str, CaseRecord]
) -> tuple[Dataset, dict[str, Case]]:
    """The data set that was predicted, and its scans by the id of the prediction."""
    folder = settings.predictions
    dataset = find_predicted_scans(folder, settings.scans, settings.source)
    if dataset is None:
        raise DataError(f"{folder}: its scans are not found; name them with --scans")
    scans = scans_by_case(
        dataset, {name: {"file": record.file} for name, record in records.items()}
    )
    predicted = records.keys() & label_files(folder).keys()
    found = sorted(predicted & scans.keys(), key=natural_key)
    if len(found) < len(predicted):
        count = len(predicted) - len(found)
        echo(f"{dataset.root}: has no scan of {count} predictions, which are left out")
    return dataset, {name: scans[name] for name in found}


def _marks(folder: Path) -> Mapping[str, Mark]:
    file = folder / MARKS_TABLE
    if not file.exists():
        return {}
    marks = read_marks(file)
    echo(f"{file}: {len(marks)} marks")
    return marks


def _check_trainable(case: Case, tested: set[str]) -> None:
    """Refuse a test subject.

    Raises:
        DataError: it is one.
    """
    if case.subject in tested:
        raise DataError(
            f"is of {printable(case.subject)}, a test subject of the run: trained on, its score "
            "would no longer be that of an unseen scan"
        )


def _in_table(out: Path, name: str, case: Case, image: Image) -> Case:
    """The case as a table can name it: slices of DICOM become a NIfTI file, as `convert` makes it.

    Raises:
        DataError: the slices have several channels.
    """
    if not case.stacked:
        return case
    if len(image.data) > 1:
        raise DataError("is a DICOM series with several channels; convert it, and predict that")
    path = out / SERIES / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, image.data[0], Image(image.data, image.affine, name))
    return replace(case, images=(path,), stacked=False)


def _write_label(out: Path, name: str, case: Case, correction: Correction) -> Path:
    ending = ".png" if correction.image.spatial_dims == 2 else ".nii.gz"
    path = out / "labels" / f"{name}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label(path, correction.label, correction.image)
    return path


def _row(case: Case, label: Path | str | None, origin: str, channel_names: Sequence[str]) -> Row:
    """A row of the table; the scan is named where it is."""
    names = ["image"]
    if len(case.images) > 1:
        known = len(channel_names) == len(case.images)
        channels = channel_names if known else range(len(case.images))
        names = [f"image_{channel}" for channel in channels]
    paths = [str(path.resolve()) for path in case.images]
    images = dict(zip(names, paths, strict=True))
    label = str(label.resolve()) if isinstance(label, Path) else ""
    return {**images, "label": label, "subject": case.subject, "origin": origin}


def _labelled_rows(settings: Correct, predicted: Dataset) -> list[Row]:
    """The scans that were labelled before.

    Raises:
        DataError: they have other channels, or channels in other files, or no labels.
    """
    if settings.labelled is None:
        return []
    dataset = find_dataset(settings.labelled)
    cases = [case for case in dataset.cases if case.label is not None]
    if not cases:
        raise DataError(f"{settings.labelled}: has no label images; name the labelled scans")
    if len(dataset.channel_names) != len(predicted.channel_names):
        raise DataError(
            f"{settings.labelled}: has the channels {', '.join(dataset.channel_names)} where the "
            f"predicted scans have {', '.join(predicted.channel_names)}"
        )
    if {_file_count(case) for case in cases} != {_file_count(case) for case in predicted.cases}:
        raise DataError(
            f"{settings.labelled}: has a file per channel where the predicted scans have one for "
            "all, or the reverse, which one table cannot name; convert either"
        )
    return [_row(case, case.label, "labelled", dataset.channel_names) for case in cases]


def _file_count(case: Case) -> int:
    """How many files a table names for the image."""
    return 1 if case.stacked else len(case.images)


def _without_replaced(labelled: Sequence[Row], corrected: Sequence[Row]) -> list[Row]:
    """The rows of scans that have no corrected label: each scan is listed with its last one."""

    def images(row: Row) -> tuple[str, ...]:
        paths = sorted(value for name, value in row.items() if name.startswith("image"))
        # each `correct` writes a series again, under a name that has its hash
        return tuple(
            Path(path).name if Path(path).parent.name == SERIES else path for path in paths
        )

    replaced = {images(row) for row in corrected}
    kept = [row for row in labelled if images(row) not in replaced]
    if len(kept) < len(labelled):
        echo(f"{len(labelled) - len(kept)} labels from before are replaced by corrected ones")
    return kept


def _record(name: str, case: Case, correction: Correction, mark: Mark | None) -> Row:
    """Where a label came from."""
    record: Row = {
        "case": name,
        "scan": case.file,
        "origin": correction.origin,
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "changed_voxels": correction.changed_voxels,
        "dice_of_prediction": correction.dice,
    }
    if mark is not None:
        record |= {"mark": mark.mark, "note": mark.note, "marked": mark.marked}
    return record


def _write(
    out: Path, rows: Sequence[Row], classes: Mapping[int, str], channel_names: Sequence[str]
) -> None:
    names = sorted({name for row in rows for name in row}, key=lambda name: name[:5] != "image")
    header = [*(name for name in names if name.startswith("image")), "label", "subject", "origin"]
    write_csv(out / TABLE, header, ([row.get(name, "") for name in header] for row in rows))
    write_csv(out / CLASS_TABLE, ["value", "name"], sorted(classes.items()))
    if "image" in header and len(channel_names) > 1:
        write_csv(out / CHANNEL_TABLE, ["name"], ([name] for name in channel_names))


def _summarise(
    settings: Correct, rows: Sequence[Row], count: int, provenance: Sequence[Row]
) -> None:
    dice = [row["dice_of_prediction"] for row in provenance]
    known = [value for value in dice if value is not None]
    corrected = sum(row["origin"] == CORRECTED for row in provenance)
    text = f"{corrected} corrected"
    if known:
        text += f" (Dice of the predictions {sum(known) / len(known):.3f})"
    if count > corrected:
        text += f", {count - corrected} accepted as they were"
    echo(f"{settings.out / TABLE}: {len(rows)} labelled scans, of which {text}")
    run = predict_settings(settings.predictions).get("run", "RUN")
    echo(
        f"next: selfvox finetune {shlex.quote(str(settings.out / TABLE))} "
        f"--encoder {shlex.quote(str(run))} --out runs/seg-2"
    )
