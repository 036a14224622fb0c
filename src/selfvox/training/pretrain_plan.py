"""The plan of a pre-training: crop, task, steps; shared by `pretrain`, `preview` and `study`."""

from __future__ import annotations

from collections.abc import Sequence

from selfvox.data.preparation.store import StoredCase
from selfvox.data.sampling.crop_size import (
    crop_for,
    held,
    is_inside,
)
from selfvox.errors import UsageError
from selfvox.joint import Joint
from selfvox.models.encoder import Encoder
from selfvox.pretext import PretextTask
from selfvox.runs.progress import say
from selfvox.settings.verbs import PRETRAIN_STEPS, Pretrain
from selfvox.tasks import to_setting
from selfvox.training.loop import Plan, steps_for


def steps_of(settings: Pretrain, scans: int, devices: int) -> int:
    """Optimiser steps: as many as asked for, or as the epochs give."""
    a_step = settings.batch * settings.accumulate * devices
    return steps_for(settings.steps or PRETRAIN_STEPS, settings.epochs, scans, a_step)


def _announce(
    task: PretextTask, encoder: Encoder, crop: tuple[int, ...], cases: list[StoredCase], how: Plan
) -> None:
    named = to_setting(task)
    options = ", ".join(f"{name}={value}" for name, value in named.items() if name != "name")
    million = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    channels = "-".join(map(str, encoder.channels))
    edges = " x ".join(map(str, crop))
    say(f"task {named['name']} ({options})")
    if isinstance(task, Joint):
        terms = [
            f"{weight:g} x {each.name}"
            for each, weight in zip(task.tasks, task.weights, strict=True)
        ]
        say(f"loss: {' + '.join(terms)}")
    say(f"encoder of {len(encoder.channels)} levels, {channels} channels, {million:.2f} M weights")
    say(f"{len(cases)} scans, crops of {edges} voxels, {how.batch} a step, {how.steps} steps")


def crop_with_room(
    task: PretextTask, asked: Sequence[int] | None, cases: Sequence[StoredCase]
) -> tuple[int, ...]:
    """The crop that was asked for; by default one inside nine scans of ten, or longer, inside half, for the task."""
    crop = crop_for(asked, cases, inside=True)
    longer = task.least_crop(crop)
    return longer if asked is None and held(longer, cases) >= len(cases) / 2 else crop


def refuse_one_alone(task: PretextTask, cases: Sequence[StoredCase]) -> None:
    """A task that tells scans apart needs those of two people.

    Raises:
        UsageError: there is only one.
    """
    if task.tells_scans_apart and len({case.subject for case in cases}) == 1:
        raise UsageError(
            f"task {to_setting(task)['name']}: tells scans apart, and there is only {cases[0].subject}; give more "
            "scans, or choose another --task"
        )


def _warn_of_mirrors(task: PretextTask, crop: Sequence[int], cases: Sequence[StoredCase]) -> None:
    """Say so where more than the tenth of the scans that a default crop allows is smaller than the crop."""
    if not is_inside(crop, cases):
        inside = crop_for(None, cases, inside=True)
        edges = " x ".join(map(str, inside))
        remedy = f"--crop {','.join(map(str, inside))} lies inside nine of ten"
        if not is_inside(inside, cases):
            remedy = f"no crop of {edges} or more lies inside nine of ten"
        elif task.least_crop(inside) != inside:
            remedy = f"{edges}, which lies inside nine of ten, has no room for this task; a finer --spacing gives more"
        small = len(cases) - held(crop, cases)
        say(
            f"warning: {small} of {len(cases)} scans are smaller than the crop and mirrored at their edges, which "
            f"may give answers away; {remedy}"
        )
