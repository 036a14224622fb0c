"""The folder that `predict` writes and `evaluate` reads: its files, card, records and lock.

- `ID.nii.gz` or, for pictures, `ID.png`: class numbers; `.nrrd` or `.mha` on request, and
  `ID_probabilities.nii.gz` or `.tif`, and `ID.dcm`, the label as a DICOM segmentation.
- `classes.json`: the name of each number. `regions.json`: the numbers of each region, where the run
  has some.
- `predictions.csv` instead of these, where whole scans were classified; `targets.csv`, where a
  number was predicted of them.
- `predictions.json`: the network and what predictions depend on. `settings.yaml`: all settings of
  the last `predict`, such as where the scans are. `cases.jsonl`: file, hashes and work of each
  scan, and hashes of its predictions.
- `review.csv`: of several passes, which predictions to review first.
- `maps/`: of several passes, on request: `ID_entropy.nii.gz` and so on, and their picture
  `ID_maps.png`.
- `bids/`: on request, copies of the labels as BIDS derivatives.
- `rejected.csv`: scans that could not be predicted, and why.
- `log.txt`: what every command printed, with time stamps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfvox.data.naming import printable
from selfvox.data.preparation.prepare_case import Rejected, combine_hashes, main_file
from selfvox.data.sources import Case
from selfvox.errors import DataError, UsageError
from selfvox.ops.regions import Regions, regions_to_json
from selfvox.prediction.case_files import MAPS_FOLDER, CaseFiles
from selfvox.prediction.case_ledger import LEDGER, read_ledger
from selfvox.prediction.kept_predictions import keep_finished, scan_digests, with_own_names
from selfvox.prediction.used_scans import TRAINED, UsedScans
from selfvox.prediction.work_record import Facts
from selfvox.runs.atomic_files import sha256, write_csv, write_json
from selfvox.runs.folder_lock import folder_lock
from selfvox.runs.ledger import append_record
from selfvox.runs.log_file import log_to
from selfvox.runs.progress import echo
from selfvox.runs.typed_json import read_checked, with_checksum, write_checked

FORMAT = 1  # of predictions.json
CARD = "predictions.json"
CHANNEL_NAMES = "channel_names"  # in the card
CLASS_NAMES = "classes.json"
REGION_CLASSES = "regions.json"
CLASS_TABLE = "predictions.csv"
TARGET_TABLE = "targets.csv"
REVIEW_TABLE = "review.csv"
REJECTED_TABLE = "rejected.csv"
LOG = "log.txt"
SETTINGS = "settings.yaml"
# files that are not of one case; found in a folder without a card, they are somebody else's
_TABLES = (
    CLASS_TABLE,
    TARGET_TABLE,
    CLASS_NAMES,
    REGION_CLASSES,
    LEDGER,
    REVIEW_TABLE,
    REJECTED_TABLE,
)
_TEMPORARY = ".*.part.*"  # files of a process that was killed while it wrote


class OutputFolder:
    """A folder of predictions that this process writes.

    Args:
        files: where those of each case are.
        used: of each network, which scans trained it; recorded with each case.
    """

    def __init__(self, files: CaseFiles, used: Sequence[UsedScans] = ()):
        self.path = files.path
        self.files = files
        self._used = tuple(used)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other processes from writing into it.

        Raises:
            UsageError: it is a file.
            BusyError: another process writes into it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"{self.path}: is a file; name a folder for the predictions") from None
        with folder_lock(self.path), log_to(self.path / LOG):
            yield

    def open(
        self,
        cases: Sequence[Case],
        card: Mapping[str, Any],
        classes: Mapping[int, str],
        regions: Regions | None = None,
        replace: bool = False,
    ) -> tuple[list[Case], list[Case]]:
        """Start or continue in the folder, which is locked.

        A prediction that is missing or damaged is made again. Where the folder has the prediction
        of another scan of the same name, such as an earlier export, the scan becomes a case of its
        own, called `ID~HASH`.

        Args:
            cases: all cases to predict.
            card: network and settings that predictions depend on.
            classes: name by class number.
            regions: class numbers by name.
            replace: the prediction of another scan of the same name is replaced instead.

        Returns:
            All cases, by their names in the folder, and those of them that are still to predict.

        Raises:
            UsageError: the folder contains something else, or predictions of another card.
        """
        if self.files.map_endings:
            (self.path / MAPS_FOLDER).mkdir(exist_ok=True)
        # the folder is locked, so that no living process writes them
        for folder in (self.path, self.path / MAPS_FOLDER):
            for leftover in folder.glob(_TEMPORARY):
                leftover.unlink(missing_ok=True)
        card = {"format": FORMAT, **card}
        if (self.path / CARD).exists():
            self._check_card(card)
        else:
            self._check_no_foreign_files(cases)
            write_checked(self.path / CARD, card)
        names = {str(value): name for value, name in classes.items()}
        if names:
            write_json(self.path / CLASS_NAMES, names)
        if regions is not None:
            write_json(self.path / REGION_CLASSES, regions_to_json(regions))
        named = with_own_names(self.files, cases, replace)
        finished = keep_finished(self.files, named)
        if finished:
            echo(f"{len(finished)} of {len(cases)} predictions exist already and are kept")
        self._mention_others(named)
        return named, [case for case in named if case.id not in finished]

    def record(
        self,
        case: Case,
        work: Facts,
        *,
        review: Mapping[str, Any] | None = None,
        answer: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
        distance: float | None = None,
        is_unlike: bool = False,
    ) -> None:
        """Record a predicted case; called last, since a case without a record is predicted again.

        Args:
            case: predicted.
            work: when, by what and at which cost.
            review: measures of several passes.
            answer: the prediction itself, where a case has no files.
            notes: what the reader assumed about the scan, and how it differs from the training.
            distance: from the scans of the training, where it is known.
            is_unlike: whether it is so far from them that it was predicted by force.
        """
        digests = scan_digests(case)
        record: dict[str, Any] = {
            "id": case.id,
            "file": main_file(case),
            "scan": digests,
            "files": {path.name: sha256(path) for path in self.files.of(case)},
            "work": work,
        }
        contents = {combine_hashes(case, digests)}
        if any(used.use(case.subject, contents) == TRAINED for used in self._used):
            record["trained_on"] = True
        if review:
            record["review"] = review
        if answer:
            record["answer"] = answer
        if notes:
            record["notes"] = list(notes)
        if distance is not None:
            record["distance"] = distance
        if is_unlike:
            record["unlike"] = True
        append_record(self.path / LEDGER, with_checksum(record))

    def reviews(self) -> dict[str, Mapping[str, Any]]:
        """The review of each case that has one, by its id."""
        return self._compared("review")

    def answers(self) -> dict[str, Mapping[str, Any]]:
        """The answer of each case that has one, by its id."""
        return self._compared("answer")

    def records(self) -> dict[str, dict[str, Any]]:
        """What is recorded of each case, by its id."""
        return read_ledger(self.path)

    def trained_on(self, cases: Sequence[Case]) -> list[str]:
        """Ids of those predicted cases that trained a network."""
        recorded = self._recorded("trained_on")
        return [case.id for case in cases if case.id in recorded]

    @contextlib.contextmanager
    def rejecting(self, total: int) -> Iterator[list[Rejected]]:
        """Yield a list for the scans that cannot be predicted, and write it as a table afterwards.

        Without any, the table is removed. A stop leaves a table too: a job that is stopped every
        night would never have one.

        Args:
            total: number of all scans.

        Raises:
            DataError: there are some.
        """
        rejected: list[Rejected] = []
        try:
            yield rejected
        except BaseException:
            if rejected:
                self._write_rejected(rejected)
            raise
        if not rejected:
            (self.path / REJECTED_TABLE).unlink(missing_ok=True)
            return
        self._write_rejected(rejected)
        raise DataError(
            f"{self.path}: {len(rejected)} of {total} scans could not be predicted, "
            f"see {REJECTED_TABLE} there; repair or remove them and run the same command again"
        )

    def _write_rejected(self, rejected: Sequence[Rejected]) -> None:
        facts = list(dict.fromkeys(name for scan in rejected for name in scan.work))
        header = ["id", "file", "reason", *(name.replace("_", " ") for name in facts)]
        rows = [
            [scan.id, scan.file, scan.reason, *(scan.work.get(name) for name in facts)]
            for scan in rejected
        ]
        write_csv(self.path / REJECTED_TABLE, header, rows)

    def _recorded(self, key: str) -> dict[str, Any]:
        records = read_ledger(self.path)
        return {case: record[key] for case, record in records.items() if key in record}

    def _compared(self, key: str) -> dict[str, Mapping[str, Any]]:
        """The entry `key` of each record that has it, with how its scan compares."""
        return {
            case: {
                **record[key],
                "distance": record.get("distance"),
                "notes": record.get("notes", ()),
                "unlike": record.get("unlike", False),
            }
            for case, record in self.records().items()
            if key in record
        }

    def _check_card(self, card: Mapping[str, Any]) -> None:
        """Refuse predictions that were made by another network or with other settings."""
        existing = read_checked(self.path / CARD)
        # first, since of another network all else may differ too
        if existing.get("network_sha256") != card["network_sha256"]:
            raise UsageError(
                f"{self.path}: contains predictions of another run; name another --out"
            )
        # the network decides them, and cards of earlier versions lack them
        for name in {**existing, **card}:
            if name != CHANNEL_NAMES and existing.get(name) != card.get(name):
                raise UsageError(
                    f"{self.path}: was predicted with {name} {existing.get(name)}, "
                    f"not {card.get(name)}; name another --out, or use the same settings"
                )

    def _check_no_foreign_files(self, cases: Sequence[Case]) -> None:
        """Refuse to write over files of somebody else."""
        names = [self.path / name for name in _TABLES]
        names += [path for case in cases for path in self.files.of(case)]
        foreign = [path for path in names if path.exists()]
        if foreign:
            raise UsageError(
                f"{foreign[0]}: exists and was not predicted by this run; name another --out"
            )

    def _mention_others(self, cases: Sequence[Case]) -> None:
        """Say which predictions in the folder are of scans that are not among these cases.

        Such as one with an earlier name of a scan that was renamed since.
        """
        others = sorted(read_ledger(self.path).keys() - {case.id for case in cases})
        if others:
            echo(
                f"{self.path}: has {len(others)} predictions of scans that are not among these, "
                f"such as {printable(others[0])}"
            )
