"""The scans that a folder of predictions is of: as named now, or as named to `predict`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfvox.data.naming import printable
from selfvox.data.preparation.split import read_split_if_present
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.errors import SelfvoxError
from selfvox.prediction.case_ledger import LEDGER, CaseRecord
from selfvox.prediction.nnunet_names import join_channels
from selfvox.prediction.output_folder import CARD, CHANNEL_NAMES, SETTINGS
from selfvox.runs.ledger import read_records
from selfvox.runs.progress import echo
from selfvox.runs.typed_json import read_checked
from selfvox.settings import safe_yaml


def find_predicted_scans(folder: Path, scans: Path | None, source: str) -> Dataset | None:
    """The data set that was predicted; None where it is not there any more, which is printed.

    Its channels have the names that the network knows: files alone may not say how many they have.

    Args:
        folder: of the predictions.
        scans: the scans; None: as they were named to `predict`.
        source: how they are laid out; as it was named to `predict`, if `scans` is None.

    Raises:
        SelfvoxError: `scans` cannot be read in this layout.
    """
    dataset = _find_scans(folder, scans, source)
    if dataset is None:
        return None
    records = read_records(folder / LEDGER, CaseRecord)
    # files of one scan each, as nnU-Net names them
    dataset = join_channels(dataset, max((len(record["scan"]) for record in records), default=1))
    card = folder / CARD
    names = read_checked(card).get(CHANNEL_NAMES) if card.exists() else None
    return dataset if names is None else replace(dataset, channel_names=tuple(names))


def _find_scans(folder: Path, scans: Path | None, source: str) -> Dataset | None:
    """As `find_predicted_scans`, with the channels that the layout declares."""
    if scans is not None:
        return find_dataset(scans, source)
    recorded = predict_settings(folder)
    if not recorded.get("scans"):
        echo(f"{folder}: does not say which scans it is of; name them with --scans")
        return None
    try:
        return find_dataset(Path(str(recorded["scans"])), str(recorded.get("source", source)))
    except SelfvoxError:
        echo(
            f"{printable(str(recorded['scans']))}: has no scans any more; name their folder with "
            "--scans"
        )
        return None


def predict_settings(folder: Path) -> dict[str, Any]:
    """The settings of the `predict` that wrote the folder; none of an earlier version's."""
    path = folder / SETTINGS
    return safe_yaml.read_yaml(path) if path.exists() else {}


def tested_subjects(folder: Path) -> set[str]:
    """The test subjects of the run that predicted a folder; none, which is printed, if unknown."""
    run = predict_settings(folder).get("run")
    split = None if run is None else read_split_if_present(Path(str(run)) / "split.json")
    if split is None:
        echo(f"{folder}: its run is not found, so that nobody knows its test subjects")
        return set()
    return set(split.test)


def scans_by_case(dataset: Dataset, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Case]:
    """The scan of each predicted case, by the id of the case.

    Args:
        dataset: the scans.
        records: what `predict` recorded of each case.
    """
    # names of a case differ where nnU-Net's files are joined, or where a scan was exported again
    by_file = {case.file: case for case in dataset.cases}
    scans = {case.id: case for case in dataset.cases}
    for case, record in records.items():
        scan = by_file.get(record.get("file") or "")
        if scan is not None:
            scans[case] = scan
    return scans
