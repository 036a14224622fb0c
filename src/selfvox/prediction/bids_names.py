"""Predicted labels as BIDS derivatives: copies with the names, tables and records of BIDS."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from selfvox.data.formats.image import suffix
from selfvox.data.naming import printable, stem
from selfvox.data.sources import Case
from selfvox.errors import DataError, UsageError
from selfvox.runs.atomic_files import write_json

FOLDER = "bids"
BIDS_VERSION = "1.10.0"
# `sub-01_ses-02_acq-x_T1w`: entities, and the suffix, which says the kind of scan
_NAME = re.compile(r"((sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?(?:_[a-z]+-[A-Za-z0-9]+)*)_(\w+)")


def check_names(cases: Sequence[Case]) -> None:
    """Refuse scans that have no BIDS names, before any is predicted.

    Raises:
        UsageError: names the first of them.
    """
    for case in cases:
        if _parts(case) is None:
            raise UsageError(
                f"bids: {printable(case.images[0].name)} is no BIDS name, such as "
                "sub-01_T1w.nii.gz; leave --bids out, or rename the scans"
            )


def write_bids(
    folder: Path,
    labels: Mapping[str, Path],
    cases: Sequence[Case],
    classes: Mapping[int, str],
    records: Mapping[str, Mapping[str, Any]],
    network_sha256: str,
) -> Path:
    """Write a data set of derivatives, in place of an earlier one.

    Args:
        folder: of the predictions.
        labels: the predicted file by case id.
        cases: with BIDS names.
        classes: name by class number.
        records: what is known of each prediction, by case id.
        network_sha256: of the weights.

    Raises:
        DataError: two scans would have one name.
    """
    out = folder / FOLDER
    temporary = folder / f".{FOLDER}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    kinds = {parts[3] for case in cases if (parts := _parts(case)) is not None}
    try:
        for case in cases:
            if case.id in labels:
                facts = {key: records.get(case.id, {}).get(key) for key in ("work", "notes")}
                facts = {"network_sha256": network_sha256, **facts}
                _write_case(temporary, labels[case.id], case, classes, facts, len(kinds) > 1)
        description = {
            "Name": "Segmentations by selfvox",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "selfvox", "Version": version("selfvox")}],
        }
        temporary.mkdir(exist_ok=True)
        write_json(temporary / "dataset_description.json", description)
        shutil.rmtree(out, ignore_errors=True)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _write_case(
    root: Path,
    label: Path,
    case: Case,
    classes: Mapping[int, str],
    facts: Mapping[str, Any],
    names_kind: bool,
) -> None:
    """Copy a label to its place, with its table of classes and what is known of it."""
    parts = _parts(case)
    assert parts is not None, "names are checked before"
    entities, subject, session, kind = parts
    folder = root / subject / (session or "") / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    # of two kinds of scans, such as T1w and T2w, the labels would have one name
    description = f"desc-selfvox{kind if names_kind else ''}"
    # of a scan that is a derivative itself: its own description is replaced, its space is kept
    entities = re.sub(r"_desc-[A-Za-z0-9]+", "", entities)
    has_space = "_space-" in entities
    space = "" if has_space else "_space-orig"
    target = folder / f"{entities}{space}_{description}_dseg.nii.gz"
    if target.exists():
        raise DataError(f"{printable(target.name)}: two scans would have this name; rename one")
    shutil.copyfile(label, target)
    base = target.name.removesuffix(".nii.gz")
    rows = [f"{value}\t{classes[value]}" for value in sorted(classes)]
    (folder / f"{base}.tsv").write_text("\n".join(["index\tname", *rows]) + "\n", encoding="utf-8")
    # the files in their folder, without the folders of this computer
    place = f"{subject}/{session + '/' if session else ''}anat"
    details = {
        "Sources": [f"bids:raw:{place}/{path.name}" for path in case.images],
        **({} if has_space else {"SpatialReference": "orig"}),
        "Selfvox": {key: value for key, value in facts.items() if value},
    }
    write_json(folder / f"{base}.json", details)


def _parts(case: Case) -> tuple[str, str, str | None, str] | None:
    """Entities, subject, session and suffix of a BIDS name; None: it is none."""
    path = case.images[0]
    match = _NAME.fullmatch(stem(path, suffix(path)))
    return None if match is None else (match[1], match[2], match[3], match[4])
