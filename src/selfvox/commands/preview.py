"""The verb `preview`: the batch of a pretext task as a picture."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.open_or_build_store import open_or_build_store
from selfvox.errors import UsageError
from selfvox.pretext import PretextTask
from selfvox.reports.figures import draw_preview
from selfvox.reports.preview_picture import question_panels, question_title
from selfvox.runs.progress import echo
from selfvox.settings.verbs import PreparationSettings, Pretrain, Preview
from selfvox.tasks import task_from_setting
from selfvox.training.pretrain_plan import pretrain_plan


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
        rows = question_panels(plan, plan.cases[:prepared], settings.count)
    # after the temporary store is gone: panels are in memory
    draw_preview(rows, question_title(plan), settings.out, slices=plan.slice_axis is not None)
    echo(f"picture: {settings.out}")
    return settings.out


def _pretrain_settings(settings: Preview) -> Pretrain:
    """The settings of the previewed pre-training; those `preview` lacks are at their default."""
    shared = [field.name for field in dataclasses.fields(PreparationSettings)]
    shared += ["scans", "out", "task", "crop", "slices", "seed"]
    return Pretrain(**{name: getattr(settings, name) for name in shared})
