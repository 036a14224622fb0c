"""The state of a training: what its checkpoints contain, and how it is restored from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selfvox.errors import WeightsError
from selfvox.runs.checkpoints import Checkpoint
from selfvox.runs.device import Fabric
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run
from selfvox.runs.weights import load_strictly

_ANOTHER_FOLDER = "start the run again in another folder"


def checkpoint_of(
    step: int, tensors: Mapping[str, Tensor], optimizer: Any, skipped: int
) -> Checkpoint:
    """Everything that the training continues from after `step` steps."""
    moments = {
        f"optimizer.{number}.{name}": value
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    weights = {f"weights.{name}": tensor for name, tensor in tensors.items()}
    state = {"skipped": skipped, "moments": len(moments)}
    return Checkpoint(step, {**weights, **moments}, state)


def restore(
    fabric: Fabric, run: Run, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, int]:
    """Load the last checkpoint if there is one; return the steps taken and the steps skipped.

    Raises:
        WeightsError: every checkpoint is damaged, or the last one is of another network.
    """
    checkpoint = run.last_checkpoint()
    if fabric.is_global_zero:
        run.forget_metrics_after(checkpoint.step if checkpoint else 0)
    if checkpoint is None:
        return 0, 0
    origin = f"{run.path}: checkpoint of step {checkpoint.step}"
    prefix = "weights."
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix)
    }
    load_strictly(objective, weights, origin)
    _restore_optimizer(optimizer, checkpoint, origin)
    echo(f"resuming from step {checkpoint.step}")
    return checkpoint.step, checkpoint.state.get("skipped", 0)


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, checkpoint: Checkpoint, origin: str
) -> None:
    """Load the moments of the gradients.

    Raises:
        WeightsError: they are not those of the optimizer's parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shapes = {
        f"optimizer.{number}.{name}": shape
        for number, parameter in enumerate(parameters)
        for name, shape in (
            ("step", torch.Size()),
            ("exp_avg", parameter.shape),
            ("exp_avg_sq", parameter.shape),
        )
    }
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.tensors.items():
        kind, _, name = key.partition(".")
        if kind == "weights":
            continue
        if tensor.shape != shapes.get(key) or not tensor.is_floating_point():
            raise WeightsError(f"{origin}: '{key}' is not of this network; {_ANOTHER_FOLDER}")
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = tensor
    count = sum(map(len, moments.values()))
    # parameters without a gradient have none
    if count != checkpoint.state.get("moments", count) or count != 3 * len(moments):
        raise WeightsError(f"{origin}: moments of gradients are missing; {_ANOTHER_FOLDER}")
    optimizer.load_state_dict(
        {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
    )
