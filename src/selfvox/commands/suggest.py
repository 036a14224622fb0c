"""The verb `suggest`: which scans to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from selfvox.data.naming import printable
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError
from selfvox.evaluation.embedding_files import read_embeddings
from selfvox.evaluation.embeddings import distances
from selfvox.evaluation.suggestions import farthest_first
from selfvox.prediction.predicted_scans import tested_subjects
from selfvox.prediction.read_predictions import read_reviews
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Suggest

# columns of review.csv that say how good a prediction is, the better known first
_TRUST = ("predicted dice", "trust")
_LEAST_WEIGHT = 1e-3  # of a scan that is trusted fully


def suggest(settings: Suggest) -> list[dict[str, Any]]:
    """Rank scans for labelling, print them, and write them as a table on request.

    Raises:
        DataError: the vectors or the trust are missing, or no scan is left to suggest.
    """
    ids, subjects, vectors = read_embeddings(settings.embeddings)
    trust = {} if settings.predictions is None else _read_trust(settings.predictions)
    labelled = _labelled_subjects(settings.labelled)
    # labelled for the test already
    held_out = set() if settings.predictions is None else tested_subjects(settings.predictions)
    known = [number for number, subject in enumerate(subjects) if subject in labelled]
    candidates = [
        number
        for number, (case, subject) in enumerate(zip(ids, subjects, strict=True))
        if subject not in labelled | held_out and (case in trust or not trust)
    ]
    if not candidates:
        raise DataError(
            f"{settings.embeddings}: no scan is left to suggest; name predictions of other scans"
        )
    apart = distances(vectors)
    doubt = np.array([1 - trust.get(case, 0.0) for case in ids])
    if settings.by == "trust":
        chosen = sorted(candidates, key=lambda number: -doubt[number])[: settings.count]
    else:
        uses_doubt = bool(trust) and settings.by is None
        weights = np.maximum(doubt, _LEAST_WEIGHT) if uses_doubt else np.ones(len(ids))
        chosen = farthest_first(apart, known, candidates, weights, settings.count)
    rows: list[dict[str, Any]] = []
    for rank, number in enumerate(chosen, start=1):
        others = [*known, *chosen[: rank - 1]]
        distance = float(apart[number, others].min()) if others else None
        rows.append(
            {
                "rank": rank,
                "id": ids[number],
                "subject": subjects[number],
                "trust": trust.get(ids[number]),
                "distance": distance,
            }
        )
    for row in rows:
        of_trust = "" if row["trust"] is None else f"  trust {row['trust']:.2f}"
        far = "" if row["distance"] is None else f"  distance {row['distance']:.2f}"
        echo(f"{row['rank']:3d}  {printable(row['id'])}{of_trust}{far}")
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(settings.out, list(rows[0]), (row.values() for row in rows))
        echo(f"table: {settings.out}")
    return rows


def _read_trust(predictions: Path) -> dict[str, float]:
    """Predicted Dice, or else trust, of each case."""
    reviews = read_reviews(predictions)
    for column in _TRUST:
        values = {case: row[column] for case, row in reviews.items() if column in row}
        if values:
            return values
    raise DataError(
        f"{predictions}: has no trust in its scans; predict them by several passes, --passes 20"
    )


def _labelled_subjects(labelled: Path | None) -> set[str]:
    if labelled is None:
        return set()
    cases = find_dataset(labelled).cases
    return {case.subject for case in cases if case.is_labelled}
