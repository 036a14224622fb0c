"""The papers' own numbers, to be drawn beside a study's and never mixed with them."""

from __future__ import annotations

from typing import NamedTuple


class Stated(NamedTuple):
    """A score that a paper states."""

    model: str
    fraction: float
    score: float


# Taleb et al. 2020, Table 1 (all labels of BraTS 2018, its validation set), Dice
_TABLE = {
    "from scratch": {"ET": 0.7638, "WT": 0.8782, "TC": 0.8311},
    "3D-CPC": {"ET": 0.8083, "WT": 0.8988, "TC": 0.8511},
    "3D-RPL": {"ET": 0.8128, "WT": 0.9071, "TC": 0.8612},
    "3D-Jigsaw": {"ET": 0.7966, "WT": 0.8920, "TC": 0.8252},
    "3D-Rotation": {"ET": 0.8021, "WT": 0.8963, "TC": 0.8475},
    "3D-Exemplar": {"ET": 0.7946, "WT": 0.9080, "TC": 0.8387},
}
# Taleb et al. 2020, Figure 2, by the numbers in the authors' plot script; at all labels Table 1 is taken
_FIGURE = {
    "from scratch": {0.1: 0.42, 0.25: 0.58, 0.5: 0.72},
    "3D-CPC": {0.1: 0.76, 0.25: 0.78, 0.5: 0.82},
    "3D-RPL": {0.1: 0.74, 0.25: 0.75, 0.5: 0.80},
    "3D-Jigsaw": {0.1: 0.71, 0.25: 0.76, 0.5: 0.81},
    "3D-Rotation": {0.1: 0.74, 0.25: 0.77, 0.5: 0.80},
    "3D-Exemplar": {0.1: 0.75, 0.25: 0.77, 0.5: 0.80},
}


def brats2018(name: str) -> list[Stated]:
    """What paper A states of a region: WT, TC or ET; nothing of any other name."""
    few = _FIGURE if name == "WT" else {}
    stated = [
        Stated(model, share, score)
        for model, curve in few.items()
        for share, score in curve.items()
    ]
    return stated + [
        Stated(model, 1.0, scores[name]) for model, scores in _TABLE.items() if name in scores
    ]
