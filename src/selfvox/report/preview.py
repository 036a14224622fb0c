"""The verb `preview`: what a pretext task asks, as a picture."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from selfvox.data.crops import Crops, axis_of_slices, crop_for, in_plane, spacings
from selfvox.data.prepare import prepared
from selfvox.errors import UsageError
from selfvox.pretext import from_setting, to_setting
from selfvox.progress import say
from selfvox.report.figures import draw_preview
from selfvox.settings import Preview
from selfvox.training.loop import generator


def preview(settings: Preview) -> Path:
    """Draw the question that `pretrain` would ask of some scans.

    Returns:
        The picture's path.

    Raises:
        SelfvoxError: a setting or scan that cannot be; says what to do.
    """
    if settings.out.suffix.lower() != ".png" or settings.out.is_dir():
        raise UsageError(f"{settings.out}: is no name for a picture; end it in .png")
    task = from_setting(settings.task)
    with tempfile.TemporaryDirectory() as folder:
        store = prepared(settings.scans, Path(folder) / "store", settings, first=settings.count)
        cases = list(store.cases)[: settings.count]
        axis = axis_of_slices(settings.slices, cases)
        planned = in_plane(cases, axis)
        crop = crop_for(settings.crop, planned, inside=True)
        task = task.suited_to(crop, *spacings(planned))
        crops = Crops(store, cases, crop, settings.seed, axis=axis)
        images = torch.stack([crops[number]["image"] for number in range(len(cases))])
    if len(images) == 1:
        images = images.repeat(2, *(1,) * (images.ndim - 1))  # tasks that compare need two
    question = task.ask(images, generator(settings.seed, 0, 0))
    rows = task.panels(images, question)
    rows = rows[: len(rows) * len(cases) // len(images)]
    named = to_setting(task)
    options = ", ".join(f"{name}={value}" for name, value in named.items() if name != "name")
    draw_preview(rows, f"{named['name']}: {options}", settings.out)
    say(f"picture: {settings.out}")
    return settings.out
