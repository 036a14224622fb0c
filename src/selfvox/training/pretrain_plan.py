"""The plan of a pre-training: crop, task, steps; shared by `pretrain`, `preview` and `study`."""

from __future__ import annotations

from collections.abc import Sequence

from selfvox.data.preparation.store import StoredCase
from selfvox.data.sampling.crop_size import (
    choose_crop,
    count_containing,
    fits_most_scans,
)
from selfvox.errors import UsageError
from selfvox.joint import Joint
from selfvox.models.encoder import Encoder
from selfvox.pretext import PretextTask
from selfvox.runs.progress import echo
from selfvox.settings.verbs import PRETRAIN_STEPS, Pretrain
from selfvox.tasks import task_to_setting
from selfvox.training.loop import TrainingPlan, count_steps


def pretrain_steps(settings: Pretrain, scans: int, devices: int) -> int:
    """Optimiser steps: as many as asked for, or as the epochs give."""
    a_step = settings.batch * settings.accumulate * devices
    return count_steps(settings.steps or PRETRAIN_STEPS, settings.epochs, scans, a_step)


def announce(  # noqa: D103
    task: PretextTask,
    encoder: Encoder,
    crop: tuple[int, ...],
    cases: list[StoredCase],
    how: TrainingPlan,
) -> None:
    named = task_to_setting(task)
    options = ", ".join(f"{name}={value}" for name, value in named.items() if name != "name")
    million = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    channels = "-".join(map(str, encoder.channels))
    edges = " x ".join(map(str, crop))
    echo(f"task {named['name']} ({options})")
    if isinstance(task, Joint):
        terms = [
            f"{weight:g} x {each.name}"
            for each, weight in zip(task.tasks, task.weights, strict=True)
        ]
        echo(f"loss: {' + '.join(terms)}")
    echo(f"encoder of {len(encoder.channels)} levels, {channels} channels, {million:.2f} M weights")
    echo(f"{len(cases)} scans, crops of {edges} voxels, {how.batch} a step, {how.steps} steps")


def pretext_crop(
    task: PretextTask, asked: Sequence[int] | None, cases: Sequence[StoredCase]
) -> tuple[int, ...]:
    """The crop that was asked for; by default one inside nine scans of ten, or longer, inside half, for the task."""
    crop = choose_crop(asked, cases, inside=True)
    longer = task.min_crop(crop)
    return longer if asked is None and count_containing(longer, cases) >= len(cases) / 2 else crop


def check_distinct_scans(task: PretextTask, cases: Sequence[StoredCase]) -> None:
    """A task that tells scans apart needs those of two people.

    Raises:
        UsageError: there is only one.
    """
    if task.needs_distinct_scans and len({case.subject for case in cases}) == 1:
        raise UsageError(
            f"task {task_to_setting(task)['name']}: tells scans apart, and there is only {cases[0].subject}; give more "
            "scans, or choose another --task"
        )


def warn_of_mirroring(task: PretextTask, crop: Sequence[int], cases: Sequence[StoredCase]) -> None:
    """Say so where more than the tenth of the scans that a default crop allows is smaller than the crop."""
    if not fits_most_scans(crop, cases):
        inside = choose_crop(None, cases, inside=True)
        edges = " x ".join(map(str, inside))
        remedy = f"--crop {','.join(map(str, inside))} lies inside nine of ten"
        if not fits_most_scans(inside, cases):
            remedy = f"no crop of {edges} or more lies inside nine of ten"
        elif task.min_crop(inside) != inside:
            remedy = f"{edges}, which lies inside nine of ten, has no room for this task; a finer --spacing gives more"
        small = len(cases) - count_containing(crop, cases)
        echo(
            f"warning: {small} of {len(cases)} scans are smaller than the crop and mirrored at their edges, which "
            f"may give answers away; {remedy}"
        )
