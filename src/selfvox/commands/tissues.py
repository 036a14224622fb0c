"""The verb `tissues`: three tissues of every brain scan, found automatically, as labels to pre-train on.

Paper A pre-trained a supervised baseline on the tissues of FSL FAST. The same family of algorithm, a hidden Markov
random field fitted by expectation maximisation (Zhang et al. 2001), is dipy's `TissueClassifierHMRF`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfvox.data import naming
from selfvox.data.formats import image as images
from selfvox.data.preparation import prepare_case as reading
from selfvox.data.preparation.normalise import foreground
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.ops.boxes import bounding_box
from selfvox.report.figures import OutlinedScan, draw_outlines
from selfvox.runs.atomic_files import sha256, write_csv
from selfvox.runs.ledger import append_record, read_records
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import Tissues

NAMES = {0: "background", 1: "darkest tissue", 2: "middle tissue", 3: "brightest tissue"}
SMOOTHING = 0.1  # dipy's beta: what a neighbour of another tissue costs
SHOWN = 3  # scans in the picture


def tissues(settings: Tissues) -> Path:
    """Label three tissues in every scan, in the order of their brightness in the first channel.

    Labels that lie in `out` already are kept, where they are of these scans: `scans.jsonl` there holds their hashes.

    Returns:
        The table of scans and labels, which `finetune` reads.

    Raises:
        UsageError: `out` lies among the scans or holds labels of others, or dipy is not installed.
        DataError: no volume is there, or a table cannot list them; or at least one could not be labelled; the others
            were.
    """
    dataset = find_dataset(settings.scans, settings.source)
    for note in dataset.notes:
        echo(note)
    if not dataset.cases:
        raise DataError(f"{settings.scans}: holds no scans; name the folder they lie in")
    _check_fits_a_table(dataset)
    if settings.scans.is_dir() and settings.out.resolve().is_relative_to(settings.scans.resolve()):
        raise UsageError(f"{settings.out}: lies among the scans; name another --out")
    labels = settings.out / "labels"
    labels.mkdir(parents=True, exist_ok=True)
    made_of = _check_same(dataset.cases, settings.out)
    shown: list[OutlinedScan] = []
    failed: list[str] = []
    with progress_bar("tissues", len(dataset.cases), 0) as bar:
        for case in dataset.cases:
            try:
                known = case.id in made_of
                found = _label(
                    case, dataset, labels / f"{case.id}.nii.gz", known, look=len(shown) < SHOWN
                )
                if not known:
                    _record(case, settings.out)
            except DataError as error:
                failed.append(case.id)
                echo(str(error))
            else:
                shown += [found] if found else []
            bar.advance(f"{len(failed)} failed" if failed else "")
    done = [case for case in dataset.cases if case.id not in failed]
    if done:
        _write_table(dataset, done, settings.out)
    if shown:
        draw_outlines(shown, NAMES, settings.out / "check.png")
    if failed:
        raise DataError(
            f"{settings.scans}: {len(failed)} of {len(dataset.cases)} scans could not be labelled, see above; repair "
            "or remove them and run the same command again"
        )
    echo(f"labels: {labels} ({len(done)} scans)   look at {settings.out / 'check.png'} first")
    echo(f"next: selfvox finetune {settings.out / 'table.csv'} --encoder none --out runs/tissues")
    return settings.out / "table.csv"


def classify(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The tissue of every voxel: 1 to 3 by brightness, 0 outside the mask; the same for the same image.

    Args:
        image: (x, y, z), of any range.
        mask: (x, y, z) bool, the brain.

    Raises:
        UsageError: dipy is not installed.
    """
    try:
        from dipy.segment.tissue import TissueClassifierHMRF
    except ImportError:
        raise UsageError(
            "tissues: needs dipy; install it with `pip install selfvox[tissues]`"
        ) from None
    box = bounding_box(mask)
    part, inside = image[box].astype(np.float64), mask[box]
    low, high = np.percentile(part[inside], (0.5, 99.5))
    # dipy fills voxels of exactly 0 with noise of its own, another one each time
    air = 1e-3 + 1e-4 * np.random.default_rng(0).standard_normal(part.shape)
    scaled = np.where(inside, np.clip((part - low) / max(high - low, 1e-12), 0.02, 1), air)
    _, found, _ = TissueClassifierHMRF(verbose=False).classify(
        scaled, 3, SMOOTHING, tolerance=1e-4, max_iter=30
    )
    label = np.zeros(image.shape, np.uint8)
    label[box] = np.where(inside, found, 0)
    return label


def _check_fits_a_table(dataset: Dataset) -> None:
    """Refuse, before hours of work, scans that the table of labels could not name.

    Raises:
        DataError: DICOM slices, or several channels in one file.
    """
    where = naming.printable(dataset.root)
    if any(case.stacked for case in dataset.cases):
        raise DataError(
            f"{where}: a table lists no DICOM series; convert them with dcm2niix, and label these scans"
        )
    if len(dataset.channel_names) > len(dataset.cases[0].images):
        raise DataError(
            f"{where}: a table lists no file of {len(dataset.channel_names)} channels; save a volume for each channel, "
            "or the first alone"
        )


def _check_same(cases: Sequence[Case], out: Path) -> set[str]:
    """The ids of the cases whose labels are there and known to be theirs.

    Raises:
        UsageError: a label is that of another scan.
    """
    records = _records(out / "scans.jsonl")
    there = [
        case
        for case in cases
        if case.id in records and (out / "labels" / f"{case.id}.nii.gz").exists()
    ]
    for case in there:
        if records[case.id] != _digests(case):
            raise UsageError(
                f"{out}: holds the label of another scan called {case.id}; name another --out"
            )
    return {case.id for case in there}


def _record(case: Case, out: Path) -> None:
    """Note which scan was labelled; the last line of an id counts."""
    append_record(out / "scans.jsonl", {"id": case.id, "scan": _digests(case)})


def _records(ledger: Path) -> dict[str, list[str]]:
    """The hashes of each scan's files by its id; of several records of one id, the last."""
    records = [record for record in read_records(ledger) if {"id", "scan"} <= record.keys()]
    return {record["id"]: record["scan"] for record in records}


def _digests(case: Case) -> list[str]:
    return [sha256(path) if path.is_file() else "" for path in case.images]


def _label(
    case: Case, dataset: Dataset, path: Path, known: bool, look: bool
) -> OutlinedScan | None:
    """Write the case's label, unless it is there; what to show of it, if that is asked for.

    A label that is not known to be of this scan must lie on its grid.
    """
    if known and not look:
        return None
    image = reading.read_case(case, len(dataset.channel_names))
    if image.spatial_dims != 3:
        raise DataError(f"{image.name}: is no volume; tissues are found in volumes alone")
    channel = np.asarray(image.data[0], np.float32)
    if path.exists():
        label = images.read_label(path, image, None)
    else:
        label = classify(channel, foreground(channel, image.name))
        images.write_label(path, label, image)
    return OutlinedScan(case.id, channel, {"tissues": label}) if look else None


def _write_table(dataset: Dataset, cases: Sequence[Case], out: Path) -> None:
    """The scans where they lie, each with its label: a table that is named itself may have absolute paths."""
    several = len(cases[0].images) > 1
    columns = [f"image_{name}" for name in dataset.channel_names] if several else ["image"]
    rows = [
        [case.subject, *(str(path.resolve()) for path in case.images), f"labels/{case.id}.nii.gz"]
        for case in cases
    ]
    write_csv(out / "table.csv", ["subject", *columns, "label"], rows)
