"""What `evaluate` and others read from a folder of predictions or labels."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from pathlib import Path

from selfvox.data.formats.image import SUFFIXES_2D, SUFFIXES_3D, suffix
from selfvox.data.naming import printable, stem
from selfvox.errors import DataError
from selfvox.ops.regions import Regions, regions_from_json
from selfvox.prediction.case_files import PROBABILITY_ENDING
from selfvox.prediction.case_ledger import LEDGER, CaseRecord
from selfvox.prediction.output_folder import (
    CARD,
    CLASS_NAMES,
    REGION_CLASSES,
    REVIEW_TABLE,
)
from selfvox.runs import strict_json
from selfvox.runs.ledger import read_records
from selfvox.runs.progress import echo
from selfvox.runs.typed_json import read_checked


def has_region_probabilities(folder: Path) -> bool:
    """Whether the probabilities in a folder are of regions that a network was trained on."""
    file = folder / CARD
    return file.exists() and read_checked(file).get("trained_on") == "regions"


def read_class_names(folder: Path) -> dict[int, str] | None:
    """The name of each class number, as `predict` wrote them next to its labels.

    Raises:
        DataError: the file has another form.
    """
    file = folder / CLASS_NAMES
    if not file.exists():
        return None
    content = strict_json.read_json(file)
    if not (isinstance(content, dict) and all(_is_class_number(key) for key in content)) or not all(
        isinstance(name, str) for name in content.values()
    ):
        raise DataError(
            f'{file}: is not {{"0": "background", "1": name, ...}}; correct or remove it'
        )
    return {int(key): name for key, name in content.items()}


def read_region_classes(folder: Path) -> Regions | None:
    """The class numbers of each region, as `predict` wrote them next to its labels.

    Raises:
        DataError: the file has another form.
    """
    file = folder / REGION_CLASSES
    try:
        return regions_from_json(strict_json.read_json(file)) if file.exists() else None
    except ValueError:
        raise DataError(f'{file}: is not {{"NAME": [1, 2], ...}}; correct or remove it') from None


def warn_of_trained_scans(folder: Path, cases: Collection[str]) -> None:
    """Print how many of the cases trained the network, as `predict` recorded it."""
    # of several records, the last
    records = {record.get("id"): record for record in read_records(folder / LEDGER, CaseRecord)}
    trained = [case for case in cases if records.get(case, {}).get("trained_on") is True]
    if trained:
        echo(
            f"{len(trained)} of {len(cases)} scored scans, such as {printable(trained[0])}, or "
            "scans of their subjects trained the network: their scores are not those of new scans"
        )


def read_trust(folder: Path) -> dict[str, float]:
    """The trust in each case, where several passes voted."""
    file = folder / REVIEW_TABLE
    if not file.exists():
        return {}
    trusts = {case: review.get("trust") for case, review in read_reviews(folder).items()}
    return {case: trust for case, trust in trusts.items() if trust is not None}


def read_reviews(folder: Path) -> dict[str, dict[str, float]]:
    """The numbers of `review.csv` by case and column; none where a single pass predicted.

    Raises:
        DataError: a row is damaged.
    """
    file = folder / REVIEW_TABLE
    if not file.exists():
        return {}
    reviews = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            case = row.pop("case", "")
            # the columns of words
            for column in ("notes", "class", "name"):
                row.pop(column, None)
            try:
                reviews[case] = {name: float(value) for name, value in row.items() if value}
            except (TypeError, ValueError):
                raise DataError(
                    f"{file}: the row of {printable(case)} is damaged; run the same `predict` again"
                ) from None
    return reviews


def label_files(folder: Path) -> dict[str, Path]:
    """The files of class numbers in a folder, by case id, without files of probabilities.

    Raises:
        DataError: it is no folder, or two files have the same id.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; name the folder of the labels")
    files: dict[str, Path] = {}
    # sorted: messages name the same files on every machine
    for file in sorted(folder.iterdir()):
        ending = suffix(file)
        # macOS puts a hidden `._NAME` next to each file of some disks
        if not ending or file.name.startswith("."):
            continue
        case_id = stem(file, ending)
        if case_id in files:
            raise DataError(
                f"{folder}: {files[case_id].name} and {file.name} are both called {case_id}; "
                "keep one"
            )
        files[case_id] = file
    labels = {name: file for name, file in files.items() if not _is_probability(name, files)}
    if not labels:
        kinds = " ".join((*SUFFIXES_3D, *SUFFIXES_2D))
        raise DataError(f"{folder}: no labels in it ({kinds}); name the folder that contains them")
    return labels


def _is_probability(name: str, files: Mapping[str, Path]) -> bool:
    """Whether a file is named after another one, which it has the probabilities of."""
    return name.endswith(PROBABILITY_ENDING) and name.removesuffix(PROBABILITY_ENDING) in files


def _is_class_number(key: str) -> bool:
    # five digits: labels have at most 16 bits
    return key.isascii() and key.isdecimal() and len(key) < 6
