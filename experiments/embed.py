"""Which pooling of the coarsest map serves pre-training best: mean, corners or maximum.

    python experiments/embed.py STORE     # a store with labels and a split

Each pooling pre-trains an encoder without the test subjects. A linear map of its frozen features,
from the voxels of 5 labelled subjects, is scored on the validation subjects (3 draws of 5). Masked
reconstruction uses no pooling, so it is left out. One thread, fp32; about 25 minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfvox.data.preparation.split import choose_subset, read_split
from selfvox.data.preparation.store import Store, open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crop_size import choose_crop
from selfvox.data.sampling.crops import Crops
from selfvox.models.build import build_encoder
from selfvox.models.encoder import Encoder
from selfvox.ops.losses import dice_cross_entropy
from selfvox.ops.metrics import dice_per_class
from selfvox.tasks import task_from_setting
from selfvox.training.batches import batch_generator

CROP = (32, 40, 32)
LABELS = 5
DRAWS = 3
NETWORK = {  # tiles of 8 voxels become one: no instance norm
    "name": "plain",
    "norm": "group",
    "channels": [8, 16, 32, 64],
    "blocks": 2,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
}
TASKS: dict[str, tuple[dict[str, Any], int, int]] = {  # options, batch, steps
    "rotation": ({}, 8, 300),
    "relative_location": ({"queries": 8}, 16, 400),
    "jigsaw": ({}, 4, 400),
    "cpc": ({}, 4, 300),
    "exemplar": ({"objective": "contrastive"}, 12, 100),
    "simclr": ({"ops_per_view": 2, "temperature": 0.2}, 12, 100),
}
CANDIDATES: dict[
    str, tuple[int, Callable[[Tensor], Tensor]]
] = {  # width per channel, pooling of the coarsest map
    "mean": (1, lambda x: x.flatten(2).mean(2)),
    "corners": (8, lambda x: F.adaptive_avg_pool3d(x, 2).flatten(1)),
    "maximum": (1, lambda x: x.flatten(2).amax(2)),
}


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS), help="only these")
    parser.add_argument("--steps", type=int, help="of pre-training, instead of each task's own")
    arguments = parser.parse_args()
    store = open_store(arguments.store)
    torch.set_num_threads(1)
    print(
        "task               embed     loss, last 50 steps   accuracy   probe Dice of each draw",
        flush=True,
    )
    print(
        f"{'untrained':<60}{shown(probe(store, untrained(store)))}",
        flush=True,
    )
    for task in arguments.tasks:
        for name, (factor, pool) in CANDIDATES.items():
            Encoder.width = property(lambda encoder, factor=factor: factor * encoder.channels[-1])
            Encoder.embed = lambda encoder, x, pool=pool: pool(encoder(x)[-1])
            encoder, loss, accuracy = pretrain(store, task, arguments.steps)
            print(
                f"{task:<19}{name:<10}{loss:.3f}  {accuracy:.2f}   {shown(probe(store, encoder))}",
                flush=True,
            )


def untrained(store: Store) -> Encoder:
    """A fresh encoder, the same each time."""
    torch.manual_seed(0)
    return build_encoder(NETWORK, 3, len(store.recipe.channel_names))


def pretrain(store: Store, name: str, steps: int | None = None) -> tuple[Encoder, float, float]:
    """The encoder, and the mean loss and accuracy of the last 50 steps."""
    options, batch, usual = TASKS[name]
    steps = steps or usual
    task = task_from_setting({"name": name, **options}).configure(CROP, (1, 1, 1))
    encoder = untrained(store)
    head = task.head(encoder)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    held_out = set(read_split(store.path / "split.json").test)
    crops = Crops(store, [case for case in store.cases if case.subject not in held_out], CROP, 0)
    last = []
    for step in range(steps):
        images = torch.stack([crops[step * batch + i]["image"] for i in range(batch)])
        outcome = task.loss(encoder, head, task.make_batch(images, batch_generator(0, 0, step)))
        outcome.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        last = [*last[-49:], (float(outcome.loss.detach()), float(outcome.metrics["accuracy"]))]
    loss, accuracy = np.mean(last, 0)
    return encoder, float(loss), float(accuracy)


def probe(
    store: Store,
    encoder: Encoder,
    labels: int = LABELS,
    draws: int = DRAWS,
    test: bool = False,
    levels: slice = slice(None),
) -> np.ndarray:
    """Dice of a linear map of the frozen features of some levels.

    Returns:
        (draw of labelled subjects, subject scored).
    """
    split = read_split(store.path / "split.json")
    by_subject = {case.subject: case for case in store.cases}
    scored = split.test if test else split.validation
    held_out = [voxels(store, encoder, by_subject[subject], levels) for subject in scored]
    scores = []
    for draw in range(draws):
        chosen = [by_subject[subject] for subject in choose_subset(split, draw, labels)]
        x, y = (
            torch.cat(parts)
            for parts in zip(
                *(voxels(store, encoder, case, levels) for case in chosen), strict=True
            )
        )
        mean, deviation = x.mean(0), x.std(0) + 1e-6
        torch.manual_seed(draw)
        linear = torch.nn.Linear(x.shape[1], len(store.classes or {}))
        optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-2)
        for _ in range(150):
            sample = torch.randint(len(x), (20_000,))
            loss = dice_cross_entropy(
                linear((x[sample] - mean) / deviation).T[None], y[sample][None]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        dice = []
        with torch.no_grad():
            for x_new, y_new in held_out:
                guess = linear((x_new - mean) / deviation).argmax(1)
                dice.append(
                    np.mean(dice_per_class(guess.numpy(), y_new.numpy(), len(store.classes or {})))
                )
        scores.append(dice)
    return np.array(scores)


def shown(scores: np.ndarray) -> str:
    """The mean of each draw."""
    return "  ".join(f"{score:.3f}" for score in scores.mean(1))


@torch.no_grad()
def voxels(
    store: Store, encoder: Encoder, case: StoredCase, levels: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """(voxel, feature) of some levels, brought to the scan's grid, and the labels (voxel,)."""
    size = choose_crop(None, [case])
    start = [(have - want) // 2 for have, want in zip(case.shape, size, strict=True)]
    image = torch.from_numpy(store.crop(case, start, size))[None]
    maps = encoder(image)[levels]
    features = torch.cat(
        [F.interpolate(level.float(), size=size, mode="trilinear") for level in maps], 1
    )
    label = torch.from_numpy(store.label_crop(case, start, size).astype(np.int64))
    return features[0].flatten(1).T, label.flatten()


if __name__ == "__main__":
    main()
