"""What a linear map reads from the frozen encoders of a study, beside the same encoder before any training.

    python benchmarks/linear_probe.py STUDY     # a folder that `selfvox study` made, of volumes with label maps

The labelled subjects of each draw are those that the study trains on with that seed; its test subjects are scored. The
difference to the untrained encoder is paired by draw and subject; its interval draws both anew.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from embed import probe

from selfvox.data.store import Store, open_store
from selfvox.models.encoder import Encoder, build
from selfvox.weights import load_into, load_part

LABELS, DRAWS, UNTRAINED = (3, 5), 5, 2


def main() -> None:
    """Print one table, and keep the scores in STUDY/linear_probe.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    study = parser.parse_args().study
    torch.set_num_threads(1)
    store, kept = open_store(study / "store"), study / "linear_probe.json"
    scores = json.loads(kept.read_text()) if kept.exists() else {}
    print("labels  pre-training             Dice, mean ± sd over draws   minus untrained: mean, 95 % interval, wins")
    for labels in LABELS:
        untrained: dict[str, np.ndarray] = {}
        for run in sorted((study / "pretrain").iterdir()):
            if not (run / "encoder").is_dir():
                continue
            card = load_part(run / "encoder", "encoder")[1]
            if card["spatial_dims"] != store.recipe.spatial_dims:  # that of a 2D twin
                continue
            network = json.dumps(card["network"], sort_keys=True)
            if network not in untrained:
                found = [
                    probed(scores, f"untrained {n} {network}", labels, store, fresh(card, n)) for n in range(UNTRAINED)
                ]
                untrained[network] = np.mean(found, 0)
                show("untrained", labels, untrained[network])
            encoder = fresh(card, 0)
            load_into(encoder, load_part(run / "encoder", "encoder")[0], str(run))
            show(run.name, labels, probed(scores, run.name, labels, store, encoder), untrained[network])
            kept.write_text(json.dumps(scores))


def fresh(card: dict, seed: int) -> Encoder:
    """The encoder of this card, with random weights."""
    torch.manual_seed(seed)
    return build(card["network"], card["spatial_dims"], card["in_channels"])


def probed(scores: dict, name: str, labels: int, store: Store, encoder: Encoder) -> np.ndarray:
    """(draw, test subject), computed once."""
    key = f"{name}, {labels} labels"
    if key not in scores:
        scores[key] = probe(store, encoder, labels, DRAWS, test=True).tolist()
    return np.array(scores[key])


def show(name: str, labels: int, dice: np.ndarray, twin: np.ndarray | None = None) -> None:
    """One line of the table."""
    of_draws = dice.mean(1)
    line = f"{labels:>6}  {name:<25}{of_draws.mean():.3f} ± {of_draws.std(ddof=1):.3f}"
    if twin is not None:
        rng, difference = np.random.default_rng(0), dice - twin
        drawn = [
            difference[rng.integers(0, n, n)][:, rng.integers(0, m, m)].mean() for n, m in [difference.shape] * 2000
        ]
        low, high = np.percentile(drawn, [2.5, 97.5])
        wins = int((difference.mean(1) > 0).sum())
        line += f"{'':<17}{difference.mean():+.3f}  {low:+.3f} ... {high:+.3f}  {wins} of {len(dice)}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
