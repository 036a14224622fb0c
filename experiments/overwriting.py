"""How much of a pre-trained encoder is left while it is fine-tuned: linear CKA of each level.

    python experiments/overwriting.py STORE OUT [--pretrain-steps 300] [--steps 500]

Pre-trains by rotation and fine-tunes on five labels, once for each schedule. The features of
validation scans are compared with those of the pre-trained encoder 5, 20 and 100 steps after the
release, and at the end (Kornblith et al. 2019, eq. 3, in its form for features).
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn

import selfvox
from selfvox.data.preparation.split import read_split
from selfvox.data.preparation.store import open_store
from selfvox.data.sampling.crops import Crops
from selfvox.models.build import load_encoder
from selfvox.training import finetune_run
from selfvox.training.feature_survival import linear_cka
from selfvox.training.schedule import TrainingPlan

SINCE_RELEASE = (5, 20, 100)
CROP = (32, 32, 32)
CHANNELS = (8, 16, 32, 64)
CROPS = 24
VOXELS = 4000  # of each level
SCHEDULES = {
    "abrupt, rate x 1 (as before)": {"encoder_lr": 1.0},
    "ramp, rate x .1 (default)": {},
    "ramp, rate x 1": {"encoder_lr": 1.0},
    "ramp, rate x .3": {"encoder_lr": 0.3},
    "sawtooth, rate x .1, a quarter frozen": {"schedule": "sawtooth", "warmup": 0.25},
}


def main() -> None:
    """Print one line per schedule, and write OUT/overwriting.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.out
    encoder = out / "pretrained"
    if not (encoder / "encoder").exists():
        selfvox.pretrain(
            arguments.store,
            out=encoder,
            task="rotation",
            steps=arguments.pretrain_steps,
            crop=CROP,
            network={"name": "plain", "channels": CHANNELS},
            device="cpu",
        )
    results = {}
    for number, (name, settings) in enumerate(SCHEDULES.items()):
        measured = measure(
            arguments, encoder, out / f"{number}-seed-{arguments.seed}", name, settings
        )
        results[name] = measured
        print(name, json.dumps(measured), flush=True)
    (out / "overwriting.json").write_text(json.dumps(results, indent=1))


def measure(
    arguments: argparse.Namespace, encoder: Path, out: Path, name: str, settings: dict
) -> dict:
    """The linear CKA of each level by the steps since the release, and the validation Dice."""
    store = open_store(arguments.store)
    validation = read_split(arguments.store / "split.json").validation
    cases = [case for case in store.cases if case.subject in validation]
    pretrained, card = load_encoder(encoder, None)
    crops = Crops(store, cases, card.crop, seed=7)
    images = torch.stack([crops[number]["image"] for number in range(CROPS)])
    before = features(pretrained, images)
    release = round(settings.get("warmup", 0.0625) * arguments.steps)
    marks = {release + since: since for since in SINCE_RELEASE} | {arguments.steps: "end"}
    similarity = {}
    train = finetune_run.train

    def watched(*positional, hooks, encoder, **named):
        def after_step(step: int) -> dict[str, float]:
            if step in marks:
                after = features(copy.deepcopy(encoder), images)
                pairs = zip(before, after, strict=True)
                similarity[marks[step]] = [round(linear_cka(*pair), 3) for pair in pairs]
            return hooks.after_step(step)

        return train(
            *positional, hooks=finetune_run.Hooks(after_step=after_step), encoder=encoder, **named
        )

    encoder_rate = TrainingPlan.encoder_rate_at
    finetune_run.train = watched
    if name.startswith("abrupt"):
        TrainingPlan.encoder_rate_at = TrainingPlan.learning_rate_at
    try:
        run = selfvox.finetune(
            arguments.store,
            out=out,
            encoder=str(encoder),
            labels=5,
            steps=arguments.steps,
            seed=arguments.seed,
            crop=CROP,
            validate_every=arguments.steps,
            device="cpu",
            **settings,
        )
    finally:
        finetune_run.train = train
        TrainingPlan.encoder_rate_at = encoder_rate
    saved = json.loads((run / "network" / "network.json").read_text())
    return {"dice": round(saved["validation_dice"], 4), "step": saved["step"], "cka": similarity}


@torch.no_grad()
def features(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    """Features (voxel, channel) of each level, of the same voxels every time."""
    drawn = torch.Generator().manual_seed(0)
    result = []
    for maps in encoder.eval()(images):
        flat = maps.double().movedim(1, -1).flatten(0, -2)
        result.append(flat[torch.randperm(len(flat), generator=drawn)[:VOXELS]])
    return result


if __name__ == "__main__":
    main()
