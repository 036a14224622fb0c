"""Scans in a plain folder with the names of nnU-Net: `CASE_0000.nii.gz`, a file per channel."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfvox.data import naming
from selfvox.data.formats.image import suffix
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.errors import DataError
from selfvox.runs.progress import echo

_CHANNEL = re.compile(r"(.+)_(\d{4})", re.ASCII | re.DOTALL)  # four digits


def join_channels(dataset: Dataset, channels: int) -> Dataset:
    """The data set with one case for the files of each `CASE`, if all its files have such names.

    With one channel all of them must end in `_0000`: others are scans that are merely numbered.

    Args:
        dataset: of any layout; only a plain folder, one scan or a list is changed.
        channels: how many the network takes.

    Raises:
        DataError: several channels are expected and a case lacks one.
    """
    if dataset.source != "folder":
        return dataset
    by_name: dict[Path, dict[int, Case]] = defaultdict(dict)
    for case in dataset.cases:
        image = case.images[0]
        match = _CHANNEL.fullmatch(naming.stem(image, suffix(image)))
        if match is None or int(match[2]) >= channels:
            return dataset
        by_name[image.with_name(match[1])][int(match[2])] = case
    for name, files in by_name.items():
        missing = [f"_{number:04}" for number in range(channels) if number not in files]
        if missing:
            raise DataError(
                f"{printable(name)}: has no file {', '.join(missing)} of its {channels} channels; "
                "add it, or name the folder that contains it"
            )
    echo("the names are nnU-Net's (CASE_0000), so that predictions are called CASE")
    cases = _named(by_name, dataset)
    return replace(dataset, cases=tuple(sorted(cases, key=case_key)))


def _named(by_name: dict[Path, dict[int, Case]], dataset: Dataset) -> Sequence[Case]:
    """A case for each name, with its files in the order of the channels."""
    root = dataset.root if dataset.root.is_dir() else dataset.root.parent
    paths = naming.relative_paths(list(by_name), root)
    no_endings = [""] * len(paths)
    ids = naming.case_ids(paths, no_endings)
    subjects = naming.subject_names(paths, no_endings)
    return [
        replace(
            files[0],
            id=case_id,
            subject=subject,
            images=tuple(files[number].images[0] for number in sorted(files)),
        )
        for case_id, subject, files in zip(ids, subjects, by_name.values(), strict=True)
    ]
