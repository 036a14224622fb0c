"""The settings of the verb `adopt`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from selfvox.settings.verbs._shared import Network


@dataclass(frozen=True, kw_only=True)
class Adopt:
    """Import the weights of a published or other network, as an encoder that `finetune` takes.

    Returns:
        The folder of the encoder.

    Example:
        selfvox adopt checkpoint_final.pth --layout openmind --out runs/openmind
    """

    file: Annotated[Path, "file of weights that you have, such as .pth or .safetensors"] = field(
        kw_only=False
    )
    layout: Annotated[
        Literal["openmind", "medicalnet", "swinunetr", "voco", "nnunet", "torch"],
        "who made it: OpenMind (nnssl), MedicalNet, NVIDIA (swinunetr), VoCo, nnU-Net, or your own "
        "torch program",
    ]
    out: Annotated[Path, "folder of the encoder, created"]
    network: Annotated[
        Network | None,
        "of nnunet: its plans; of torch: as in pretrain",
    ] = None
