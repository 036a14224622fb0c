"""Pairs of a predicted and a true label: which truth belongs to which prediction."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from selfvox.data.naming import natural_key, printable
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError
from selfvox.ops.regions import Regions
from selfvox.prediction.read_predictions import label_files
from selfvox.runs.progress import echo

# what label files are often called after their scan
_LABEL_ENDING = re.compile(r"[-_](?:seg|label|mask)$", re.IGNORECASE)
_MOST_LISTED = 10


class LabelPair(NamedTuple):
    """Files of the predicted and the true label of a case."""

    prediction: Path
    truth: Path


class Truth(NamedTuple):
    """True labels."""

    labels: Mapping[str, Path]  # by case id
    class_names: Mapping[int, str] | None  # if the data set declares them
    regions: Regions | None


def find_truth(root: Path, source: str, predictions: Mapping[str, Path]) -> Truth:
    """The labels of a data set, or simply the label files in a folder.

    Args:
        root: data set or folder.
        source: how it is laid out.
        predictions: files by case id, which label files in a folder are named after.

    Raises:
        DataError: there are no labels.
    """
    try:
        dataset = find_dataset(root, source)
    except DataError:
        # a folder of files that are all called labels, without any scan, is no data set
        if not root.is_dir() or source != "auto":
            raise
        return _truth_in_folder(root, predictions)
    labels = {case.id: case.label for case in dataset.cases if case.label is not None}
    if labels:
        return Truth(labels, dataset.classes, dataset.regions)
    if root.is_dir():
        return _truth_in_folder(root, predictions)
    raise DataError(f"{root}: has no labels; name a folder of labels, or a data set with labels")


def pair_cases(
    predictions: Mapping[str, Path],
    truths: Mapping[str, Path],
    predictions_folder: Path,
    truth_folder: Path,
) -> dict[str, LabelPair]:
    """Pairs by case id, in natural order; what has no partner is printed and left out.

    Raises:
        DataError: there is no pair.
    """
    # by name: the order of files in two folders may differ
    common = sorted(predictions.keys() & truths.keys(), key=natural_key)
    if not common:
        prediction = min(predictions, key=natural_key)
        truth = min(truths, key=natural_key)
        raise DataError(
            f"{predictions_folder}: no prediction is called like a truth in {truth_folder} "
            f"(such as {printable(prediction)} and {printable(truth)}); give both the same names"
        )
    _echo_left_out("predictions have no truth", predictions.keys() - truths.keys())
    _echo_left_out("truths have no prediction", truths.keys() - predictions.keys())
    return {name: LabelPair(predictions[name], truths[name]) for name in common}


def _truth_in_folder(root: Path, predictions: Mapping[str, Path]) -> Truth:
    """The label files of a folder; `ann_seg` is the truth of `ann`.

    Unless a prediction is called `ann_seg` itself.
    """
    labels = {}
    for name, path in label_files(root).items():
        labels[name if name in predictions else _LABEL_ENDING.sub("", name)] = path
    return Truth(labels, None, None)


def _echo_left_out(reason: str, names: Collection[str]) -> None:
    if not names:
        return
    listed = [printable(name) for name in sorted(names, key=natural_key)]
    text = ", ".join(listed[:_MOST_LISTED])
    if len(listed) > _MOST_LISTED:
        text += f" and {len(listed) - _MOST_LISTED} more"
    echo(f"{len(names)} {reason} and are left out: {text}")
