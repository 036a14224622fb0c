"""The verb `export`: the weights of a run in the format of another program."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from selfvox.errors import UsageError
from selfvox.models.build import plans_of
from selfvox.models.nnunet_plans import NnunetPlans
from selfvox.neighbours.huggingface import write_huggingface
from selfvox.neighbours.monai_bundle import write_bundle
from selfvox.neighbours.nnssl import write_nnssl
from selfvox.neighbours.nnunet import UNetWeights, read_unet, write_nnunet
from selfvox.neighbours.onnx import write_onnx
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Export
from selfvox.training.folder_kind import check_encoder


def export(settings: Export) -> Path:
    """Write the weights of a run in the format of another program.

    Args:
        settings: of the verb.

    Returns:
        What was written.

    Raises:
        SelfvoxError: a run that the other program has no network for, or plans of another network.
    """
    check_encoder(settings.run)
    if settings.plans is not None and settings.to != "nnunet":
        raise UsageError("plans: are those of --to nnunet; leave --plans out")
    if settings.channels is not None and settings.to not in ("nnunet", "nnssl"):
        raise UsageError("channels: are those of the run; leave --channels out")
    if settings.to == "onnx":
        _check_file(settings.out, ".onnx")
        write_onnx(settings.run, settings.out)
        echo(
            f"{settings.out}: equal to torch in onnxruntime; {settings.out.with_suffix('.json')} "
            "says how to prepare scans and what the outputs mean"
        )
        return settings.out
    if settings.to == "monai":
        write_bundle(settings.run, settings.out)
        echo(f"{settings.out}: docs/README.md there has the command that runs it")
        return settings.out
    if settings.to == "huggingface":
        write_huggingface(settings.run, settings.out)
        echo(f"{settings.out}: read its README.md before you upload it; nothing was uploaded")
        return settings.out
    _check_file(settings.out, ".pth")
    weights = read_unet(settings.run)
    if settings.to == "nnssl":
        write_nnssl(weights, settings.out, settings.channels, str(settings.run))
        _describe(weights)
        echo(f"{settings.out}: for nnUNetv2_preprocess_like_nnssl of nnU-Net's development version")
        return settings.out
    plans = plans_of(settings.plans)
    if plans is None:
        raise UsageError(
            "plans: name the plans that nnU-Net made of its data set, such as --plans "
            "nnUNetPlans.json; the weights are checked against them"
        )
    write_nnunet(weights, plans, settings.out, settings.channels, str(settings.run))
    _describe(weights)
    _warn_of_other_spacing(weights, plans)
    file = shlex.quote(str(settings.out.absolute()))
    echo(
        f"next: nnUNetv2_train DATASET {plans.configuration} FOLD -p {plans.plans_name} "
        f"-pretrained_weights {file}"
    )
    return settings.out


def _check_file(out: Path, ending: str) -> None:
    """Refuse a path that is no such file, before anything is computed."""
    if out.suffix != ending or out.is_dir():
        raise UsageError(f"{out}: is not the name of such a file; end it in {ending}")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: its folder {out.parent} does not exist; make it first")


def _describe(weights: UNetWeights) -> None:
    """Print which weights are trained, and what nnU-Net does differently."""
    echo(f"encoder: {len(weights.encoder)} tensors, {weights.encoder_origin}")
    count = f"{len(weights.decoder)} tensors, " if weights.decoder else ""
    echo(f"decoder: {count}{weights.decoder_origin}; its output layers are nnU-Net's own")
    echo(
        "the axes are turned to those of nnU-Net, which sees scans as they are stored: along axes "
        "that are not stored as left to right, posterior to anterior, inferior to superior, the "
        "weights see mirrored anatomy"
    )


def _warn_of_other_spacing(weights: UNetWeights, plans: NnunetPlans) -> None:
    """Warn if nnU-Net will resample to other voxels than the run was trained on."""
    trained: Sequence[float] | None = weights.card.recipe.get("spacing_mm")
    if trained is None or plans.spacing_mm is None:
        return
    if any(not 0.8 <= a / b <= 1.25 for a, b in zip(trained, plans.spacing_mm, strict=True)):
        echo(
            f"warning: the run was trained at {_in_mm(trained)}, and the plans resample to "
            f"{_in_mm(plans.spacing_mm)}; pre-train with --network {plans.name}"
        )


def _in_mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{mm:.3g}" for mm in spacing) + " mm"
