"""What strong augmentation of image and label costs, compared with batchgeneratorsv2 and TorchIO.

    python benchmarks/augmentation.py

CPU time of one thread per sample: one channel and a label of three classes. Every change is made
of every sample, and each library draws from the same ranges: rotation and zoom, gamma, contrast,
brightness, blur, low resolution and noise. batchgeneratorsv2 is nnU-Net's augmentation, once with
nearest labels, as ours are, and once with labels interpolated class by class, as nnU-Net sets it.
TorchIO has no contrast and no brightness, and lowers the resolution of one axis; it does less.

First the same map, gamma, contrast and resolution must give the same voxels. Each round times each
library in turn, and our code a second time: `A/A` is the ratio of the two, and a row outside 0.90
to 1.10 is void. Goals: at most half of batchgeneratorsv2's time and a third of TorchIO's. Exit
status 1 if a goal is missed or a row is void.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import SimpleITK
import torch
import torchio as tio
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from torch import Tensor

from selfvox.ops import intensity
from selfvox.ops.affine import resample, resample_label
from selfvox.runs.device import make_fabric
from selfvox.training.augment import STRONG, Augmentation, Change, Strength, augment

CHANGES = ("degrees", "zoom", "gamma", "contrast", "brightness", "blur", "resolution", "noise")
GOALS = {"batchgeneratorsv2": 1 / 2, "TorchIO": 1 / 3}
ALL = "all changes"
SPATIAL = "rotation and zoom"
Work = Callable[[], object]


def always(*names: str) -> Strength:
    """Strong, with these changes of every sample and no others."""
    probabilities = {
        name: getattr(STRONG, name)._replace(probability=float(name in names)) for name in CHANGES
    }
    return dataclasses.replace(STRONG, **probabilities)


def limits(name: str) -> tuple[float, float]:
    """The range of a change."""
    change: Change = getattr(STRONG, name)
    return change.low, change.high


def ours(images: Tensor, labels: Tensor, *names: str) -> Work:
    """All samples in one batch, as in training."""
    augmentation = Augmentation(always(*names))
    spacing = torch.ones(len(images), 3)
    rng = torch.Generator().manual_seed(0)
    return lambda: augment(images, labels, spacing, augmentation, rng)


def spatial(edge: int, labels: str) -> SpatialTransform:
    """Rotation and zoom of batchgeneratorsv2, as in nnU-Net."""
    radians = tuple(np.deg2rad(limits("degrees")).tolist())
    return SpatialTransform(
        (edge,) * 3,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=1,
        rotation=radians,
        p_scaling=1,
        scaling=limits("zoom"),
        p_synchronize_scaling_across_axes=1,
        mode_seg=labels,
    )


def by_batchgenerators(images: Tensor, labels: Tensor, changes: str, mode: str) -> Work:
    """One sample at a time, as its data loader does."""
    transforms: list[Any] = [spatial(images.shape[-1], mode)]
    if changes == ALL:
        transforms += [
            GaussianNoiseTransform(limits("noise")),
            GaussianBlurTransform(
                limits("blur"), synchronize_channels=False, synchronize_axes=False, benchmark=True
            ),
            MultiplicativeBrightnessTransform((0.75, 1.25), synchronize_channels=False),
            ContrastTransform(limits("contrast"), preserve_range=True, synchronize_channels=False),
            SimulateLowResolutionTransform(
                limits("resolution"),
                synchronize_channels=False,
                synchronize_axes=True,
                ignore_axes=(),
            ),
            GammaTransform(
                limits("gamma"),
                p_invert_image=STRONG.inverted_gamma,
                synchronize_channels=False,
                p_per_channel=1,
                p_retain_stats=1,
            ),
        ]

    def work() -> None:
        for image, label in zip(images, labels, strict=True):
            sample = {"image": image.clone(), "segmentation": label[None]}
            for transform in transforms:
                sample = transform(**sample)

    return work


def by_torchio(images: Tensor, labels: Tensor, changes: str) -> Work:
    """Subjects, one at a time."""
    zoom = limits("zoom")
    transforms = [tio.RandomAffine(zoom, limits("degrees"), isotropic=True, default_pad_value=0)]
    if changes == ALL:
        log_gamma = tuple(np.log(limits("gamma")).tolist())
        transforms += [
            tio.RandomGamma(log_gamma),
            tio.RandomBlur(limits("blur")),
            tio.RandomAnisotropy(downsampling=(1, 2)),
            tio.RandomNoise(0, limits("noise")),
        ]
    change = tio.Compose(transforms)
    subjects = [
        tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label[None]))
        for image, label in zip(images, labels, strict=True)
    ]
    return lambda: [change(subject) for subject in subjects]


def check(images: Tensor, labels: Tensor) -> None:
    """The same map, gamma, contrast and resolution give the voxels of batchgeneratorsv2."""
    image = images[0]
    transform = spatial(image.shape[-1], "nearest")
    drawn = transform.get_parameters(image=image)
    moved = transform.apply({"image": image, "segmentation": labels[:1]}, **drawn)
    matrix = torch.from_numpy(drawn["affine"])[None].float()
    still = torch.zeros(1, 3)
    mine = resample(image[None], matrix, still, torch.zeros(1, 1))[0]
    inside = ndimage.binary_erosion(mine[0].numpy() != 0, iterations=2)
    assert inside.mean() > 0.2
    assert (mine - moved["image"])[0][inside].abs().max() < 1e-3
    label = resample_label(labels[:1], matrix, still, 0)
    assert (label != moved["segmentation"]).float().mean() < 1e-3
    ones = torch.ones(1)
    keep = {"apply_to_channel": torch.tensor([0])}
    for is_inverted in (False, True):
        gamma = GammaTransform((1, 1), 0, False, 1, 1)._apply_to_image(
            image.clone(),
            gamma=1.3 * ones,
            retain_stats=ones,
            invert_image=ones * is_inverted,
            **keep,
        )
        mine = intensity.change_gamma(image[None], 1.3 * ones, torch.tensor([is_inverted]))[0]
        torch.testing.assert_close(mine, gamma, atol=1e-3, rtol=0)
    contrast = ContrastTransform((1, 1), False, False)._apply_to_image(
        image.clone(), multipliers=0.8 * ones, **keep
    )
    mine = intensity.scale_contrast(image[None], 0.8 * ones)[0]
    torch.testing.assert_close(mine, contrast, atol=1e-3, rtol=0)
    coarse = SimulateLowResolutionTransform((1, 1), False, True, ())._apply_to_image(
        image.clone(), scales=torch.full((1, 3), 0.6), **keep
    )
    mine = intensity.lower_resolution(
        image[None], *intensity.kept_voxels(image.shape[1:], torch.full((1, 3), 0.6))
    )[0]
    torch.testing.assert_close(mine, coarse, atol=1e-3, rtol=0)


def samples(count: int, edge: int) -> tuple[Tensor, Tensor]:
    """Smooth images with standard deviation 1, and labels of three classes."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(count, edge, edge, edge)), (0, 2, 2, 2))
    images = torch.from_numpy(noise / noise.std()).float()
    labels = torch.bucketize(images, torch.tensor([0.5, 1.5])).to(torch.uint8)
    return images[:, None], labels


def milliseconds(work: Work, count: int) -> float:
    """CPU time per sample."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start) / count


def compare(changes: str, count: int, edge: int, rounds: int, table: Table) -> bool:
    """Add a row to the table; return whether all goals are met."""
    images, labels = samples(count, edge)
    names = CHANGES if changes == ALL else ("degrees", "zoom")
    works = {
        "selfvox": ours(images, labels, *names),
        "batchgeneratorsv2": by_batchgenerators(images, labels, changes, "nearest"),
        "its labels by class": by_batchgenerators(images, labels, changes, "bilinear"),
        "TorchIO": by_torchio(images, labels, changes),
        "again": ours(images, labels, *names),
    }
    # the first round warms up
    times = [
        {name: milliseconds(work, count) for name, work in works.items()} for _ in range(rounds + 1)
    ][1:]
    medians = {name: statistics.median(entry[name] for entry in times) for name in works}
    ratios = {
        name: statistics.median(
            (entry["selfvox"] + entry["again"]) / 2 / entry[name] for entry in times
        )
        for name in GOALS
    }
    control = statistics.median(entry["selfvox"] / entry["again"] for entry in times)
    is_void = not 0.9 <= control <= 1.1
    is_met = all(ratios[name] <= goal for name, goal in GOALS.items())
    verdict = "met" if is_met else "missed"
    table.add_row(
        f"{changes}, {edge}³",
        *(f"{medians[name]:.1f}" for name in list(works)[:4]),
        *(f"{ratios[name]:.2f}" for name in GOALS),
        f"{control:.2f}",
        "void" if is_void else verdict,
    )
    return is_met and not is_void


def main() -> int:
    """Print the table; 1 where a goal is missed or a row is void."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--edges", type=int, nargs="+", default=[64, 96])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    make_fabric("cpu", 1, "fp32")  # keeps freed memory, as a run does; all libraries gain by it
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # batchgeneratorsv2 draws from it
    check(*samples(1, 48))
    table = Table(title=f"ms of CPU time per sample, one thread, {arguments.batch} per batch")
    columns = ("", "selfvox", "batchgeneratorsv2", "its labels by class", "TorchIO")
    for column in (*columns, "/ batchgeneratorsv2", "/ TorchIO", "A/A", "verdict"):
        table.add_column(column)
    results = [
        compare(changes, arguments.batch, edge, arguments.rounds, table)
        for edge in arguments.edges
        for changes in (SPATIAL, ALL)
    ]
    Console(width=140).print(table)
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
