"""The command `demo`: the whole workflow on synthetic scans with known truth, in minutes."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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
from selfvox.reports.figures import OutlinedScan, draw_curves, draw_outlines
from selfvox.runs.progress import console, echo
from selfvox.settings.verbs import Demo, Evaluate, Finetune, Predict, Prepare, Pretrain, Preview

KIND: Literal["brains", "shapes"] = "brains"
# numbers of scans
UNLABELLED = 20
LABELS = 4
VALIDATION = 3
TEST = 6
SHOWN = 3  # test scans in the picture
TASK = "rotation"  # the one whose gain on these scans was measured, in minutes
# small enough for minutes on a laptop
CROP = (48, 48, 48)
NETWORK = {"name": "plain", "channels": [8, 16, 32, 64]}
PRETRAIN_STEPS = 250
FINETUNE_STEPS = 150


def demo(settings: Demo) -> Path:
    """Generate scans, pre-train, fine-tune with and without it, predict, score, and draw it all.

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
        _run_workflow(out, settings.seed)
    except Stopped as error:  # its message is of a single run, which would go on with --resume
        raise Stopped(
            f"{out}: stopped; remove it and run the demo again", error.exit_code - 128
        ) from None
    return out


def _run_workflow(out: Path, seed: int) -> None:
    scans = out / "scans"
    store = out / "store"
    runs = {"pre-trained": out / "runs" / "pretrained", "from scratch": out / "runs" / "scratch"}

    echo("1 of 5: synthetic scans")
    phantom.write(scans, kind=KIND, count=UNLABELLED + LABELS + VALIDATION + TEST, seed=seed)
    # every scan has a label on disk; the split decides which of them are used
    prepare(Prepare(scans=scans, out=store, test=TEST, validation=VALIDATION, seed=seed))
    preview(Preview(scans=store, out=out / "preview.png", task=TASK, crop=CROP, count=2))

    echo(f"2 of 5: pre-training with the task {TASK}, without labels")
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
        ),
        is_alone=True,
    )

    echo(f"3 of 5: fine-tuning with {LABELS} labels, and the same from scratch")
    _finetune(store, str(encoder), runs["pre-trained"], seed)
    _finetune(store, "none", runs["from scratch"], seed)

    echo("4 of 5: predicting the test scans, each on its own grid")
    predictions = {name: out / "predictions" / run.name for name, run in runs.items()}
    for name, run in runs.items():
        predict(Predict(run=run, scans=scans, out=predictions[name], subset="test"))

    echo("5 of 5: scores and pictures")
    scores = {}
    for name, folder in predictions.items():
        table = out / f"scores_{folder.name}.csv"
        scores[name] = evaluate(Evaluate(predictions=folder, truth=scans / "labels", out=table))
    draw_curves(runs, "dice_mean", out / "curves.png")
    _draw_predictions(scans, predictions, out / "predictions.png")
    _print_scores(scores)
    echo(f"pictures: {out / 'preview.png'}  {out / 'curves.png'}  {out / 'predictions.png'}")
    predicted = predictions["pre-trained"]
    echo(f"look: {_program()} report {shlex.quote(str(predicted))} --out {out / 'report'}")
    echo("next, with your own scans:")
    echo(f"  {_program()} pretrain YOUR_SCANS/ --out runs/pretrained")


def _finetune(store: Path, encoder: str, run: Path, seed: int) -> None:
    """Fine-tune in the same way from an encoder or from scratch."""
    finetune(
        Finetune(
            labelled=store,
            out=run,
            encoder=encoder,
            network=NETWORK,
            labels=LABELS,
            crop=CROP,
            steps=FINETUNE_STEPS,
            augment="light",  # strong needs more steps
            seed=seed,
        ),
        is_alone=True,
    )


def _program() -> str:
    """How to start selfvox in a shell: by its name, or by this Python if the name is not found."""
    script = shutil.which("selfvox")
    if script and Path(script).parent == Path(sys.executable).parent:
        return "selfvox"
    return f"{shlex.quote(sys.executable)} -m selfvox"


def _draw_predictions(scans: Path, predictions: Mapping[str, Path], out: Path) -> None:
    """Draw the first test scans with the truth and each prediction outlined."""
    files = sorted(next(iter(predictions.values())).glob("*.nii.gz"))[:SHOWN]
    cases = []
    for file in files:
        scan = images.read_image(scans / "images" / file.name)
        paths = {"truth": scans / "labels"} | dict(predictions)
        masks = {
            name: images.read_label(folder / file.name, scan) for name, folder in paths.items()
        }
        name = file.name.removesuffix(".nii.gz")
        cases.append(OutlinedScan(name, scan.data[0].astype(np.float32), masks))
    draw_outlines(cases, find_dataset(scans).classes or {}, out)


def _print_scores(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print Dice on the same scans class by class, and the paired difference.

    Args:
        scores: rows of `evaluate`, of the pre-trained network and then of the one from scratch.
    """
    table = Table(
        title=f"Dice on {TEST} test scans after {LABELS} labels", title_justify="left", box=SIMPLE
    )
    for heading in ("class", *scores, "difference, median", "wins"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name in dict.fromkeys(row["name"] for rows in scores.values() for row in rows):
        pretrained, scratch = (
            np.array([row["dice"] for row in rows if row["name"] == name])
            for rows in scores.values()
        )
        table.add_row(
            name,
            _mean_and_sd(pretrained),
            _mean_and_sd(scratch),
            f"{np.median(pretrained - scratch):+.3f}",
            f"{int((pretrained > scratch).sum())} of {len(pretrained)}",
        )
    console.print(table)
    echo("One seed and a tiny budget: this shows the workflow, not the benefit of pre-training.")


def _mean_and_sd(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
