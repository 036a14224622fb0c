"""One optimiser step: accumulated gradients, clipped; skipped where something is not finite.

The device skips it by itself: the CPU does not wait for it to learn whether it did.

Where the device is out of memory, each batch is computed in parts, and their gradients are added.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfvox.errors import ResourceError, is_out_of_memory
from selfvox.ops.outcome import Outcome
from selfvox.runs.device import Fabric
from selfvox.runs.progress import echo
from selfvox.training.batches import batch_generator
from selfvox.training.schedule import TrainingPlan
from selfvox.training.training_log import TrainingLog

BeforeUpdate = Callable[[int, Outcome], None]


class StepOutcome(NamedTuple):
    """What a step did."""

    step: int  # number of steps taken before
    outcomes: list[Outcome]  # of its batches, detached
    is_skipped: Tensor  # (), on the device: 1 where something was not finite; to read it is to wait


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
            batch when the gradients are there, finite or not.
        min_batch: the smallest number of images with a loss to learn from.
        parts: of each batch, computed one after the other; more of them if memory is full.
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
        min_batch: int = 1,
        parts: int = 1,
    ):
        self.fabric = fabric
        self.module = module
        self.optimizer = optimizer
        self.plan = plan
        self.batches = batches
        self.log = log
        self.before_update = before_update
        self.min_batch = min_batch
        self.parts = parts

    def take(self, step: int) -> StepOutcome:
        """Take one step.

        Where a loss or the gradient of any device is not finite, weights, moments and buffers stay
        what they were.

        Raises:
            ResourceError: the device is out of memory.
        """
        for group, rate in zip(
            self.optimizer.param_groups, self.plan.rates_at(step).values(), strict=True
        ):
            group["lr"] = rate
        with self._restored_buffers() as restore:
            outcomes = self._accumulate(step, restore)
            numbers = torch.stack([self._clip(), *(outcome.loss for outcome in outcomes)])
            is_skipped = (~numbers.isfinite().all()).float()
            if self.fabric.world_size > 1:
                # all skip or none: weights must stay the same on all devices
                reduced = self.fabric.all_reduce(is_skipped, reduce_op="max")
                assert isinstance(reduced, Tensor)
                is_skipped = reduced
            self.before_update(step + 1, outcomes[-1])
            # as of a gradient scaler: the fused update changes nothing where it is 1
            self.optimizer.optimizer.found_inf = is_skipped
            self.optimizer.step()
            restore(is_skipped > 0)
            self.optimizer.zero_grad()
        return StepOutcome(step, outcomes, is_skipped)

    @contextlib.contextmanager
    def _restored_buffers(self) -> Iterator[Callable[[Tensor | None], None]]:
        """Yield a function that gives all buffers their values of now, where a flag is true.

        An error calls it too.
        """
        # a batch norm's statistics; most networks have no buffers
        buffers = [buffer.clone() for buffer in self.module.buffers()]

        def restore(flag: Tensor | None = None) -> None:
            for buffer, value in zip(self.module.buffers(), buffers, strict=True):
                buffer.copy_(value if flag is None else torch.where(flag, value, buffer))

        try:
            yield restore
        except BaseException:
            restore(None)
            raise

    def _accumulate(self, step: int, restore: Callable[[Tensor | None], None]) -> list[Outcome]:
        """Add the gradients of the step's batches; in more parts, if memory is full.

        Raises:
            ResourceError: it is full with the smallest parts, too.
        """
        taken: list[dict[str, Tensor]] = []
        while True:
            try:
                outcomes = []
                for number in range(self.plan.accumulate):
                    if number == len(taken):
                        with self.log.waiting():
                            taken.append(next(self.batches))
                    outcomes += self._backward(step, number, taken[number])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                return outcomes
            # after the error is gone, which keeps the tensors of its frames
            self.optimizer.zero_grad()
            restore(None)
            self._halve(step)

    def _halve(self, step: int) -> None:
        """Compute each batch in twice as many parts from now on.

        Raises:
            ResourceError: the parts would be too small, or other devices would wait for this one.
        """
        parts = 2 * self.parts
        size = self.plan.batch // parts
        if size < self.min_batch or self.fabric.world_size > 1:
            raise ResourceError(
                "the device is out of memory; use a smaller --batch with --accumulate, or a "
                "smaller --crop"
            )
        self.parts = parts
        if self.fabric.device.type == "cuda":
            torch.cuda.empty_cache()
        echo(
            f"step {step}: out of memory; from now on each batch of {self.plan.batch} images is "
            f"computed in {parts} parts, one after the other: a step still learns from all, but a "
            "loss compares only images of one part"
        )

    def _backward(self, step: int, micro_batch: int, batch: dict[str, Tensor]) -> list[Outcome]:
        """Add the gradients of one of the step's batches."""
        outcomes = []
        images = len(next(iter(batch.values())))
        for part in range(self.parts):
            ends = slice(part * images // self.parts, (part + 1) * images // self.parts)
            # as with a smaller batch, and more of them accumulated
            number = micro_batch * self.parts + part
            rng = batch_generator(self.plan.seed, self.fabric.global_rank, step, number)
            # dropout draws from torch's global generator
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=rng)))
            # devices exchange gradients once a step, with its last batch
            is_last = number == self.plan.accumulate * self.parts - 1
            with self.fabric.no_backward_sync(self.module, enabled=not is_last):
                values = {name: value[ends] for name, value in batch.items()}
                outcome: Outcome = self.module(values, step, rng)
                # the mean of the images, as one large batch has it
                share = (ends.stop - ends.start) / images
                self.fabric.backward(outcome.loss * share / self.plan.accumulate)
            outcomes.append(outcome._replace(loss=outcome.loss.detach()))
        return outcomes

    def _clip(self) -> Tensor:
        """Clip the gradients' norm; return what it was."""
        norm = self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=self.plan.clip, error_if_nonfinite=False
        )
        assert norm is not None
        return norm.float()


def largest_of_devices(fabric: Fabric, number: int) -> int:
    """The largest of the devices' numbers, so that all stop, or skip a step, together."""
    if fabric.world_size == 1:
        return number
    tensor = torch.tensor(number, device=fabric.device)
    return int(fabric.all_reduce(tensor, reduce_op="max"))  # type: ignore[arg-type]
