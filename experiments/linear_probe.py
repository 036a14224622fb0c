"""What a linear map reads from the frozen encoders of a study, compared with untrained encoders.

    python experiments/linear_probe.py STUDY     # made by `selfvox study`, of volumes with labels

The labelled subjects of each draw are those that the study trains on with that seed; its test
subjects are scored. The difference to the untrained encoder is paired by draw and subject; its
interval resamples both. First all levels are read; then all but the coarsest, which can show
where in the scan a voxel is. What position alone can predict is measured by an atlas: the most
common class of the label maps, aligned by their centres.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from embed import probe

from selfvox.data.preparation.split import choose_subset, read_split
from selfvox.data.preparation.store import Store, open_store
from selfvox.models.build import build_encoder
from selfvox.models.encoder import Encoder
from selfvox.ops.metrics import dice_per_class
from selfvox.runs.card import Card
from selfvox.runs.weights import load_strictly, read_encoder

LABELS = (3, 5)
DRAWS = 5
UNTRAINED = 2
LEVELS = {"all levels": slice(None), "without the coarsest": slice(-1)}


def main() -> None:
    """Print one table, and keep the scores in STUDY/linear_probe.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    study = parser.parse_args().study
    torch.set_num_threads(1)
    store = open_store(study / "store")
    file = study / "linear_probe.json"
    scores = json.loads(file.read_text()) if file.exists() else {}
    print(
        "labels  pre-training                     Dice, mean ± sd over draws"
        "   minus untrained: mean, 95 %, wins"
    )
    for labels, named in itertools.product(LABELS, LEVELS):
        print(named)
        show("atlas", labels, atlas(store, labels))
        untrained: dict[str, np.ndarray] = {}
        for run in sorted((study / "pretrain").iterdir()):
            if not (run / "encoder").is_dir():
                continue
            card = read_encoder(run / "encoder")[1]
            if card.spatial_dims != store.recipe.spatial_dims:  # that of a 2D twin
                continue
            network = json.dumps(card.network, sort_keys=True)
            if network not in untrained:
                draws = [
                    probed(scores, f"untrained {n} {network}", labels, named, store, fresh(card, n))
                    for n in range(UNTRAINED)
                ]
                untrained[network] = np.mean(draws, 0)
                show("untrained", labels, untrained[network])
            encoder = fresh(card, 0)
            load_strictly(encoder, read_encoder(run / "encoder")[0], str(run))
            show(
                run.name,
                labels,
                probed(scores, run.name, labels, named, store, encoder),
                untrained[network],
            )
            file.write_text(json.dumps(scores))


def fresh(card: Card, seed: int) -> Encoder:
    """The encoder of this card, with random weights."""
    torch.manual_seed(seed)
    return build_encoder(card.network, card.spatial_dims, card.in_channels)


def probed(
    scores: dict, name: str, labels: int, levels: str, store: Store, encoder: Encoder
) -> np.ndarray:
    """(draw, test subject), computed once."""
    key = f"{name}, {labels} labels, {levels}"
    if key not in scores:
        scores[key] = probe(
            store, encoder, labels, DRAWS, test=True, levels=LEVELS[levels]
        ).tolist()
    return np.array(scores[key])


def atlas(store: Store, labels: int) -> np.ndarray:
    """Dice of the commonest class at each place among the labelled maps: (draw, test subject)."""
    split = read_split(store.path / "split.json")
    edges = np.max([case.shape for case in store.cases], 0)
    classes = len(store.classes or {})
    maps = {}
    for case in store.cases:
        have = store.label_crop(case, [0] * len(edges), case.shape).reshape(case.shape)
        before = (edges - case.shape) // 2
        maps[case.subject] = np.pad(have, [*zip(before, edges - case.shape - before, strict=True)])
    scores = []
    for draw in range(DRAWS):
        votes = [np.eye(classes)[maps[subject]] for subject in choose_subset(split, draw, labels)]
        guess = np.sum(votes, 0).argmax(-1)
        scores.append(
            [np.mean(dice_per_class(guess, maps[subject], classes)) for subject in split.test]
        )
    return np.array(scores)


def show(name: str, labels: int, dice: np.ndarray, twin: np.ndarray | None = None) -> None:
    """One line of the table."""
    of_draws = dice.mean(1)
    line = f"{labels:>6}  {name:<33}{of_draws.mean():.3f} ± {of_draws.std(ddof=1):.3f}"
    if twin is not None:
        rng = np.random.default_rng(0)
        difference = dice - twin
        drawn = [
            difference[rng.integers(0, n, n)][:, rng.integers(0, m, m)].mean()
            for n, m in [difference.shape] * 2000
        ]
        low, high = np.percentile(drawn, [2.5, 97.5])
        wins = int((difference.mean(1) > 0).sum())
        line += (
            f"{'':<17}{difference.mean():+.3f}  {low:+.3f} ... {high:+.3f}  {wins} of {len(dice)}"
        )
    print(line, flush=True)


if __name__ == "__main__":
    main()
