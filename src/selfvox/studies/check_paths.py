"""What a plan names outside of itself: scans, runs and predictions; checked before any is read."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from selfvox.errors import DataError, SelfvoxError, UsageError, list_problems
from selfvox.registration.register import check_installed
from selfvox.studies.design import Cell, list_cells
from selfvox.studies.facts import MethodFacts
from selfvox.studies.made_elsewhere import folder_of
from selfvox.studies.plan import Method, Plan
from selfvox.studies.stores import encoder_card


def check_paths(plan: Plan) -> None:
    """Refuse a plan that names what is not there, all of it at once.

    Raises:
        SelfvoxError: scans, runs or predictions are missing, or a library is not installed.
    """
    problems = list(dict.fromkeys(map(str, _problems(plan))))
    if len(problems) == 1:
        raise next(_problems(plan))
    if problems:
        raise DataError(list_problems(problems))


def _problems(plan: Plan) -> Iterator[SelfvoxError]:
    """Everything that is missing."""
    if not plan.data.exists():
        yield DataError(f"{plan.data}: does not exist; correct `data` in the plan")
    for method in plan.resolved_methods:
        yield from _missing_scans(method)
        if isinstance(method.pretrain, str):
            try:
                encoder_card(Path(method.pretrain))
            except SelfvoxError as error:
                yield error
        if method.atlases is not None or method.finetune.get("teacher") in ("atlas", "both"):
            try:
                check_installed()
            except SelfvoxError as error:
                yield error
        if method.is_supervised and importlib.util.find_spec("dipy") is None:
            yield UsageError(
                f"methods.{method.name}: tissues need dipy; pip install 'selfvox[tissues]'"
            )
        if method.predictions is not None:
            yield from _missing_predictions(plan, method)


def _missing_scans(method: Method) -> Iterator[SelfvoxError]:
    pretrain = method.pretrain if isinstance(method.pretrain, dict) else {}
    named = {
        "pretrain.scans": pretrain.get("scans"),
        "pretrain.probe": pretrain.get("probe"),
        "finetune.unlabelled": method.finetune.get("unlabelled"),
    }
    for place, path in named.items():
        if path is not None and not Path(path).exists():
            yield DataError(f"{path}: does not exist; correct {place} of the method {method.name}")


def _missing_predictions(plan: Plan, method: Method) -> Iterator[SelfvoxError]:
    assert method.predictions is not None
    for cell in _cells_of(plan, method):
        folder = folder_of(method.predictions, cell)
        if not folder.is_dir():
            yield DataError(
                f"{folder}: is no folder; put the predictions of the method {method.name} there, "
                "or remove it"
            )


def _cells_of(plan: Plan, method: Method) -> list[Cell]:
    """The cells of a method without a network; nothing needs to be measured for these."""
    facts: dict[str, MethodFacts] = {}
    return [cell for cell in list_cells(plan, facts) if cell.arm.name == method.name]
