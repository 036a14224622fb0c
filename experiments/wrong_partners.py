r"""Pre-train on a task that cannot be learnt: `selfvox`, with wrong pairs of SimCLR views.

    python experiments/wrong_partners.py pretrain STUDY/store \
        --out STUDY/pretrain/wrong-partners-seed-0 \
        --config STUDY/pretrain/simclr-seed-0/settings.yaml

Each view is paired with a view of another image, so the loss stays at log(2N - 1). By how much
such an encoder is better than one of random weights, no pretext task has taught it.
`experiments/linear_probe.py STUDY` reads it together with the others.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from selfvox.cli import main
from selfvox.ops.outcome import Batch
from selfvox.tasks.simclr import SimCLR

make_batch = SimCLR.make_batch


def make_wrong_batch(self: SimCLR, *args: Any, **options: Any) -> Batch:
    """A batch in which each sample's second view is that of the sample before."""
    batch = make_batch(self, *args, **options)
    first, second = batch["views"].chunk(2)
    return {**batch, "views": torch.cat([first, second.roll(1, 0)])}


if __name__ == "__main__":
    SimCLR.make_batch = make_wrong_batch  # type: ignore[method-assign]
    sys.exit(main())
