"""The verb `preview`: what a pretext task asks, as a picture."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from selfvox.data.preparation.build_store import open_or_build_store
from selfvox.data.preparation.store import is_store
from selfvox.data.sampling.crop_size import (
    distinct_resolutions,
    distinct_spacings,
    in_plane_cases,
    slice_axis,
)
from selfvox.data.sampling.crops import Crops
from selfvox.errors import UsageError
from selfvox.report.figures import draw_preview
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Preview
from selfvox.tasks import task_from_setting, task_to_setting
from selfvox.training.loop import batch_generator
from selfvox.training.pretrain_plan import check_distinct_scans, pretext_crop


def preview(settings: Preview) -> Path:
    """Draw the question that `pretrain` would ask of some scans.

    Of a store, all scans that are not for testing decide on the crop, and whether their spacings suit the task. Of
    others only as many are prepared as are drawn, or two: with all of them, `pretrain` may decide otherwise.

    Returns:
        The picture's path.

    Raises:
        SelfvoxError: a setting or scan that cannot be; says what to do.
    """
    if settings.out.suffix.lower() != ".png" or settings.out.is_dir():
        raise UsageError(f"{settings.out}: is no name for a picture; end it in .png")
    task = task_from_setting(settings.task)
    least = max(2, settings.count)  # tasks that compare need two
    with tempfile.TemporaryDirectory() as folder:
        store = open_or_build_store(settings.scans, Path(folder) / "store", settings, first=least)
        cases = store.without_test_subjects()
        all_known = is_store(settings.scans) or len(cases) < least
        axis = slice_axis(settings.slices, cases)
        planned = in_plane_cases(cases, axis)
        crop = pretext_crop(task, settings.crop, planned)
        task = task.configure(crop, *distinct_spacings(planned), *distinct_resolutions(planned))
        if all_known:
            check_distinct_scans(task, cases)
        else:
            echo(
                f"only the first {len(cases)} scans were looked at: with all, `pretrain` may choose another crop or "
                "refuse their spacings; preview a store to be sure"
            )
        crops = Crops(store, cases[:least], crop, settings.seed, axis=axis)
        # of a scan that is alone, two crops
        items = [crops[number] for number in range(max(2, len(crops.cases)))]
        images, subjects = (
            torch.stack([item[key] for item in items]) for key in ("image", "subject")
        )
    # more of one person's scans may stand first in a folder than are drawn
    several = len(set(subjects.tolist())) > 1
    question = task.make_batch(
        images, batch_generator(settings.seed, 0, 0), subjects if several else None
    )
    rows = task.preview_panels(images, question)
    rows = rows[: len(rows) * min(settings.count, len(cases)) // len(images)]
    named = task_to_setting(task)
    options = ", ".join(f"{name}={value}" for name, value in named.items() if name != "name")
    channels = store.recipe.channel_names
    if len(channels) > 1 and (axis is not None or store.recipe.spatial_dims == 3):
        options += f"; shown: {channels[0]}, the first of {len(channels)} channels"
    draw_preview(rows, f"{named['name']}: {options}", settings.out, slices=axis is not None)
    echo(f"picture: {settings.out}")
    return settings.out
