"""MONAI: a bundle of a segmenter, which `python -m monai.bundle run` and MONAI Label execute."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from selfvox.data.preparation.recipe import Recipe, recipe_of_card
from selfvox.errors import UsageError
from selfvox.runs.atomic_files import check_new_folder, sha256, write_json, write_text
from selfvox.runs.card import SegmenterCard
from selfvox.runs.typed_json import write_checked
from selfvox.runs.weights import read_network, save_tensors

PARTS = "selfvox.neighbours.monai_parts"  # the module that the bundle calls
MODELS = "models"
MODALITIES = {"mri": "MR", "ct": "CT"}
PAGE = """\
# {title}

{what} Its bundle calls selfvox for the preparation of a scan, the windows and the way back to the
grid of the scan, so that predictions are those of `selfvox predict`.

    pip install 'selfvox[monai]'
    python -m monai.bundle run --config_file configs/inference.json \\
        --meta_file configs/metadata.json --bundle_root . --dataset_dir SCANS --output_dir OUT

Names of subjects and checksums of scans are left out. The licence is yours to choose.
"""


def write_bundle(run: Path, out: Path) -> Path:
    """Write a MONAI bundle of a segmenter of volumes.

    Args:
        run: a fine-tuning run.
        out: the folder, created.

    Raises:
        UsageError: the folder is not empty, or the run classifies, or is of pictures.
        WeightsError: the run has no intact network.
    """
    check_new_folder(out)
    tensors, card = read_network(run)
    if not isinstance(card, SegmenterCard):
        raise UsageError(
            f"{run}: is of whole scans, and the bundle is of segmenters; use --to onnx"
        )
    recipe = recipe_of_card(card, str(run))
    if recipe.spatial_dims != 3:
        raise UsageError(f"{run}: segments pictures, and the bundle is of volumes; use --to onnx")
    temporary = out.with_name(f".{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for folder in ("configs", "docs", MODELS):
            (temporary / folder).mkdir(parents=True)
        network = temporary / MODELS / "network"
        network.mkdir()
        save_tensors(network / "weights.safetensors", tensors)
        entries = card.without_people().to_json()
        entries["sha256"] = sha256(network / "weights.safetensors")
        write_checked(network / "network.json", entries)
        # MONAI Label needs such a file; there is nothing to load in addition to the network above
        torch.save({}, temporary / MODELS / "model.pt")
        write_json(temporary / "configs" / "inference.json", _inference())
        write_json(temporary / "configs" / "metadata.json", _metadata(card, recipe))
        what = f"A network that segments {', '.join(card.classes.values())}."
        page = PAGE.format(title="selfvox segmenter", what=what)
        write_text(temporary / "docs" / "README.md", page)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _inference() -> dict[str, Any]:
    """The workflow: read the scans, predict each, write its label."""
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/predictions'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": f"{PARTS}.ScanNetwork",
            "run": f"$@bundle_root + '/{MODELS}'",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": f"{PARTS}.ReadScand", "keys": "image", "network": "@network_def"}
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": {
                "_target_": f"{PARTS}.list_scans",
                "folder": "@dataset_dir",
                "out": "@output_dir",
                "network": "@network_def",
            },
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "",
                    "separate_folder": False,
                    "resample": False,
                    "writer": f"{PARTS}.LabelWriter",
                }
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": False,
        },
        "initialize": [],
        "run": ["$@evaluator.run()"],
    }


def _metadata(card: SegmenterCard, recipe: Recipe) -> dict[str, Any]:
    """What MONAI's tools show of a bundle, and the names of the classes for MONAI Label."""
    kinds = {MODALITIES.get(intensity.kind, "n/a") for intensity in recipe.intensity}
    shared = {"spatial_shape": ["*", "*", "*"], "is_patch_data": False, "type": "image"}
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported by selfvox"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"selfvox": version("selfvox")},
        "name": "selfvox segmenter",
        "task": f"segmentation of {', '.join(card.classes.values())}",
        "description": "A network fine-tuned by selfvox, with the recipe of its scans",
        "authors": "not said here",
        "copyright": "not said here",
        "weights_sha256": card.sha256,
        "network_data_format": {
            "inputs": {
                "image": {
                    **shared,
                    "format": "magnitude",
                    "modality": "/".join(sorted(kinds)),
                    "num_channels": len(recipe.channel_names),
                    "dtype": "float32",
                    "value_range": [],
                    "channel_def": dict(enumerate(recipe.channel_names)),
                }
            },
            "outputs": {
                "pred": {
                    **shared,
                    "format": "segmentation",
                    "num_channels": 1,
                    "dtype": "uint16",
                    "value_range": [0, max(card.classes)],
                    "channel_def": dict(card.classes),
                }
            },
        },
    }
