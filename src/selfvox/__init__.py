"""selfvox: self-supervised learning on 3D and 2D medical images.

Each function is the command of the same name, with the same arguments, defaults and help
(`help(selfvox.pretrain)`).
"""

from __future__ import annotations

import os as _os
from collections.abc import Sequence as _Sequence
from typing import TYPE_CHECKING as _TYPE_CHECKING

from selfvox.caches import make_up_for_missing_home as _make_up_for_missing_home
from selfvox.functions import verb_function as _verb_function

if _TYPE_CHECKING:
    from torch import nn as _nn

    from selfvox.notebook import LoadedClassifier, LoadedEncoder, LoadedSegmenter

__version__ = "0.1.0"
__all__ = [
    "adopt",
    "atlas",
    "calibrate",
    "convert",
    "correct",
    "demo",
    "doctor",
    "download",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "info",
    "lint",
    "load_classifier",
    "load_encoder",
    "load_segmenter",
    "predict",
    "prepare",
    "pretrain",
    "preview",
    "report",
    "study",
    "suggest",
    "tissues",
]

# before any library is imported that looks for a home
_make_up_for_missing_home()

lint = _verb_function("lint")
prepare = _verb_function("prepare")
pretrain = _verb_function("pretrain")
finetune = _verb_function("finetune")
predict = _verb_function("predict")
calibrate = _verb_function("calibrate")
evaluate = _verb_function("evaluate")
report = _verb_function("report")
correct = _verb_function("correct")
convert = _verb_function("convert")
export = _verb_function("export")
adopt = _verb_function("adopt")
study = _verb_function("study")
atlas = _verb_function("atlas")
embed = _verb_function("embed")
suggest = _verb_function("suggest")
tissues = _verb_function("tissues")
download = _verb_function("download")
preview = _verb_function("preview")
demo = _verb_function("demo")
doctor = _verb_function("doctor")
info = _verb_function("info")


def load_encoder(
    run: str | _os.PathLike[str],
    *,
    network: _nn.Module | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> LoadedEncoder:
    """Load the encoder of a run, for embeddings and feature maps of scans.

    Args:
        run: a pre-training run, its encoder/ folder, or a fine-tuning run.
        network: gets the weights; needed if the run was made with `encoder=`, a module of yours.
        device: auto, cpu, cuda or mps.
        precision: auto, bf16 or fp32.

    Returns:
        An object with `embed(scan)` and `maps(scan)`, for a path, an array or an image of nibabel;
        `network` is the PyTorch module, `module` the network inside, of its library's own class.

    Raises:
        SelfvoxError: the run has no intact encoder; the message names the remedy.

    Example:
        selfvox.load_encoder("runs/pretrained").embed("scan.nii.gz")
    """
    from selfvox import notebook  # only here: it imports torch, which takes seconds

    return notebook.load_encoder(run, network, device, precision)


def load_segmenter(
    run: str | _os.PathLike[str] | _Sequence[str | _os.PathLike[str]],
    *,
    encoder: _nn.Module | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> LoadedSegmenter:
    """Load the segmenter of a fine-tuning run, or several that predict together.

    Args:
        run: a fine-tuning run, or a list of them.
        encoder: a copy gets the weights; needed if the run was made with `encoder=`, a module of
            yours.
        device: auto, cpu, cuda or mps.
        precision: auto, bf16 or fp32.

    Returns:
        An object with `predict(scan)`, for a path, an array or an image of nibabel; `network` is
        the PyTorch module.

    Raises:
        SelfvoxError: a run has no intact segmenter; the message names the remedy.

    Example:
        selfvox.load_segmenter("runs/seg").predict("scan.nii.gz").label
    """
    from selfvox import notebook  # only here: it imports torch, which takes seconds

    return notebook.load_segmenter(run, encoder, device, precision)


def load_classifier(
    run: str | _os.PathLike[str] | _Sequence[str | _os.PathLike[str]],
    *,
    encoder: _nn.Module | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> LoadedClassifier:
    """Load the classifier of a fine-tuning run, or several that predict together.

    Args:
        run: a fine-tuning run, or a list of them.
        encoder: a copy gets the weights; needed if the run was made with `encoder=`, a module of
            yours.
        device: auto, cpu, cuda or mps.
        precision: auto, bf16 or fp32.

    Returns:
        An object with `predict(scan)`, for a path, an array or an image of nibabel; `network` is
        the PyTorch module.

    Raises:
        SelfvoxError: a run has no intact classifier; the message names the remedy.

    Example:
        selfvox.load_classifier("runs/grades").predict("scan.png").name
    """
    from selfvox import notebook  # only here: it imports torch, which takes seconds

    return notebook.load_classifier(run, encoder, device, precision)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
