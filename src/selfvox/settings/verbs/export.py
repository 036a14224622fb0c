"""The settings of the verb `export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from selfvox.settings.bounds import AtLeastOne


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the weights of a run in the format of another program.

    Returns:
        What was written.

    Example:
        selfvox export runs/pretrained --to nnunet --plans nnUNetPlans.json --out w.pth
    """

    run: Annotated[Path, "a pre-training or fine-tuning run"] = field(kw_only=False)
    to: Annotated[
        Literal["nnunet", "nnssl", "huggingface", "onnx", "monai"],
        "nnunet: for nnUNetv2_train -pretrained_weights; nnssl: for nnUNetv2_train_pretrained of "
        "nnU-Net's development version; huggingface: a folder for a model page, without subjects; "
        "onnx: the network of a fine-tuning run for other runtimes, with its recipe as JSON; "
        "monai: a bundle of a fine-tuning run for MONAI and MONAI Label, which calls selfvox",
    ]
    out: Annotated[Path, "the file, or of huggingface and monai the folder, created"]
    plans: Annotated[
        str | None,
        "of nnunet: the plans of the data set that nnU-Net will train on, such as nnUNetPlans.json "
        "or nnUNetPlans.json:2d",
    ] = None
    channels: Annotated[
        int | None,
        "channels of the scans there, if others than the run's: weights of the first convolution "
        "are averaged",
        AtLeastOne,
    ] = None
