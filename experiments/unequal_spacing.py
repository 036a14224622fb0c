"""Scans with thick and with thin slices: is it better to resample them to the median spacing?

    python experiments/unequal_spacing.py OUT Task04_Hippocampus --labels 3 --seeds 0,1

Of the first 60 scans, each third one gets slices three times as thick along the last axis: the mean
of three slices, with the label of the middle one. Both stores hold the same scans with the same
split. In one, the thick scans are resampled to the median spacing, which is the default. In the
other, all scans keep their voxels. The labelled subjects are drawn by the seed, the same in both.
Prints the mean Dice of thin and of thick validation scans, each on the grid of the scan.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel
import numpy as np

import selfvox
from selfvox.data.preparation import fit_recipe

SCANS = 60
FACTOR = 3  # thickness of a thick slice, in slices
VALIDATION = 20
NETWORK = {"name": "plain", "channels": [8, 16, 32, 64]}


def main() -> None:
    """Train with each store and seed, and print the scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--labels", type=int, default=3)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    scans = arguments.out / "scans"
    thick = write_scans(arguments.data, scans)
    median = fit_recipe.SPACING_TOLERANCE
    for seed in map(int, arguments.seeds.split(",")):
        for name, tolerance in (("median spacing", median), ("own voxels", float(FACTOR * 10))):
            folder = arguments.out / name.replace(" ", "-")
            fit_recipe.SPACING_TOLERANCE = tolerance
            selfvox.prepare(scans, out=folder / "store", validation=VALIDATION, workers=1)
            run = selfvox.finetune(
                folder / "store",
                out=folder / f"seed-{seed}",
                encoder="none",
                labels=arguments.labels,
                seed=seed,
                steps=arguments.steps,
                validate_every=1_000_000,
                keep="last",
                augment="strong",
                crop=(32, 32, 32),
                network=NETWORK,
                resume=(folder / f"seed-{seed}").exists(),
            )
            predicted = folder / f"predicted-{seed}"
            selfvox.predict(run, scans, out=predicted, subset="validation", passes=1)
            print(seed, name, *scores(predicted, scans / "labels", thick), flush=True)


def write_scans(data: Path, out: Path) -> set[str]:
    """Write the scans into `out`/images and `out`/labels; the names of the thick ones."""
    listed = json.loads((data / "dataset.json").read_text())["training"][:SCANS]
    names = [Path(entry["image"]).name for entry in listed]
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            scan = nibabel.load(data / f"{folder}Tr" / name)
            if number % 3 == 0:
                scan = thicken(scan, is_label=folder == "labels")
            nibabel.save(scan, out / folder / name)
    return set(names[::3])


def thicken(scan: nibabel.Nifti1Image, *, is_label: bool) -> nibabel.Nifti1Image:
    """Slices `FACTOR` times as thick along the last axis, centred on the middle one of each."""
    values = np.asanyarray(scan.dataobj)
    count = values.shape[2] // FACTOR
    slices = values[:, :, : count * FACTOR].reshape(*values.shape[:2], count, FACTOR)
    slices = slices[..., FACTOR // 2] if is_label else slices.mean(-1).astype("float32")
    affine = scan.affine @ np.diag([1, 1, FACTOR, 1])
    affine[:3, 3] += scan.affine[:3, 2] * (FACTOR // 2)
    return nibabel.Nifti1Image(slices, affine)


def scores(predicted: Path, truth: Path, thick: set[str]) -> list[str]:
    """Mean Dice over classes and scans, of thin and of thick scans."""
    dice_of: dict[str, list[float]] = {"thin": [], "thick": []}
    for file in sorted(predicted.glob("**/*.nii.gz")):
        if not (truth / file.name).exists():
            continue
        predictions, labels = (
            np.asanyarray(nibabel.load(path).dataobj) for path in (file, truth / file.name)
        )
        dice = [
            2
            * np.sum((predictions == label) & (labels == label))
            / (np.sum(predictions == label) + np.sum(labels == label))
            for label in (1, 2)
        ]
        dice_of["thick" if file.name in thick else "thin"].append(float(np.mean(dice)))
    return [f"{kind} {np.mean(dice):.3f} (n={len(dice)})" for kind, dice in dice_of.items()]


if __name__ == "__main__":
    main()
