"""Files of embeddings: their names, and reading them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selfvox.errors import DataError

VECTORS = "embeddings.npz"
TABLE = "embeddings.csv"
PROBES = "probes.csv"
NEIGHBOURS = "neighbours.csv"


class Embeddings(NamedTuple):
    """What `embed` wrote."""

    ids: list[str]
    subjects: list[str]
    vectors: np.ndarray  # (scan, width)


def read_embeddings(folder: Path) -> Embeddings:
    """The embeddings in a folder.

    Raises:
        DataError: there are none, or they are damaged.
    """
    if not (folder / VECTORS).exists():
        raise DataError(f"{folder}: has no {VECTORS}; make it by `selfvox embed`")
    try:
        with np.load(folder / VECTORS, allow_pickle=False) as arrays:
            ids, vectors = arrays["id"].tolist(), arrays["vector"]
        with (folder / TABLE).open(newline="", encoding="utf-8") as lines:
            subject_of = {row["id"]: row["subject"] for row in csv.DictReader(lines)}
        return Embeddings(ids, [subject_of[case] for case in ids], vectors)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: damaged ({error}); make it again by `selfvox embed`") from None
