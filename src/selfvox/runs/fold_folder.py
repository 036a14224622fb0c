"""A folder of folds: the runs of one cross-validated ensemble, and what each scored on its fold."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

from selfvox.errors import UsageError
from selfvox.runs.atomic_files import write_json
from selfvox.runs.progress import echo
from selfvox.runs.weights import read_network_card

FOLDS_FILE = "folds.json"  # in a folder of the runs of all folds
FORMAT = 1


def fold_folder(out: Path, number: int) -> Path:
    """The run of fold `number`, from 1 on."""
    return out / f"fold_{number}"


def fold_runs(path: Path) -> list[Path]:
    """The runs of a folder of folds, in their order; none if it is another folder."""
    if not (path / FOLDS_FILE).exists():
        return []
    folders = (fold_folder(path, number) for number in itertools.count(1))
    return list(itertools.takewhile(Path.is_dir, folders))


def name_networks(runs: list[Path]) -> list[Path]:
    """The runs, with those of its folds in place of each folder of folds."""
    return [network for run in runs for network in fold_runs(run) or [run]]


def check_folds(out: Path) -> None:
    """Refuse a folder that is a run or a store itself.

    Raises:
        UsageError: it is.
    """
    for name, kind in (("settings.yaml", "run"), ("manifest.json", "store")):
        if (out / name).exists():
            raise UsageError(
                f"{out}: is a {kind}, and --folds makes a folder of runs; name another --out"
            )


def write_folds(out: Path, count: int) -> None:
    """Print what the folds scored, and write the record, which says that all are finished."""
    scores: list[float | None] = []
    name = "score"
    for number in range(1, count + 1):
        card = read_network_card(fold_folder(out, number) / "network")
        name = card.score_name
        scores.append(card.score)
        value = "not defined" if card.score is None else f"{card.score:.3f}"
        echo(f"fold {number}: {name.replace('_', ' ')} {value} on its own subjects")
    defined = [score for score in scores if score is not None]
    summary: dict[str, float] = {}
    if defined:
        summary["mean"] = statistics.fmean(defined)
        summary["sd"] = statistics.stdev(defined) if len(defined) > 1 else 0.0
        echo(
            f"cross-validated {name.replace('_', ' ')}: {summary['mean']:.3f}, standard deviation "
            f"{summary['sd']:.3f} over {len(defined)} folds"
        )
    write_json(
        out / FOLDS_FILE,
        {"format": FORMAT, "folds": count, "score": name, "scores": scores, **summary},
    )
