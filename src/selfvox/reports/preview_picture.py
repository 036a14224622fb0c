"""The question of a pretext task as a picture: for `preview`, and for the page of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.store import open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crops import Crops
from selfvox.errors import SelfvoxError
from selfvox.pretext import Panel
from selfvox.reports.figures import draw_preview
from selfvox.settings import safe_yaml
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Pretrain
from selfvox.tasks import task_to_setting
from selfvox.training.batches import batch_generator
from selfvox.training.pretrain_plan import PretrainPlan, pretrain_plan

_SHOWN = 2  # scans in the page of a run; tasks that compare scans need as many


def preview_bytes(run: Path) -> bytes | None:
    """The question of a pre-training run, as a PNG; None where its scans are not there any more."""
    try:
        settings = resolve(Pretrain, safe_yaml.read_yaml(run / "settings.yaml"))
        folder = settings.scans if is_store(settings.scans) else run / "store"
        plan = pretrain_plan(settings, open_store(folder))
        cases = plan.cases[:_SHOWN]
        rows = question_panels(plan, cases, _SHOWN)
    except SelfvoxError:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "preview.png"
        draw_preview(rows, question_title(plan), path, slices=plan.slice_axis is not None)
        return path.read_bytes()


def question_panels(
    plan: PretrainPlan, cases: Sequence[StoredCase], count: int
) -> list[list[Panel]]:
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


def question_title(plan: PretrainPlan) -> str:
    """The task and its options."""
    setting = task_to_setting(plan.task)
    options = ", ".join(f"{name}={value}" for name, value in setting.items() if name != "name")
    title = f"{setting['name']}: {options}"
    channels = plan.store.recipe.channel_names
    is_greyscale = plan.slice_axis is not None or plan.store.recipe.spatial_dims == 3
    if len(channels) > 1 and is_greyscale:
        title += f"; shown: {channels[0]}, the first of {len(channels)} channels"
    return title
