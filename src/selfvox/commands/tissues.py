"""The command `tissues`: label three brain tissues automatically, to pre-train on these labels.

Paper A pre-trains a supervised baseline on the tissues of FSL FAST. dipy's `TissueClassifierHMRF`
belongs to the same family: a hidden Markov random field fitted by expectation maximisation
(Zhang et al. 2001).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from selfvox.data import naming
from selfvox.data.formats import image as images
from selfvox.data.preparation.normalise import foreground
from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.ops.boxes import bounding_box
from selfvox.reports.figures import OutlinedScan, draw_outlines
from selfvox.runs.atomic_files import sha256, write_csv
from selfvox.runs.ledger import append_record, read_records
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import Tissues

NAMES = {0: "background", 1: "darkest tissue", 2: "middle tissue", 3: "brightest tissue"}
SMOOTHING = 0.1  # dipy's beta: the cost of a neighbour of another tissue
SHOWN = 3  # scans in the picture
LEDGER = "scans.jsonl"  # the hashes of the scans that were labelled


def tissues(settings: Tissues) -> Path:
    """Label three tissues in every scan, ordered by their brightness in the first channel.

    Existing labels in `out` are kept if they are of the same scans, by the hashes in `scans.jsonl`.

    Returns:
        The table of scans and labels, which `finetune` reads.

    Raises:
        UsageError: `out` is inside the scans or contains labels of other scans, or dipy is not
            installed.
        DataError: there are no volumes, or a table cannot list them; or some could not be
            labelled, in which case the others were.
    """
    dataset = find_dataset(settings.scans, settings.source)
    for note in dataset.notes:
        echo(note)
    _check_dataset(dataset, settings)
    labels = settings.out / "labels"
    labels.mkdir(parents=True, exist_ok=True)
    labelled = _labelled_cases(dataset.cases, settings.out)
    shown: list[OutlinedScan] = []
    failed: set[str] = set()
    # a scan that fails is printed, and the others are still labelled
    with progress_bar("tissues", len(dataset.cases), 0) as bar:
        for case in dataset.cases:
            path = labels / f"{case.id}.nii.gz"
            is_shown = len(shown) < SHOWN
            try:
                # what is labelled is read again only for the picture
                if is_shown or case.id not in labelled:
                    scan = _label_case(case, dataset, path)
                    if is_shown:
                        shown.append(scan)
                if case.id not in labelled:
                    append_record(settings.out / LEDGER, {"id": case.id, "scan": _hashes(case)})
            except DataError as error:
                failed.add(case.id)
                echo(str(error))
            bar.advance(f"{len(failed)} failed" if failed else "")
    finished = [case for case in dataset.cases if case.id not in failed]
    if finished:
        _write_table(dataset, finished, settings.out)
    if shown:
        draw_outlines(shown, NAMES, settings.out / "check.png")
    if failed:
        raise DataError(
            f"{settings.scans}: {len(failed)} of {len(dataset.cases)} scans could not be labelled "
            "(reasons above); repair or remove them and run the same command again"
        )
    echo(f"labels: {labels} ({len(finished)} scans)   first look at {settings.out / 'check.png'}")
    echo(f"next: selfvox finetune {settings.out / 'table.csv'} --encoder none --out runs/tissues")
    return settings.out / "table.csv"


def classify(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The tissue of every voxel: 1 to 3 by brightness, 0 outside the mask.

    The same image always gives the same tissues.

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
            "tissues: dipy is missing; install it with `pip install selfvox[tissues]`"
        ) from None
    box = bounding_box(mask)
    crop = image[box].astype(np.float64)
    inside = mask[box]
    # a few extreme voxels would press the tissues together
    low, high = np.percentile(crop[inside], (0.5, 99.5))
    # dipy replaces voxels of exactly 0 by its own noise, which differs each time
    air = 1e-3 + 1e-4 * np.random.default_rng(0).standard_normal(crop.shape)
    # from 0.02, since dipy takes 0 for air
    scaled = np.where(inside, np.clip((crop - low) / max(high - low, 1e-12), 0.02, 1), air)
    _, classes, _ = TissueClassifierHMRF(verbose=False).classify(
        scaled, 3, SMOOTHING, tolerance=1e-4, max_iter=30
    )
    label = np.zeros(image.shape, np.uint8)
    label[box] = np.where(inside, classes, 0)
    return label


def _check_dataset(dataset: Dataset, settings: Tissues) -> None:
    """Refuse, before hours of work, what cannot be labelled or listed in a table.

    Raises:
        DataError: there are no scans; or they are DICOM slices or several channels in one file.
        UsageError: `out` is inside the scans.
    """
    if not dataset.cases:
        raise DataError(f"{settings.scans}: contains no scans; name their folder")
    name = naming.printable(dataset.root)
    if any(case.stacked for case in dataset.cases):
        raise DataError(
            f"{name}: a table cannot list DICOM series; convert them with dcm2niix and label the "
            "converted scans"
        )
    channels = len(dataset.channel_names)
    if channels > len(dataset.cases[0].images):
        raise DataError(
            f"{name}: a table cannot list a file of {channels} channels; save one volume per "
            "channel, or only the first"
        )
    if settings.scans.is_dir() and settings.out.resolve().is_relative_to(settings.scans.resolve()):
        raise UsageError(f"{settings.out}: is inside the folder of scans; name another --out")


def _labelled_cases(cases: Sequence[Case], out: Path) -> set[str]:
    """The ids of the cases that have a label which was made from the same scan.

    Raises:
        UsageError: a label was made from another scan.
    """
    hashes = _recorded_hashes(out / LEDGER)
    labelled = set()
    for case in cases:
        if case.id not in hashes or not (out / "labels" / f"{case.id}.nii.gz").exists():
            continue
        if hashes[case.id] != _hashes(case):
            raise UsageError(
                f"{out}: contains the label of another scan named {case.id}; name another --out"
            )
        labelled.add(case.id)
    return labelled


def _recorded_hashes(ledger: Path) -> Mapping[str, list[str]]:
    """The hashes of each scan's files by id; the last record of an id counts."""
    return {
        record["id"]: record["scan"]
        for record in read_records(ledger)
        if "id" in record and "scan" in record
    }


def _hashes(case: Case) -> list[str]:
    return [sha256(path) if path.is_file() else "" for path in case.images]


def _label_case(case: Case, dataset: Dataset, path: Path) -> OutlinedScan:
    """Label a case unless its label exists; an existing label must be on the scan's grid."""
    image = read_case(case, len(dataset.channel_names))
    if image.spatial_dims != 3:
        raise DataError(f"{image.name}: is not a volume; tissues are found only in volumes")
    channel = np.asarray(image.data[0], np.float32)
    if path.exists():
        label = images.read_label(path, image, None)
    else:
        label = classify(channel, foreground(channel, image.name))
        images.write_label(path, label, image)
    return OutlinedScan(case.id, channel, {"tissues": label})


def _write_table(dataset: Dataset, cases: Sequence[Case], out: Path) -> None:
    """List the scans and their labels, with absolute paths to the scans."""
    columns = ["image"]
    if len(cases[0].images) > 1:
        columns = [f"image_{name}" for name in dataset.channel_names]
    rows = [
        [case.subject, *(str(path.resolve()) for path in case.images), f"labels/{case.id}.nii.gz"]
        for case in cases
    ]
    write_csv(out / "table.csv", ["subject", *columns, "label"], rows)
