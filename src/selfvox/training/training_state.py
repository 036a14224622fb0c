"""The state of a training: what its checkpoints contain, and how it is restored from one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selfvox.errors import DataError, ResourceError, WeightsError
from selfvox.runs.checkpoints import Checkpoint
from selfvox.runs.device import Fabric
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run
from selfvox.runs.weights import load_strictly

RETRY_AFTER_S = (5, 20, 60)  # others may remove files meanwhile
_ANOTHER_FOLDER = "start the run again in another folder"


class Position(NamedTuple):
    """How far a training is."""

    step: int  # steps taken
    skipped: int = 0  # of these, without an update
    parts: int = 1  # that each batch is computed in


def checkpoint_of(position: Position, tensors: Mapping[str, Tensor], optimizer: Any) -> Checkpoint:
    """Everything that a training continues from."""
    moments = {
        f"optimizer.{number}.{name}": value
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    weights = {f"weights.{name}": tensor for name, tensor in tensors.items()}
    state = {
        "skipped": position.skipped,
        "parts": position.parts,
        "moments": len(moments),
    }
    return Checkpoint(position.step, {**weights, **moments}, state)


class CheckpointSaver:
    """Saves the state of a training, on the first of several devices.

    Args:
        fabric: says which device this is.
        run: gets the checkpoints.
        tensors: of the objective, by name.
        optimizer: has the moments of the gradients.
    """

    def __init__(self, fabric: Fabric, run: Run, tensors: Mapping[str, Tensor], optimizer: Any):
        self.is_main = fabric.is_global_zero
        self.run = run
        self.tensors = tensors
        self.optimizer = optimizer

    def save(self, position: Position, *, patient: bool = True) -> None:
        """Save the state.

        Args:
            position: how far the training is.
            patient: if the disk is full, try again a few times.

        Raises:
            ResourceError: the disk is full; names the last checkpoint.
        """
        if not self.is_main:
            return
        checkpoint = checkpoint_of(position, self.tensors, self.optimizer)
        for seconds in RETRY_AFTER_S if patient else ():
            try:
                return self.run.save_checkpoint(checkpoint)
            except ResourceError as error:
                echo(f"{error}; trying again in {seconds} s")
            time.sleep(seconds)
        try:
            self.run.save_checkpoint(checkpoint)
        except ResourceError as error:
            last = self.run.newest_checkpoint()
            state = "there is no checkpoint" if last is None else f"the last is of step {last}"
            raise ResourceError(f"{error}; {state}, go on with --resume") from None

    def save_after(
        self, error: DataError | ResourceError, position: Position
    ) -> DataError | ResourceError:
        """Save the state, if there is any, after an error; returns the error, which says so."""
        # the error that ends the run matters more
        with contextlib.suppress(OSError, ResourceError):
            if position.step and self.is_main:
                self.save(position, patient=False)
                saved = type(error)(
                    f"{error}; saved after step {position.step}, go on with --resume"
                )
                saved.exit_code = error.exit_code
                return saved
        return error


def restore(
    fabric: Fabric, run: Run, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> Position:
    """Load the last checkpoint if there is one; return how far the training is.

    Raises:
        WeightsError: every checkpoint is damaged, or the last one is of another network.
    """
    checkpoint = run.last_checkpoint()
    if fabric.is_global_zero:
        run.forget_metrics_after(checkpoint.step if checkpoint else 0)
    if checkpoint is None:
        return Position(0)
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
    return Position(
        checkpoint.step, checkpoint.state.get("skipped", 0), checkpoint.state.get("parts", 1)
    )


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
    # the fused optimizer assumes moments in the memory layout of their weights, without a check
    for parameter, state in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.empty_like(parameter).copy_(state[name])
