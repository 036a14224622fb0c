"""Does a probe predict which pre-training helps? Its rank correlation with the gain of fine-tuning.

    python experiments/foresight.py STUDY     # made by `selfvox study`, of volumes with label maps

The two classifiers of `--probe` learn from ten labelled training subjects and are scored on the
validation subjects: on all levels of each pre-trained encoder, on all but the coarsest, and on the
coarsest alone. The gain is the Dice of fine-tuning minus that of the from-scratch twin on the test
subjects, for whole and for frozen networks, a mean over the draws of the fewest labels. Spearman's
correlation, over encoders; two draws of labelled subjects; ten seconds per encoder.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from linear_probe import fresh
from scipy.stats import spearmanr

from selfvox.data.preparation.store import Store, open_store
from selfvox.models.encoder import Encoder
from selfvox.runs.strict_json import read_json as read_json
from selfvox.runs.weights import load_strictly, read_encoder
from selfvox.settings import safe_yaml
from selfvox.studies.results import read_rows
from selfvox.training import probe

LABELS = 10
DRAWS = 2


def main() -> None:
    """Print what each encoder reads and gained, then the correlations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    study = parser.parse_args().study
    torch.set_num_threads(1)
    store = open_store(study / "store")
    read = {}
    for run in sorted((study / "pretrain").iterdir()):
        if not (run / "encoder").is_dir():
            continue
        tensors, card = read_encoder(run / "encoder")
        if card.spatial_dims == store.recipe.spatial_dims:
            encoder = fresh(card, 0)
            load_strictly(encoder, tensors, str(run))
            read[run.name] = balanced_accuracy(store, encoder, card.crop)
            print(
                run.name,
                *(f"{measure} {score:.3f}" for measure, score in read[run.name].items()),
                sep="  ",
                flush=True,
            )
    for kind, gain_of in gains(study).items():
        names = sorted(set(gain_of) & set(read))
        print(f"\n{kind}: Spearman's correlation over {len(names)} encoders")
        for measure in read[names[0]]:
            correlation = spearmanr(
                [read[name][measure] for name in names], [gain_of[name] for name in names]
            )[0]
            print(f"{measure:<33}{correlation:+.2f}")


def balanced_accuracy(store: Store, encoder: Encoder, crop: list[int]) -> dict[str, float]:
    """Mean over the draws, for both classifiers and three choices of levels."""
    finer = sum(encoder.channels[:-1])
    encoder.register_forward_hook(
        lambda _, __, maps: [*maps, maps[-1]]
    )  # the probe leaves the last one out
    levels = {"all": slice(None), "but coarsest": slice(finer), "coarsest": slice(finer, None)}
    scores_of = defaultdict(list)
    for draw in range(DRAWS):
        parts = []
        for cases in probe.split_probe_cases(store, (), draw, LABELS):
            with probe.frozen_encoder(encoder):
                parts.append(probe.voxel_features(encoder, store, cases, crop, draw))
        (x, y), (x_new, y_new) = parts
        for name, columns in levels.items():
            scores = probe.classify(x[:, columns], y, x_new[:, columns], y_new)
            for classifier in ("linear", "knn"):
                scores_of[f"{name} {classifier}"].append(scores[classifier])
    return {measure: float(np.mean(scores)) for measure, scores in scores_of.items()}


def gains(study: Path) -> dict[str, dict[str, float]]:
    """Each encoder's mean Dice minus its twin's over the draws of the fewest labels.

    Returns:
        {way of fine-tuning: {encoder: gain}}.
    """
    cells = [
        (read_json(done), done.parent) for done in sorted((study / "cells").glob("*/*/done.json"))
    ]
    fewest = min(facts["labels"] for facts, _ in cells)
    cells = [(facts, folder) for facts, folder in cells if facts["labels"] == fewest]
    twins = {
        (facts["method"], facts["seed"]): dice(folder)
        for facts, folder in cells
        if not facts["twin"]
    }
    gains_of: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for facts, folder in cells:
        settings = safe_yaml.read_yaml(folder / "settings.yaml")
        if facts["twin"]:
            kind = "frozen" if settings["freeze"] == "always" else "whole"
            gain = dice(folder) - twins[facts["twin"], facts["seed"]]
            gains_of[kind][Path(settings["encoder"]).name].append(gain)
    draws = max(
        len(values) for by_encoder in gains_of.values() for values in by_encoder.values()
    )  # of the others, draws are missing
    return {
        kind: {
            name: float(np.mean(values))
            for name, values in by_encoder.items()
            if len(values) == draws
        }
        for kind, by_encoder in gains_of.items()
    }


def dice(cell: Path) -> float:
    """Mean of the test scans and classes."""
    return float(np.mean([float(row["dice"]) for row in read_rows(cell, None)]))


if __name__ == "__main__":
    main()
