"""The verb `preview`: what a pretext task asks, as a picture."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from selfvox.data.preparation.build_store import prepared
from selfvox.data.preparation.store import is_store
from selfvox.data.sampling.crop_size import axis_of_slices, in_plane, resolutions, spacings
from selfvox.data.sampling.crops import Crops
from selfvox.errors import UsageError
from selfvox.report.figures import draw_preview
from selfvox.runs.progress import say
from selfvox.settings.verbs import Preview
from selfvox.tasks import from_setting, to_setting
from selfvox.training.loop import generator
from selfvox.training.pretrain_plan import crop_with_room, refuse_one_alone


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
    task = from_setting(settings.task)
    least = max(2, settings.count)  # tasks that compare need two
    with tempfile.TemporaryDirectory() as folder:
        store = prepared(settings.scans, Path(folder) / "store", settings, first=least)
        split = store.split()
        cases = [case for case in store.cases if not split or case.subject not in split.test]
        all_known = is_store(settings.scans) or len(cases) < least
        axis = axis_of_slices(settings.slices, cases)
        planned = in_plane(cases, axis)
        crop = crop_with_room(task, settings.crop, planned)
        task = task.suited_to(crop, *spacings(planned), *resolutions(planned))
        if all_known:
            refuse_one_alone(task, cases)
        else:
            say(
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
    question = task.ask(images, generator(settings.seed, 0, 0), subjects if several else None)
    rows = task.panels(images, question)
    rows = rows[: len(rows) * min(settings.count, len(cases)) // len(images)]
    named = to_setting(task)
    options = ", ".join(f"{name}={value}" for name, value in named.items() if name != "name")
    channels = store.recipe.channel_names
    if len(channels) > 1 and (axis is not None or store.recipe.spatial_dims == 3):
        options += f"; shown: {channels[0]}, the first of {len(channels)} channels"
    draw_preview(rows, f"{named['name']}: {options}", settings.out, slices=axis is not None)
    say(f"picture: {settings.out}")
    return settings.out
