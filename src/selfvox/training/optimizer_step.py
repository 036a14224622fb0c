"""One optimiser step: accumulated gradients, clipped; skipped where something is not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from selfvox.errors import ResourceError
from selfvox.ops.outcome import Outcome
from selfvox.runs.device import Fabric
from selfvox.training.batches import batch_generator
from selfvox.training.schedule import TrainingPlan
from selfvox.training.training_log import TrainingLog

BeforeUpdate = Callable[[int, Outcome], None]


class Stepper:
    """Takes the optimiser's steps.

    Args:
        fabric: devices and precision.
        module: the objective, as `fabric.setup` returned it.
        optimizer: likewise.
        plan: how to optimise.
        batches: of this device, in order.
        log: measures how long batches take to arrive.
        before_update: called with the number of a step, from 1 on, and the outcome of its last
            batch when the gradients are there and finite.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: Any,
        optimizer: Any,
        plan: TrainingPlan,
        batches: Iterator[dict[str, Tensor]],
        log: TrainingLog,
        before_update: BeforeUpdate,
    ):
        self.fabric = fabric
        self.module = module
        self.optimizer = optimizer
        self.plan = plan
        self.batches = batches
        self.log = log
        self.before_update = before_update

    def take(self, step: int) -> list[Outcome]:
        """Take one step; return the outcome of each of its batches, detached.

        Where a loss or the gradient of any device is not finite, no outcome is returned, and
        weights and buffers stay what they were.

        Raises:
            ResourceError: the device is out of memory.
        """
        for group, rate in zip(
            self.optimizer.param_groups, self.plan.rates_at(step).values(), strict=True
        ):
            group["lr"] = rate
        with _out_of_memory_explained(), self._restored_buffers() as restore:
            outcomes = [self._backward(step, number) for number in range(self.plan.accumulate)]
            is_finite = self._clip() and all(outcome.loss.isfinite() for outcome in outcomes)
            # all skip or none: weights must stay the same on all devices
            if largest_of_devices(self.fabric, int(not is_finite)):
                outcomes = []
                restore()
            else:
                self.before_update(step + 1, outcomes[-1])
                self.optimizer.step()
            self.optimizer.zero_grad()
        return outcomes

    @contextlib.contextmanager
    def _restored_buffers(self) -> Iterator[Callable[[], None]]:
        """Yield a function that gives all buffers their values of now; an error calls it too."""
        # a batch norm's statistics; most networks have no buffers
        buffers = [buffer.clone() for buffer in self.module.buffers()]

        def restore() -> None:
            for buffer, value in zip(self.module.buffers(), buffers, strict=True):
                buffer.copy_(value)

        try:
            yield restore
        except BaseException:
            restore()
            raise

    def _backward(self, step: int, micro_batch: int) -> Outcome:
        """Add the gradients of one of the step's batches."""
        with self.log.waiting():
            batch = next(self.batches)
        rng = batch_generator(self.plan.seed, self.fabric.global_rank, step, micro_batch)
        # dropout draws from torch's global generator
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=rng)))
        # devices exchange gradients once a step, with its last batch
        is_last = micro_batch == self.plan.accumulate - 1
        with self.fabric.no_backward_sync(self.module, enabled=not is_last):
            outcome: Outcome = self.module(batch, step, rng)
            # the mean of the batches, as one large batch has it
            self.fabric.backward(outcome.loss / self.plan.accumulate)
        return outcome._replace(loss=outcome.loss.detach())

    def _clip(self) -> bool:
        """Clip the gradients' norm; return whether it is finite."""
        norm = self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=self.plan.clip, error_if_nonfinite=False
        )
        assert norm is not None
        return bool(norm.isfinite())


def largest_of_devices(fabric: Fabric, number: int) -> int:
    """The largest of the devices' numbers, so that all stop, or skip a step, together."""
    if fabric.world_size == 1:
        return number
    tensor = torch.tensor(number, device=fabric.device)
    return int(fabric.all_reduce(tensor, reduce_op="max"))  # type: ignore[arg-type]


@contextlib.contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise ResourceError(
            "the device is out of memory; use a smaller --batch with --accumulate, or a smaller "
            "--crop"
        ) from None
