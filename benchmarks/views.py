"""What views cost, compared with MONAI and TorchIO: rotation, zoom, blur, noise and gamma.

    python benchmarks/views.py

CPU time of one thread. All get the same float32 volumes and parameters, and each library its
fastest way: rotation and zoom in one resampling. Each round times each library in turn, and our
code a second time: `A/A` is the ratio of the two, and a row outside 0.90 to 1.10 is void. The
table has medians over the rounds, in milliseconds per volume. First the rotated volumes must
agree. Exit status 1 if a goal is missed or a row is void.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import SimpleITK
import torch
import torchio as tio
from monai import transforms as monai
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from torch import Tensor

from selfvox.ops import intensity
from selfvox.ops.affine import resample, rotation_matrices
from selfvox.runs.device import make_fabric

DEGREES = (10.0, -20.0, 15.0)
SCALE = 0.9
SIGMA_BLUR = 1.0
SIGMA_NOISE = 0.05
GAMMA = 1.2
PLANES = ((1, 2), (0, 2), (0, 1))  # of turns about x, y and z
# in which order, and in which sense, the turns about the three axes follow each other
CONVENTIONS = {"TorchIO": ((2, 0, 1), (-1, 1, -1)), "MONAI": ((2, 1, 0), (1, -1, 1))}
GOALS = {  # times as fast as TorchIO, as MONAI
    "rotation": (3.0, 4.0),
    "blur": (3.0, 4.0),
    "rotation, zoom, blur, noise, gamma": (2.5, 5.0),
}
Works = dict[str, Callable[[], list[Tensor]]]  # by the names of the goals


def turn(library: str) -> Tensor:
    """The rotation by DEGREES as this library understands them."""
    order, senses = CONVENTIONS[library]
    angles = torch.tensor(
        [[np.deg2rad(senses[axis] * DEGREES[axis]) for axis in order]], dtype=torch.float32
    )
    return rotation_matrices(angles, [PLANES[axis] for axis in order], 3)


def ours(volumes: list[Tensor], library: str = "MONAI") -> Works:
    """All volumes in one batch, as in training."""
    x = torch.stack(volumes)
    count = len(volumes)
    turned = turn(library).expand(count, 3, 3)
    still = torch.zeros(count, 3)
    blur = torch.full((count,), SIGMA_BLUR)
    noise = torch.full((count,), SIGMA_NOISE)
    rng = torch.Generator().manual_seed(0)

    def chain() -> Tensor:
        blurred = intensity.blur(resample(x, turned / SCALE, still), blur)
        noisy = intensity.add_noise(blurred, noise, rng)
        return noisy.abs().pow_(GAMMA).copysign_(noisy)

    works = (lambda: resample(x, turned, still), lambda: intensity.blur(x, blur), chain)
    return {name: lambda work=work: list(work()) for name, work in zip(GOALS, works, strict=True)}


def by_monai(volumes: list[Tensor]) -> Works:
    """Dictionary transforms, a volume at a time."""
    radians = tuple(np.deg2rad(DEGREES))
    keys = ["image"]
    rotate = monai.Rotated(keys, radians, padding_mode="reflection", align_corners=False)
    affine = monai.Affined(
        keys, rotate_params=radians, scale_params=(1 / SCALE,) * 3, padding_mode="reflection"
    )
    blur = monai.GaussianSmoothd(keys, sigma=SIGMA_BLUR)
    noise = monai.RandGaussianNoised(keys, prob=1, std=SIGMA_NOISE, sample_std=False)
    chain = monai.Compose([affine, blur, noise, monai.AdjustContrastd(keys, gamma=GAMMA)])
    given = [{"image": volume} for volume in volumes]
    return _one_by_one(
        lambda change: [change(sample)["image"].as_tensor() for sample in given],
        rotate,
        blur,
        chain,
    )


def by_torchio(volumes: list[Tensor]) -> Works:
    """Transforms of subjects, a volume at a time; it fills the outside with a constant."""
    still = {"translation": (0, 0, 0), "default_pad_value": 0}
    rotate = tio.Affine(scales=(1, 1, 1), degrees=DEGREES, **still)
    affine = tio.Affine(scales=(SCALE,) * 3, degrees=DEGREES, **still)
    blur = tio.Blur(std=(SIGMA_BLUR,) * 3)
    noise = tio.Noise(mean=0, std=SIGMA_NOISE, seed=0)
    chain = tio.Compose([affine, blur, noise, tio.Gamma(gamma=GAMMA)])
    given = [tio.Subject(image=tio.ScalarImage(tensor=volume)) for volume in volumes]
    return _one_by_one(
        lambda change: [change(subject)["image"].data for subject in given], rotate, blur, chain
    )


def _one_by_one(apply: Callable[[Callable], list[Tensor]], *changes: Callable) -> Works:
    return {
        name: lambda change=change: apply(change)
        for name, change in zip(GOALS, changes, strict=True)
    }


def check(volumes: list[Tensor]) -> None:
    """Assert that the libraries' volumes agree where none of them looks outside.

    Rotated ones agree to a thousandth of their spread, blurred ones to a fifth.
    """
    edge = volumes[0].shape[-1]
    middle = (..., *(slice(3 * edge // 8, 5 * edge // 8),) * 3)
    for library, theirs in (("TorchIO", by_torchio(volumes)), ("MONAI", by_monai(volumes))):
        # blur: radii and weights differ; ours reach 2 voxels
        for name, limit in (("rotation", 1e-3), ("blur", 0.2)):
            for mine, reference in zip(ours(volumes, library)[name](), theirs[name](), strict=True):
                away = (mine[middle] - reference[middle]).abs().max() / mine[middle].std()
                assert away < limit, (
                    f"{name}: ours and {library}'s are {away:.2g} standard deviations apart"
                )


def milliseconds(work: Callable[[], list[Tensor]], count: int) -> float:
    """CPU time per volume."""
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began) / count


def main() -> int:
    """Print the table; 1 where a goal is missed or a row is void."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--edge", type=int, default=96)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of MONAI, on what its next release will do
    make_fabric("cpu", 1, "fp32")  # keeps freed memory, as a run does; all libraries gain by it
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    rng = np.random.default_rng(0)
    volumes = [
        torch.from_numpy(
            ndimage.gaussian_filter(rng.normal(size=(1, *(arguments.edge,) * 3)), (0, 2, 2, 2))
        ).float()
        * 20
        for _ in range(arguments.batch)
    ]
    check(volumes)
    table = Table(
        title=f"{arguments.batch} volumes of {arguments.edge}³, "
        "ms of CPU time per volume, one thread"
    )
    for column in ("", "selfvox", "TorchIO", "MONAI", "times as fast (goal)", "A/A", "verdict"):
        table.add_column(column)
    mine = ours(volumes)
    theirs = (by_torchio(volumes), by_monai(volumes))
    failed = False
    for name, goals in GOALS.items():
        works = (mine[name], *(rival[name] for rival in theirs), mine[name])
        # the first round warms up
        rounds = [
            [milliseconds(work, arguments.batch) for work in works]
            for _ in range(arguments.rounds + 1)
        ][1:]
        ratios = [
            statistics.median(2 * times[n] / (times[0] + times[3]) for times in rounds)
            for n in (1, 2)
        ]
        control = statistics.median(times[0] / times[3] for times in rounds)
        met = all(a >= b for a, b in zip(ratios, goals, strict=True))
        void = not 0.9 <= control <= 1.1
        failed |= void or not met
        medians = [f"{statistics.median(times[n] for times in rounds):.1f}" for n in range(3)]
        gains = ", ".join(
            f"{ratio:.1f} ({goal:g})" for ratio, goal in zip(ratios, goals, strict=True)
        )
        table.add_row(
            name, *medians, gains, f"{control:.2f}", "void" if void else "met" if met else "missed"
        )
    Console().print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
