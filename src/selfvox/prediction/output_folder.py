"""A folder of predictions: whose they are, and which are there already.

- `ID.nii.gz` or, for pictures, `ID.png`: class numbers; `ID_probabilities.nii.gz` or `.tif` where asked for.
- `classes.json`: the name of each number. `regions.json`: the numbers of each region, where the run has some.
- `predictions.csv` instead of these, where each scan as a whole was classified.
- `predictions.json`: which network made them and how. `cases.jsonl`: hashes of each scan and of what it became.
- `maps/`: of many passes, where asked for: `ID_entropy.nii.gz` and so on, and their picture `ID_maps.png`.
- `rejected.csv`: scans that could not be predicted, and why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfvox.data.formats import image as images
from selfvox.data.formats import strict_json
from selfvox.data.formats.image import SUFFIXES_2D, SUFFIXES_3D, suffix
from selfvox.data.naming import stem
from selfvox.data.preparation.prepare_case import Rejected
from selfvox.data.sources import Case
from selfvox.errors import DataError, UsageError
from selfvox.ops.regions import Regions, regions_to_json
from selfvox.prediction.class_table import TABLE_NAME
from selfvox.runs.atomic_files import folder_lock, sha256, write_csv, write_json, write_text
from selfvox.runs.progress import echo

FORMAT = 1
MAP_ENDING = "_probabilities"
# what is written beside the files of the cases
OURS = (TABLE_NAME, "classes.json", "regions.json", "cases.jsonl", "review.csv", "rejected.csv")


class OutputFolder:
    """A folder of predictions that this process writes.

    Args:
        path: of the folder.
        probabilities: whether a case becomes maps of probabilities too.
        maps: names of further maps that a case becomes.
        answers: whether a case becomes no files, but an answer that its record holds.
    """

    def __init__(
        self, path: Path, probabilities: bool, maps: Sequence[str] = (), answers: bool = False
    ):
        self.path, self.probabilities, self._maps, self.with_answers = (
            path,
            probabilities,
            tuple(maps),
            answers,
        )

    def files(self, case: Case) -> list[Path]:
        """The files that a case becomes, its label first."""
        if self.with_answers:
            return []
        picture = suffix(case.images[0]) in SUFFIXES_2D
        label = self.path / f"{case.id}{'.png' if picture else '.nii.gz'}"
        found = [label]
        if self.probabilities:
            found.append(self.path / f"{case.id}{MAP_ENDING}{'.tif' if picture else '.nii.gz'}")
        return [*found, *self.maps(case).values()]

    def maps(self, case: Case) -> dict[str, Path]:
        """The files of its maps by name, in a folder of their own so that nobody takes them for labels."""
        ending = ".tif" if suffix(case.images[0]) in SUFFIXES_2D else ".nii.gz"
        found = {name: self.path / "maps" / f"{case.id}_{name}{ending}" for name in self._maps}
        return {**found, "picture": self.path / "maps" / f"{case.id}_maps.png"} if found else {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, and keep other processes from writing into it meanwhile.

        Raises:
            UsageError: it is a file.
            BusyError: another process is at it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"{self.path}: is a file; name a folder for the predictions") from None
        with folder_lock(self.path):
            yield

    def open(
        self,
        cases: Sequence[Case],
        how: Mapping[str, Any],
        classes: Mapping[int, str],
        regions: Regions | None = None,
    ) -> list[Case]:
        """Begin in the folder, or go on in it; returns the cases whose predictions are not there yet, or not whole.

        To be called while it is held.

        Raises:
            UsageError: it holds something else, predictions made otherwise than `how`, or of other scans.
        """
        if self._maps:
            (self.path / "maps").mkdir(exist_ok=True)
        for part in (*self.path.glob(".*.part.*"), *self.path.glob("maps/.*.part.*")):
            part.unlink(missing_ok=True)  # of a process that was killed while writing
        card = {"format": FORMAT, **how}
        if (self.path / "predictions.json").exists():
            self._check_same(card)
        else:
            ours = [self.path / name for name in OURS] + [
                path for case in cases for path in self.files(case)
            ]
            foreign = [path for path in ours if path.exists()]
            if foreign:
                raise UsageError(
                    f"{foreign[0]}: is there and was not predicted by this run; name another --out"
                )
            write_json(self.path / "predictions.json", card)
        write_json(
            self.path / "classes.json", {str(value): name for value, name in classes.items()}
        )
        if regions is not None:
            write_json(self.path / "regions.json", regions_to_json(regions))
        kept = self._kept(cases)
        if kept:
            echo(f"{len(kept)} of {len(cases)} predictions are there already and are kept")
        return [case for case in cases if case.id not in kept]

    def record(self, case: Case, **more: Mapping[str, Any] | Sequence[str] | None) -> None:
        """Note what was made of which scan; to be called last, since a case without a record is made again.

        `more` is kept too: the `review` of several passes, the `answer` that is all of the prediction, and what the
        reader `notes` of the scan.
        """
        made = {path.name: sha256(path) for path in self.files(case)}
        line = {
            "id": case.id,
            "scan": _digests(case),
            "files": made,
            **{key: each for key, each in more.items() if each},
        }
        with (self.path / "cases.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def noted(self, what: str) -> dict[str, Mapping[str, Any]]:
        """The `review` or `answer` of each case that has one, by its id."""
        records = _records(self.path / "cases.jsonl")
        return {name: record[what] for name, record in records.items() if what in record}

    def reject(self, refused: Sequence[Rejected], total: int) -> None:
        """Say in `rejected.csv` which of all scans could not be predicted, and why; no file where there is none.

        Raises:
            DataError: there are some.
        """
        table = self.path / "rejected.csv"
        if not refused:
            table.unlink(missing_ok=True)
            return
        write_csv(table, ["id", "file", "reason"], map(dataclasses.astuple, refused))
        raise DataError(
            f"{self.path}: {len(refused)} of {total} scans could not be predicted, see rejected.csv there; "
            "repair or remove them and run the same command again"
        )

    def _check_same(self, card: Mapping[str, Any]) -> None:
        before = strict_json.read_json(self.path / "predictions.json")
        if not isinstance(before, dict) or before.get("network_sha256") != card["network_sha256"]:
            raise UsageError(f"{self.path}: holds predictions of another run; name another --out")
        for name in {**before, **card}:
            if before.get(name) != card.get(name):
                was = f"was predicted with {name} {before.get(name)}, not {card.get(name)}"
                raise UsageError(f"{self.path}: {was}; name another --out, or go on as before")

    def _kept(self, cases: Sequence[Case]) -> set[str]:
        """The cases whose predictions are whole; forgets the records of the others."""
        ledger = self.path / "cases.jsonl"
        records = _records(ledger)
        kept = set()
        for case in cases:
            if case.id not in records:
                continue
            if records[case.id]["scan"] != _digests(case):
                raise UsageError(
                    f"{self.path}: holds the prediction of another scan called {case.id}; name another --out"
                )
            if self._is_kept(case, records[case.id]["files"]):
                kept.add(case.id)
            else:
                del records[case.id]
        write_text(ledger, "".join(json.dumps(record) + "\n" for record in records.values()))
        return kept

    def _is_kept(self, case: Case, digests: Mapping[str, str]) -> bool:
        """Whether the case's files are whole, or somebody has corrected its label, which is not to be written over."""
        files = self.files(case)
        if files and _is_corrected(files[0], digests.get(files[0].name)):
            echo(
                f"{files[0].name}: was changed since it was predicted; kept as it is, and nothing beside it made anew"
            )
            return True
        return all(_is_whole(path, digests.get(path.name)) for path in files)


def probability_file(label: Path) -> Path:
    """Where the probabilities lie that belong to a file of class numbers."""
    ending = suffix(label)
    return label.with_name(
        f"{stem(label, ending)}{MAP_ENDING}{'.tif' if ending in SUFFIXES_2D else '.nii.gz'}"
    )


def holds_regions(path: Path) -> bool:
    """Whether the maps of probabilities in a folder are of regions, as a network trained on these makes them."""
    file = path / "predictions.json"
    card = strict_json.read_json(file) if file.exists() else None
    return isinstance(card, dict) and card.get("trained_on") == "regions"


def label_files(path: Path) -> dict[str, Path]:
    """The files of class numbers in a folder, by case id; maps of probabilities beside them are left out.

    Raises:
        DataError: it is no folder, or two files have the same id.
    """
    if not path.is_dir():
        raise DataError(f"{path}: not a folder; name the folder that the labels lie in")
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        ending = suffix(file)
        if not ending or file.name.startswith("."):
            continue
        case_id = stem(file, ending)
        if case_id in found:
            raise DataError(
                f"{path}: {found[case_id].name} and {file.name} are both called {case_id}; keep one"
            )
        found[case_id] = file
    maps = [
        name
        for name in found
        if name.endswith(MAP_ENDING) and name.removesuffix(MAP_ENDING) in found
    ]
    for name in maps:
        del found[name]
    if not found:
        kinds = " ".join((*SUFFIXES_3D, *SUFFIXES_2D))
        raise DataError(
            f"{path}: holds no labels ({kinds}); name the folder itself that they lie in"
        )
    return found


def _records(ledger: Path) -> dict[str, dict[str, Any]]:
    """What is written of each case; a half-written last line is left out."""
    found = {}
    for line in ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            kept = {"id": record["id"], "scan": record["scan"], "files": dict(record["files"])}
            found[record["id"]] = kept | {
                key: record[key] for key in ("review", "answer", "notes") if key in record
            }
    return found


def _is_corrected(label: Path, digest: str | None) -> bool:
    """Whether it is another label than the one that was predicted."""
    if digest is None or not label.is_file() or sha256(label) == digest:
        return False
    try:
        images.read_grid(label)
    except DataError:
        return False
    return True


def _is_whole(path: Path, digest: str | None) -> bool:
    if digest is None or not path.is_file():
        return False
    if sha256(path) != digest:
        echo(f"{path.name}: damaged; predicting it again")
        return False
    return True


def _digests(case: Case) -> list[str]:
    return [sha256(path) if path.is_file() else "" for path in case.images]
