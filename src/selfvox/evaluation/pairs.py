"""Pairs of a predicted and a true label: which truth belongs to which prediction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path, PurePath
from typing import NamedTuple

from selfvox.data import pairing
from selfvox.data.naming import natural_key, printable
from selfvox.data.sources import ChoiceNeeded, find_dataset
from selfvox.errors import DataError
from selfvox.ops.regions import Regions
from selfvox.prediction.read_predictions import label_files
from selfvox.runs.progress import echo

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


def find_truth(root: Path, source: str) -> Truth:
    """The labels of a data set, or simply the label files in a folder.

    Args:
        root: data set or folder.
        source: how it is laid out.

    Raises:
        DataError: there are no labels, or scans that may have several.
    """
    try:
        dataset = find_dataset(root, source)
    except ChoiceNeeded:
        raise
    except DataError:
        # a folder of files that are all called labels, without any scan, is no data set
        if not root.is_dir() or source != "auto":
            raise
        return Truth(label_files(root), None, None)
    labels = {case.id: case.label for case in dataset.cases if case.label is not None}
    if labels:
        return Truth(labels, dataset.classes, dataset.regions)
    if root.is_dir():
        return Truth(label_files(root), None, None)
    raise DataError(f"{root}: has no labels; name a folder of labels, or a data set with labels")


def pair_cases(
    predictions: Mapping[str, Path],
    truths: Mapping[str, Path],
    predictions_folder: Path,
    truth_folder: Path,
) -> dict[str, LabelPair]:
    """Pairs by case id, in natural order; what has no partner is printed and left out.

    Where the ids differ, the rule for labels and scans decides: `ann_seg` is the truth of `ann`.

    Raises:
        DataError: there is no pair, or a prediction may have several truths.
    """
    # by name: the order of files in two folders may differ
    truth_of = {name: name for name in predictions.keys() & truths.keys()}
    by_rule = _pair_by_rule(
        predictions.keys() - truths.keys(), truths.keys() - predictions.keys(), truth_folder
    )
    if by_rule:
        prediction = min(by_rule, key=natural_key)
        echo(
            f"{len(by_rule)} truths are called otherwise than their predictions, "
            f"such as {printable(by_rule[prediction])} of {printable(prediction)}"
        )
    truth_of |= by_rule
    common = sorted(truth_of, key=natural_key)
    if not common:
        prediction = min(predictions, key=natural_key)
        truth = min(truths, key=natural_key)
        raise DataError(
            f"{predictions_folder}: no prediction is called like a truth in {truth_folder} "
            f"(such as {printable(prediction)} and {printable(truth)}); give both the same names"
        )
    _echo_left_out("predictions have no truth", predictions.keys() - truth_of.keys())
    _echo_left_out("truths have no prediction", truths.keys() - set(truth_of.values()))
    return {name: LabelPair(predictions[name], truths[truth_of[name]]) for name in common}


def _pair_by_rule(
    predictions: Collection[str], truths: Collection[str], truth_folder: Path
) -> dict[str, str]:
    """The name of the truth of each prediction that is called otherwise than its truth.

    Raises:
        DataError: a prediction may have several truths, or a truth several predictions.
    """
    pairs = pairing.match_labels(
        [PurePath(name) for name in predictions], [PurePath(name) for name in truths]
    )
    for several, noun in ((pairs.several_labels, "truth"), (pairs.several_scans, "prediction")):
        for path, candidates in several.items():
            listed = " and ".join(printable(candidate) for candidate in candidates[:2])
            raise DataError(
                f"{truth_folder}: {listed} may each be the {noun} of {printable(path)}; "
                "keep one of them in its folder"
            )
    return {str(prediction): str(truth) for prediction, truth in pairs.labels.items()}


def _echo_left_out(reason: str, names: Collection[str]) -> None:
    if not names:
        return
    listed = [printable(name) for name in sorted(names, key=natural_key)]
    text = ", ".join(listed[:_MOST_LISTED])
    if len(listed) > _MOST_LISTED:
        text += f" and {len(listed) - _MOST_LISTED} more"
    echo(f"{len(names)} {reason} and are left out: {text}")
