"""What is pre-training worth where nothing can be learnt? `selfvox`, each SimCLR view paired with another image's.

    python benchmarks/wrong_partners.py pretrain STUDY/store --out STUDY/pretrain/wrong-partners-seed-0
        --config STUDY/pretrain/simclr-seed-0/settings.yaml

The loss cannot leave log(2N - 1). What such an encoder is better by than one of random weights, no pretext task has
taught. `benchmarks/linear_probe.py STUDY` reads it with the others.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from selfvox.cli import main
from selfvox.ops.outcome import Batch
from selfvox.tasks.simclr import SimCLR

ask = SimCLR.ask


def wrongly_paired(
    self: SimCLR, images: Tensor, rng: torch.Generator, scan: Tensor | None = None
) -> Batch:
    """The second view of each sample is that of the one before."""
    batch = ask(self, images, rng, scan)
    first, second = batch["views"].chunk(2)
    return {**batch, "views": torch.cat([first, second.roll(1, 0)])}


if __name__ == "__main__":
    SimCLR.ask = wrongly_paired  # type: ignore[method-assign]
    sys.exit(main())
