"""The plan of a pre-training: crop, task, network and steps, from the settings and the scans."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from selfvox.data.preparation.case_table import numbers, subject_numbers
from selfvox.data.preparation.leakage import seen_scans
from selfvox.data.preparation.scan_range import describe_cases
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crop_size import (
    choose_crop,
    count_containing,
    distinct_resolutions,
    distinct_spacings,
    fits_most_scans,
    in_plane_cases,
    median_spacing,
    slice_axis,
)
from selfvox.errors import UsageError
from selfvox.joint import Joint
from selfvox.models.build import build_encoder, check_input, plan_encoder, plans_divisor
from selfvox.models.encoder import Encoder
from selfvox.pretext import PretextTask
from selfvox.runs.card import EncoderCard
from selfvox.runs.device import is_cpu
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Pretrain
from selfvox.tasks import task_from_setting, task_to_setting
from selfvox.training.schedule import (
    PRETRAIN_BUDGETS,
    TrainingPlan,
    count_steps,
    describe_length,
)


@dataclass(frozen=True, kw_only=True)
class PretrainPlan:
    """Everything that a pre-training decides before its first step.

    `pretrain` follows it, `preview` draws its task, and a study takes the number of steps from it.
    """

    settings: Pretrain
    store: Store
    cases: Sequence[StoredCase]  # those that are not for testing
    slice_axis: int | None  # of the prepared volumes; None: volumes or pictures
    crop: tuple[int, ...]  # edges in voxels
    spacing_mm: tuple[float, ...]  # median of the cases, of a slice's axes only
    task: PretextTask  # configured for this crop and all spacings
    network: dict[str, Any]  # what the encoder is built from
    planned_for: tuple[int, ...]  # edges of the crops that the network is planned for
    voxels_per_step: int  # of all crops of a step
    training: TrainingPlan

    def with_steps(self, steps: int) -> PretrainPlan:
        """The same plan with another number of steps: that of the run, where it is resumed."""
        return dataclasses.replace(self, training=dataclasses.replace(self.training, steps=steps))

    def with_batch(self, batch: int) -> PretrainPlan:
        """The same plan with another batch on each device: of a run on another number of them."""
        return dataclasses.replace(self, training=dataclasses.replace(self.training, batch=batch))

    def build_encoder(self, module: nn.Module | None = None) -> Encoder:
        """The encoder; new weights are drawn from torch's global generator.

        Args:
            module: an encoder, used as it is with the weights that it has.
        """
        channels = len(self.store.recipe.channel_names)
        return build_encoder(self.network if module is None else module, len(self.crop), channels)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Of the losses of several tasks; None for one task."""
        return tuple(self.task.weights) if isinstance(self.task, Joint) else None

    @property
    def _planning_cases(self) -> Sequence[StoredCase]:
        return in_plane_cases(self.cases, self.slice_axis)

    def card(self, encoder: Encoder) -> EncoderCard:
        """What is saved with the encoder's weights."""
        return EncoderCard(
            network=self.network,
            spatial_dims=encoder.spatial_dims,
            in_channels=encoder.in_channels,
            crop=self.crop,
            slices=self.settings.slices,
            spacing_mm=self.spacing_mm,
            recipe=self.store.recipe.to_dict(),
            task=task_to_setting(self.task),
            weights=self.weights,
            seen=seen_scans(self.cases),
            scans=describe_cases(self.cases, self.store.recipe.channel_names),
            steps=self.training.steps,
            seed=self.settings.seed,
        )

    def check_distinct_scans(self) -> None:
        """Refuse a task that compares scans if all are of one person.

        Raises:
            UsageError: they are.
        """
        if self.task.needs_distinct_scans and len(self._scans_by_person()) == 1:
            raise UsageError(
                f"task {task_to_setting(self.task)['name']}: compares scans of different people, "
                f"and there is only {self.cases[0].subject}; give more scans, or choose another "
                "--task"
            )

    def check_pairs(self) -> None:
        """Refuse a task that pairs scans of one person if nobody has several.

        Raises:
            UsageError: nobody has.
        """
        if self.task.pairs_scans and not self._people_with_several_scans():
            raise UsageError(
                "task.positives: pairs two scans of one person, and nobody has several; leave it "
                "out, or name the person of each scan in a table with the column `subject`"
            )

    def _scans_by_person(self) -> np.ndarray:
        """How many scans each person has."""
        return np.bincount(subject_numbers(self.cases))

    def _people_with_several_scans(self) -> int:
        return int((self._scans_by_person() > 1).sum())

    def _describe_pairs(self) -> None:
        """Print how many people have several scans, if the task pairs these, or could."""
        count = self._people_with_several_scans()
        people = len(self._scans_by_person())
        if self.task.pairs_scans:
            echo(
                f"{count} of {people} people have several scans: two of them are a pair; of the "
                "others, two views of one crop"
            )
            return
        members = self.task.tasks if isinstance(self.task, Joint) else (self.task,)
        options = [
            f"--task.{task.name + '.' if len(members) > 1 else ''}positives subject"
            for task in members
            if hasattr(task, "positives")
        ]
        if count and options:
            echo(
                f"{count} of {people} people have several scans: {' and '.join(options)} takes "
                "two of them as a pair"
            )

    def describe(self, encoder: Encoder) -> None:
        """Print the plan, and a warning if many scans are smaller than the crop."""
        millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
        channels = "-".join(map(str, encoder.channels))
        echo(f"task {task_caption(self.task)}")
        if isinstance(self.task, Joint):
            members = zip(self.task.tasks, self.task.weights, strict=True)
            terms = [f"{weight:g} x {task.name}" for task, weight in members]
            echo(f"loss: {' + '.join(terms)}")
        echo(
            f"encoder of {len(encoder.channels)} levels, {channels} channels, {millions:.2f} M "
            f"weights, planned for crops of {_edges(self.planned_for)} voxels"
        )
        echo(
            f"{len(self.cases)} scans, crops of {_edges(self.crop)} voxels, "
            f"{self.voxels_per_step // math.prod(self.crop)} a step"
        )
        self._describe_pairs()
        settings = self.settings
        is_default = settings.steps is settings.epochs is settings.minutes is None
        length = describe_length(
            PRETRAIN_BUDGETS,
            self.training.steps,
            _count_voxels(self.cases, self.crop),
            self.voxels_per_step,
            cpu_default=is_default and is_cpu(settings.device),
        )
        echo(length)
        self._warn_of_mirroring()

    def _warn_of_mirroring(self) -> None:
        """Warn if more than a tenth of the scans, which a default crop allows, is too small."""
        cases = self._planning_cases
        if fits_most_scans(self.crop, cases):
            return
        default = choose_crop(None, cases, inside=True)
        if not fits_most_scans(default, cases):
            remedy = f"no crop of {_edges(default)} or more fits inside nine of ten"
        elif self.task.min_crop(default) != default:
            remedy = (
                f"{_edges(default)}, which fits inside nine of ten, has no room for this task; a "
                "finer --spacing gives more"
            )
        else:
            remedy = f"--crop {','.join(map(str, default))} fits inside nine of ten"
        count = len(cases) - count_containing(self.crop, cases)
        echo(
            f"warning: {count} of {len(cases)} scans are smaller than the crop and mirrored at "
            f"their edges, which may give answers away; {remedy}"
        )


def pretrain_plan(
    settings: Pretrain,
    store: Store,
    devices: int = 1,
    *,
    task: PretextTask | None = None,
    encoder: nn.Module | None = None,
) -> PretrainPlan:
    """Plan a pre-training on the scans of a store that are not for testing.

    Args:
        settings: of the verb.
        store: the prepared scans.
        devices: how many train together.
        task: instead of the setting.
        encoder: a module instead of the setting `network`; only its class is noted.

    Raises:
        UsageError: a crop, task or network that is unknown or does not suit the scans.
    """
    cases = store.without_test_subjects()
    axis = slice_axis(settings.slices, cases)
    planning_cases = in_plane_cases(cases, axis)
    task = task or task_from_setting(settings.task, settings.weights)
    divisor = None if encoder is not None else plans_divisor(settings.network)
    crop = pretext_crop(task, settings.crop, planning_cases, divisor)
    # spacings as prepared and as scanned: resampling does not add detail
    task = task.configure(
        crop, *distinct_spacings(planning_cases), *distinct_resolutions(planning_cases)
    )
    spacing_mm = median_spacing(planning_cases)
    # by the crop of fine-tuning, whatever part of it the task shows: all tasks train one network
    planned_for = choose_crop(settings.crop, planning_cases, divisor)
    network = plan_encoder(
        settings.network if encoder is None else encoder, planned_for, spacing_mm
    )
    # a task may show the encoder less than the crop, such as a tile
    check_input(network, task.input_size(crop))
    images_per_step = settings.batch * settings.accumulate * devices
    voxels_per_step = images_per_step * math.prod(crop)
    default = PRETRAIN_BUDGETS.count(
        _count_voxels(cases, crop), voxels_per_step, on_cpu=is_cpu(settings.device)
    )
    return PretrainPlan(
        settings=settings,
        store=store,
        cases=cases,
        slice_axis=axis,
        crop=crop,
        spacing_mm=spacing_mm,
        task=task,
        network=network,
        planned_for=planned_for,
        voxels_per_step=voxels_per_step,
        training=TrainingPlan(
            steps=count_steps(
                settings.steps or default, settings.epochs, len(cases), images_per_step
            ),
            batch=settings.batch,
            accumulate=settings.accumulate,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            save_every=settings.save_every,
            seed=settings.seed,
        ),
    )


def _count_voxels(cases: Sequence[StoredCase], crop: Sequence[int]) -> int:
    """Voxels of the scans; one that is smaller than the crop is one crop."""
    voxels = numbers(cases, "shape").prod(axis=1, dtype=np.int64)
    return int(voxels.clip(min=math.prod(crop)).sum())


def pretext_crop(
    task: PretextTask,
    requested: Sequence[int] | None,
    cases: Sequence[StoredCase],
    divisor: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """The crop for a pretext task: the requested one, or a default.

    By default the crop fits inside nine scans of ten. If the task needs a larger one, that is taken
    where at least half of the scans have room for it. Each edge is a multiple of the divisor.
    """
    crop = choose_crop(requested, cases, divisor, inside=True)
    if requested is not None:
        return crop
    larger = task.min_crop(crop)
    return larger if count_containing(larger, cases) >= len(cases) / 2 else crop


def task_caption(task: PretextTask) -> str:
    """A task with its options on one line, such as `rotation (versions=1, planes=auto)`."""
    setting = task_to_setting(task)
    options = ", ".join(f"{name}={value}" for name, value in setting.items() if name != "name")
    return f"{setting['name']} ({options})"


def _edges(crop: Sequence[int]) -> str:
    return " x ".join(map(str, crop))
