"""The verb `preview`: the batch of a pretext task as a picture."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch

from selfvox.data.preparation.build_store import open_or_build_store
from selfvox.data.preparation.store import is_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crops import Crops
from selfvox.errors import UsageError
from selfvox.pretext import Panel, PretextTask
from selfvox.reports.figures import draw_preview
from selfvox.runs.progress import echo
from selfvox.settings.verbs import PreparationSettings, Pretrain, Preview
from selfvox.tasks import task_from_setting, task_to_setting
from selfvox.training.batches import batch_generator
from selfvox.training.pretrain_plan import PretrainPlan, pretrain_plan


def preview(settings: Preview, *, task: PretextTask | None = None) -> Path:
    """Draw what `pretrain` would show the network of some scans.

    Of a store, all scans that are not for testing decide on the crop and on whether their spacings
    suit the task. Of other scans only as many are prepared as are drawn, or two: with all of them,
    `pretrain` may decide otherwise.

    Args:
        settings: of the verb.
        task: a task from Python, instead of the setting.

    Returns:
        The picture's path.

    Raises:
        SelfvoxError: an invalid setting or scan; says what to do.
    """
    if settings.out.suffix.lower() != ".png" or settings.out.is_dir():
        raise UsageError(f"{settings.out}: is not the name of a picture; end it in .png")
    if task is None:
        task = task_from_setting(settings.task)  # refused before any scan is prepared
    prepared = max(2, settings.count)  # tasks that compare scans need two
    with tempfile.TemporaryDirectory() as folder:
        store = open_or_build_store(
            settings.scans, Path(folder) / "store", settings, first=prepared
        )
        plan = pretrain_plan(_pretrain_settings(settings), store, task=task)
        if is_store(settings.scans) or len(plan.cases) < prepared:
            plan.check_distinct_scans()
        else:
            echo(
                f"only the first {len(plan.cases)} scans were looked at: with all, `pretrain` may "
                "choose another crop or refuse their spacings; preview a store to be sure"
            )
        rows = _panels(plan, plan.cases[:prepared], settings.count)
    # after the temporary store is gone: panels are in memory
    draw_preview(rows, _title(plan), settings.out, slices=plan.slice_axis is not None)
    echo(f"picture: {settings.out}")
    return settings.out


def _pretrain_settings(settings: Preview) -> Pretrain:
    """The settings of the previewed pre-training; those `preview` lacks are at their default."""
    shared = [field.name for field in dataclasses.fields(PreparationSettings)]
    shared += ["scans", "out", "task", "crop", "slices", "seed"]
    return Pretrain(**{name: getattr(settings, name) for name in shared})


def _panels(plan: PretrainPlan, cases: list[StoredCase], count: int) -> list[list[Panel]]:
    """The rows of the picture: one or more for each of the first `count` scans."""
    seed = plan.settings.seed
    crops = Crops(
        plan.store, cases, plan.crop, seed, axis=plan.slice_axis, pairs=plan.task.pairs_scans
    )
    # of a single scan, two crops
    items = [crops[number] for number in range(max(2, len(cases)))]
    images = torch.stack([item["image"] for item in items])
    subjects = torch.stack([item["subject"] for item in items])
    # all scans may be of one person, where only the first of a folder are prepared; a task that
    # compares scans then takes each image for one of its own
    several = len(set(subjects.tolist())) > 1
    rng = batch_generator(seed, rank=0, step=0)
    partners = torch.stack([item.get("partner", item["image"]) for item in items])
    batch = plan.task.make_pair_batch(images, partners, rng, subjects if several else None)
    rows = plan.task.preview_panels(images, batch)
    return rows[: len(rows) * min(count, len(cases)) // len(images)]


def _title(plan: PretrainPlan) -> str:
    setting = task_to_setting(plan.task)
    options = ", ".join(f"{name}={value}" for name, value in setting.items() if name != "name")
    title = f"{setting['name']}: {options}"
    channels = plan.store.recipe.channel_names
    is_greyscale = plan.slice_axis is not None or plan.store.recipe.spatial_dims == 3
    if len(channels) > 1 and is_greyscale:
        title += f"; shown: {channels[0]}, the first of {len(channels)} channels"
    return title
