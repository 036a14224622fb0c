"""Where scans and labels go in a new BIDS folder, and the files that describe it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset
from selfvox.errors import UsageError
from selfvox.prediction.bids_names import BIDS_VERSION
from selfvox.runs.atomic_files import write_json, write_text

LABELS = Path("derivatives", "labels")


class BidsFolder:
    """Scans as `sub-X/anat/sub-X_SUFFIX.nii.gz`, labels as derivatives.

    Several scans of a subject are sessions, numbered in the order of their names.

    Args:
        out: the folder.
        dataset: what is written into it.
        suffixes: of each channel, such as T1w.

    Raises:
        UsageError: a suffix is missing or not one, or two subjects would have one name.
    """

    def __init__(self, out: Path, dataset: Dataset, suffixes: Sequence[str]):
        self.out = out
        self.suffixes = suffixes
        _check_suffixes(suffixes, dataset.channel_names)
        subjects = _subject_names({case.subject for case in dataset.cases})
        has_sessions = len(subjects) < len(dataset.cases)
        self._names: dict[str, tuple[str, ...]] = {}  # sub-X and ses-N by case
        numbers: Counter[str] = Counter()
        for case in dataset.cases:
            subject = subjects[case.subject]
            numbers[subject] += 1
            session = (f"ses-{numbers[subject]:02}",) if has_sessions else ()
            self._names[case.id] = (subject, *session)

    def image_files(self, case: Case) -> list[Path]:
        """One file for each channel."""
        return [self._file(self.out, case, suffix) for suffix in self.suffixes]

    def label_file(self, case: Case) -> Path:
        """The file of its label."""
        return self._file(self.out / LABELS, case, "dseg")

    def describe(self, written: Sequence[Case], classes: Mapping[int, str] | None) -> None:
        """Write the tables and descriptions.

        Args:
            written: the cases that are in the folder.
            classes: names by label value; None: there are no labels.
        """
        _write_description(self.out, "raw")
        participants = sorted({self._names[case.id][0] for case in written})
        _write_table(self.out / "participants.tsv", ["participant_id", *participants])
        if classes is not None:
            _write_description(self.out / LABELS, "derivative")
            rows = [f"{value}\t{printable(name)}" for value, name in classes.items()]
            _write_table(self.out / LABELS / "dseg.tsv", ["index\tname", *rows])

    def _file(self, root: Path, case: Case, suffix: str) -> Path:
        names = self._names[case.id]
        return root.joinpath(*names, "anat", "_".join([*names, suffix]) + ".nii.gz")


def _check_suffixes(suffixes: Sequence[str], channel_names: Sequence[str]) -> None:
    if len(suffixes) != len(channel_names) or len(set(suffixes)) != len(suffixes):
        raise UsageError(
            f"bids: scans have {len(channel_names)} channels "
            f"({', '.join(map(printable, channel_names))}); give one suffix for each, such as "
            "T1w,FLAIR"
        )
    for suffix in suffixes:
        if not re.fullmatch("[A-Za-z0-9]+", suffix):
            raise UsageError(
                f"bids: '{printable(suffix)}' is no suffix of BIDS, such as T1w; use letters and "
                "digits"
            )


def _subject_names(subjects: set[str]) -> dict[str, str]:
    """`sub-` and the letters and digits of each subject, by subject.

    Raises:
        UsageError: two subjects have the same ones, or a subject has none.
    """
    names: dict[str, str] = {}
    for subject in sorted(subjects):
        name = "sub-" + re.sub("[^A-Za-z0-9]", "", subject.removeprefix("sub-"))
        if name == "sub-" or name in names.values():
            raise UsageError(
                f"bids: the subject {printable(subject)} cannot be called {name}: names in BIDS "
                "are of letters and digits, and all different; rename its scans"
            )
        names[subject] = name
    return names


def _write_description(folder: Path, kind: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "Name": "Labels" if kind == "derivative" else "Scans",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": kind,
        "GeneratedBy": [{"Name": "selfvox", "Version": version("selfvox")}],
    }
    write_json(folder / "dataset_description.json", description)


def _write_table(path: Path, lines: Sequence[str]) -> None:
    write_text(path, "\n".join(lines) + "\n")
