"""One training of a fine-tuning: network, samples, validation and the loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from selfvox.data.preparation.leakage import seen_scans
from selfvox.data.preparation.scan_range import describe_cases
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.mixture import Mixture
from selfvox.models.low_rank import merge_low_rank
from selfvox.registration.copies import Copies
from selfvox.runs.card import NetworkCard
from selfvox.runs.checkpoints import CHECKPOINTS, has_checkpoint
from selfvox.runs.device import Fabric
from selfvox.runs.process_watch import ProcessWatch
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run
from selfvox.settings.verbs import Finetune
from selfvox.training.devices import batch_per_device, started_devices
from selfvox.training.downstream import DownstreamTask
from selfvox.training.feature_survival import FeatureSurvival
from selfvox.training.finetune_length import FinetuneLength
from selfvox.training.finetune_network import FinetuneNetwork, build_network
from selfvox.training.kept_weights import (
    KeptWeights,
    Validator,
    validation_interval,
    validation_steps,
)
from selfvox.training.loop import Hooks, train
from selfvox.training.lost_classes import LostClasses, scans_to_look_at
from selfvox.training.pretrained import Pretrained
from selfvox.training.pseudo_labels import PseudoLabels
from selfvox.training.schedule import TrainingPlan
from selfvox.training.segmentation import Segmentation, unused_label
from selfvox.training.time_budget import Clock
from selfvox.training.time_forecast import TimeForecast

COPY_SHARE = 0.75  # of the crops of labelled scans
PSEUDO_SHARE = 0.5  # of all crops
SURVIVAL_STEPS = 300  # of fewer, what is left of the encoder is measured at the end alone: 1 % CPU
STRONG_STEPS = 1000  # with fewer, strong augmentation gains nothing: docs/how-to/few-labels.md


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """What all trainings of a run have in common."""

    settings: Finetune
    fabric: Fabric
    store: Store
    task: DownstreamTask
    training: Sequence[StoredCase]
    validation: Sequence[StoredCase]
    start: Pretrained | nn.Module | None  # the encoder; None: random weights
    copies: Copies | None = None  # of the labelled scans
    trainings: int = 1  # they share the minutes
    clock: Clock = time.monotonic
    watch: ProcessWatch | None = None  # of the processes that train together

    @property
    def looked_at(self) -> list[StoredCase]:
        """Training scans that show which classes are lost, where no scan validates."""
        if self.validation or not isinstance(self.task, Segmentation):
            return []
        return scans_to_look_at(self.training)


class Trained(NamedTuple):
    """What a training ends with."""

    built: FinetuneNetwork  # with the last weights
    checkpoint: KeptWeights
    loss_label: str


def train_network(
    job: FinetuneJob, run: Run, steps: int | None, pseudo_labels: PseudoLabels | None
) -> Trained:
    """One training, from its last checkpoint if it has one.

    Args:
        job: of the run.
        run: where it goes.
        steps: as recorded where the run was started; None: by the settings.
        pseudo_labels: to train on too.
    """
    settings = job.settings
    task = job.task if pseudo_labels is None else ignoring_task(job)
    devices = started_devices(run, job.fabric)
    length = _length(job, run, task, devices)
    recorded = job.fabric.broadcast(steps or run.record.get("steps"))

    def count_steps(crop: Sequence[int], network: nn.Module) -> int:
        # of several processes, each may have timed its steps
        return job.fabric.broadcast(length.count(recorded, crop, network))

    # here, so that the new weights do not depend on how many numbers were drawn before
    torch.manual_seed(settings.seed)
    built = build_network(
        settings,
        job.store,
        job.training,
        task,
        job.start,
        count_steps,
    )
    # a resumed run would count others: the default by its device, minutes by their clock
    run.note(steps=built.steps)
    batch = batch_per_device(settings.batch, devices, job.fabric.world_size, min_batch=1)
    plan = _training_plan(settings, task, built, batch)
    # validation scans too: they may choose the weights
    seen = [*job.training, *job.validation]
    if job.copies:
        seen += job.copies.anatomies
    if pseudo_labels:
        seen += pseudo_labels.seen
    pretrained = job.start if isinstance(job.start, Pretrained) else None
    card = _card(job, task, built, seen, pretrained)
    objective = task.objective(built.network, job.training, built.frozen_steps)
    checkpoint = KeptWeights(
        run.path / "network",
        Validator(
            task=task,
            network=built.network,
            fabric=job.fabric,
            store=job.store,
            cases=job.validation,
            crop=built.crop,
            looked_at=job.looked_at,
        ),
        card,
        LostClasses(run, plan.steps, task, _searched_scan(job)),
        validations=validation_steps(settings.validate_every, plan.steps),
        keep=settings.keep,
        resume=has_checkpoint(run.path / CHECKPOINTS),
    )
    samples = _samples(job, task, built.crop, pseudo_labels)
    survival = _survival(job, built, samples)

    def after_step(step: int) -> dict[str, float]:
        metrics = checkpoint.after_step(step)
        is_long = plan.steps >= SURVIVAL_STEPS
        is_measured = step == plan.steps or (is_long and step in checkpoint.validations)
        if survival is None or not is_measured:
            return metrics
        return {**metrics, **survival.measure()}

    _describe(task, job, built)
    run.depends_on(network=card.network, crop=card.crop, data=seen_scans(seen))
    train(
        job.fabric,
        run,
        objective,
        samples,
        plan,
        title="finetune",
        hooks=Hooks(after_step=after_step) if job.fabric.is_global_zero else Hooks(),
        encoder=built.encoder,
        forecast=_forecast(job, built),
        watch=job.watch,
    )
    merge_low_rank(built.network)
    return Trained(built, checkpoint, objective.loss_label)


def _searched_scan(job: FinetuneJob) -> str:
    """What lost classes are looked for in."""
    return "validation scan" if job.validation else "segmented training scan"


def _survival(
    job: FinetuneJob, built: FinetuneNetwork, samples: Dataset[dict[str, Tensor]]
) -> FeatureSurvival | None:
    """Of an encoder that was pre-trained and is trained on; the first process measures."""
    is_trained = job.start is not None and built.frozen_steps < built.steps
    if not is_trained or not job.fabric.is_global_zero:
        return None
    job.fabric.to_device(built.network)
    return FeatureSurvival(built.encoder, samples, job.fabric)


def _forecast(job: FinetuneJob, built: FinetuneNetwork) -> TimeForecast | None:
    """Of the steps alone; where minutes were given, a trial was timed already."""
    if job.settings.minutes is not None:
        return None
    remarks = []
    if job.validation:
        remarks.append("without the validations")
    elif job.looked_at:
        remarks.append("without the looks for lost classes")
    if 0 < built.frozen_steps < built.steps:
        remarks.append("longer once the encoder is trained too")
    return TimeForecast(built.steps, ", ".join(remarks))


def _length(job: FinetuneJob, run: Run, task: DownstreamTask, devices: int) -> FinetuneLength:
    """Counts the steps; the trainings share the minutes, if the settings have some."""
    settings = job.settings
    if settings.minutes is not None:
        settings = replace(settings, minutes=settings.minutes / job.trainings)
    return FinetuneLength(
        settings=settings,
        task=task,
        store=job.store,
        training=job.training,
        validation=job.validation,
        looked_at=job.looked_at,
        fabric=job.fabric,
        run=run.path,
        clock=job.clock,
        devices=devices,
    )


def _samples(
    job: FinetuneJob, task: DownstreamTask, crop: Sequence[int], pseudo_labels: PseudoLabels | None
) -> Dataset[dict[str, Tensor]]:
    """Crops of the labelled scans, of their copies, and of scans with pseudo-labels."""
    seed = job.settings.seed
    samples = task.data(job.store, job.training, crop, seed)
    if job.copies:
        moved = task.data(job.copies.store, job.copies.cases, crop, seed)
        samples = Mixture(samples, moved, COPY_SHARE, seed)
    if pseudo_labels:
        pseudo_labelled = task.data(pseudo_labels.store, pseudo_labels.cases, crop, seed)
        samples = Mixture(samples, pseudo_labelled, PSEUDO_SHARE, seed, stream=5)
    return samples


def ignoring_task(job: FinetuneJob) -> Segmentation:
    """The task, where labels may have voxels that are ignored."""
    assert isinstance(job.task, Segmentation)
    return Segmentation(job.store, job.settings, unused_label(job.task.classes))


def _card(
    job: FinetuneJob,
    task: DownstreamTask,
    built: FinetuneNetwork,
    cases: Sequence[StoredCase],
    pretrained: Pretrained | None,
) -> NetworkCard:
    """What is saved with the weights; `seen` includes the scans of the pre-training."""
    settings = job.settings
    channel_names = job.store.recipe.channel_names
    seen_before = pretrained.card.seen if pretrained else None
    return task.card(
        network=built.spec,
        spatial_dims=len(built.crop),
        in_channels=len(channel_names),
        recipe=job.store.recipe.to_dict(),
        encoder=built.origin,
        seed=settings.seed,
        crop=built.crop,
        slices=settings.slices,
        head=settings.head,
        seen=seen_scans(cases, seen_before),
        # without copies and pseudo-labelled scans, which are not what the labels are of
        scans=describe_cases([*job.training, *job.validation], channel_names),
    )


def _describe(task: DownstreamTask, job: FinetuneJob, built: FinetuneNetwork) -> None:
    edges = " x ".join(map(str, built.crop))
    echo(
        f"{len(job.training)} {task.scans} to train on, {len(job.validation)} to validate; crops "
        f"of {edges} voxels"
    )
    mirrored = f", mirrored {' and '.join(task.mirrored)}" if task.mirrored else ""
    echo(f"augmentation: {task.augment}{mirrored}")
    if task.augment == "strong" and built.steps < STRONG_STEPS:
        echo(
            f"strong augmentation needs {STRONG_STEPS} steps or more: with {built.steps}, "
            "--augment light is as good or better"
        )
    for name in task.untaught(job.training):
        echo(f"warning: no training scan has the class {name}, which cannot be learnt; add one")
    if not job.validation:
        subjects = {case.subject for case in job.training}
        remedy = "; with --folds, each validates once" if len(subjects) > 1 else ""
        best = " and its last weights are kept" if job.settings.keep == "best" else ""
        echo(f"no {task.scans} are left to validate on: the network is not scored{best}{remedy}")
        if job.looked_at:
            names = ", ".join(case.id for case in job.looked_at)
            echo(f"classes that are not learnt are looked for in training scans: {names}")


def _training_plan(
    settings: Finetune, task: DownstreamTask, built: FinetuneNetwork, batch: int
) -> TrainingPlan:
    return TrainingPlan(
        steps=built.steps,
        batch=batch,
        learning_rate=task.learning_rate,
        weight_decay=settings.weight_decay,
        # `finetune` has no --save-every: a checkpoint is written with every validation
        save_every=validation_interval(settings.validate_every, built.steps),
        seed=settings.seed,
        encoder=built.encoder_schedule,
    )
