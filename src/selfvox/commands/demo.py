"""The verb `demo`: the whole way on synthetic scans whose truth is known, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from selfvox.commands.evaluate import evaluate
from selfvox.commands.finetune import finetune
from selfvox.commands.predict import predict
from selfvox.commands.prepare import prepare
from selfvox.commands.pretrain import pretrain
from selfvox.commands.preview import preview
from selfvox.data import phantom
from selfvox.data.formats import image as images
from selfvox.data.sources import find_dataset
from selfvox.errors import Stopped, UsageError
from selfvox.report.figures import OutlinedScan, draw_curves, draw_outlines
from selfvox.runs.progress import console, echo
from selfvox.settings.verbs import Demo, Evaluate, Finetune, Predict, Prepare, Pretrain, Preview

UNLABELLED, LABELS, VALIDATION, TEST = 20, 4, 3, 6
TASK = "rotation"
CROP = (48, 48, 48)
NETWORK = {"name": "plain", "channels": [8, 16, 32, 64]}
PRETRAIN_STEPS, FINETUNE_STEPS = 250, 150


def demo(settings: Demo) -> Path:
    """Make synthetic scans, pre-train, fine-tune beside the from-scratch twin, predict, score, and draw it all.

    Returns:
        The folder of it all.

    Raises:
        UsageError: the folder is not empty.
        Stopped: a signal came.
    """
    out = settings.out
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: is not empty; remove it, or name another --out")
    try:
        _go_all_the_way(out, settings.seed)
    except Stopped as error:  # of a run, which by itself would go on
        raise Stopped(f"{out}: stopped; remove it to begin anew", error.exit_code - 128) from None
    return out


def _go_all_the_way(out: Path, seed: int) -> None:
    echo("1 of 5: synthetic scans")
    scans, store = out / "scans", out / "store"
    phantom.write(scans, kind="brains", count=UNLABELLED + LABELS + VALIDATION + TEST, seed=seed)
    # every scan has a label on disk: the split decides who may look at it
    prepare(Prepare(scans=scans, out=store, test=TEST, validation=VALIDATION, seed=seed))
    preview(Preview(scans=store, out=out / "preview.png", task=TASK, crop=CROP, count=2))

    echo(f"2 of 5: pre-training by {TASK}, no label used")
    runs = {"pre-trained": out / "runs" / "pretrained", "from scratch": out / "runs" / "scratch"}
    encoder = pretrain(
        Pretrain(
            scans=store,
            out=out / "runs" / TASK,
            task=TASK,
            network=NETWORK,
            crop=CROP,
            steps=PRETRAIN_STEPS,
            batch=4,
            seed=seed,
        )
    )
    echo(f"3 of 5: fine-tuning with {LABELS} labels, and the from-scratch twin with the same")
    for name, run in runs.items():
        finetune(
            Finetune(
                labelled=store,
                out=run,
                encoder=str(encoder) if name == "pre-trained" else "none",
                network=NETWORK,
                labels=LABELS,
                crop=CROP,
                steps=FINETUNE_STEPS,
                seed=seed,
            )
        )
    echo("4 of 5: predicting the test scans, each on its own grid")
    predictions = {name: out / "predictions" / run.name for name, run in runs.items()}
    for name, run in runs.items():
        predict(Predict(run=run, scans=scans, out=predictions[name], subset="test"))

    echo("5 of 5: scores and pictures")
    scores = {
        name: evaluate(
            Evaluate(
                predictions=folder, truth=scans / "labels", out=out / f"scores_{folder.name}.csv"
            )
        )
        for name, folder in predictions.items()
    }
    draw_curves(runs, "dice_mean", out / "curves.png")
    _draw_predictions(scans, predictions, out / "predictions.png")
    _print_table(scores)
    echo(f"pictures: {out / 'preview.png'}  {out / 'curves.png'}  {out / 'predictions.png'}")
    echo("now with your own scans:")
    echo("  selfvox pretrain YOUR_SCANS/ --out runs/simclr")


def _draw_predictions(scans: Path, predictions: dict[str, Path], out: Path) -> None:
    """The first test scans with the truth and each twin's prediction outlined."""
    files = sorted(next(iter(predictions.values())).glob("*.nii.gz"))[:3]
    cases = []
    for file in files:
        scan = images.read_image(scans / "images" / file.name)
        masks = {"truth": images.read_label(scans / "labels" / file.name, scan)}
        masks |= {
            name: images.read_label(folder / file.name, scan)
            for name, folder in predictions.items()
        }
        cases.append(
            OutlinedScan(file.name.removesuffix(".nii.gz"), scan.data[0].astype(np.float32), masks)
        )
    draw_outlines(cases, find_dataset(scans).classes or {}, out)


def _print_table(scores: dict[str, list[dict[str, Any]]]) -> None:
    """Dice of the twins on the same scans, class by class, and the paired difference, whoever wins."""
    table = Table(
        title=f"Dice on {TEST} test scans after {LABELS} labels", title_justify="left", box=SIMPLE
    )
    for heading in ("class", *scores, "difference, median", "wins"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name in dict.fromkeys(row["name"] for rows in scores.values() for row in rows):
        first, second = (
            np.array([row["dice"] for row in rows if row["name"] == name])
            for rows in scores.values()
        )
        means = [f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" for values in (first, second)]
        wins = f"{int((first > second).sum())} of {len(first)}"
        table.add_row(name, *means, f"{np.median(first - second):+.3f}", wins)
    console.print(table)
    echo("One seed and a toy budget: this shows how it works, not what pre-training is worth.")
