"""The only optimisation loop: steps, not epochs; every batch a function of the seed and the step."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from selfvox.errors import NumericalError, ResourceError, Stopped
from selfvox.ops.outcome import Batch, Outcome
from selfvox.runs.progress import echo, progress_bar
from selfvox.runs.run_folder import Checkpoint, Run
from selfvox.runs.weights import load_strictly, state_tensors
from selfvox.training.embedding_health import chance_scores

LOG_EVERY = 10
MOST_BAD_IN_A_ROW = 3


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How to optimise."""

    steps: int
    batch: int  # samples per device
    accumulate: int = 1
    learning_rate: float
    weight_decay: float
    warmup: float = 0.05  # share of the steps in which the learning rate rises
    clip: float = 1.0  # largest norm of the gradient
    save_every: int
    seed: int

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return (
            self.learning_rate
            * 0.5
            * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))
        )


def count_steps(steps: int, epochs: float | None, scans: int, batch: int) -> int:
    """Optimiser steps: as many as asked for, or as epochs of so many scans give, `batch` of them a step."""
    return steps if epochs is None else max(1, math.ceil(epochs * scans / batch))


class Objective(nn.Module):
    """What is optimised: `forward(batch, step, rng)` gives the outcome of one batch. Subclassed by each verb."""

    def forward(self, batch: Batch, step: int, rng: torch.Generator) -> Outcome:  # noqa: D102
        raise NotImplementedError


def train(
    fabric: Fabric,
    run: Run,
    objective: Objective,
    data: Dataset[dict[str, Tensor]],
    plan: TrainingPlan,
    *,
    title: str,
    after_step: Callable[[int], Mapping[str, float]] | None = None,
    before_update: Callable[[int, Outcome], None] | None = None,
) -> None:
    """Optimise `objective` for `plan.steps` steps, from the run's last checkpoint if it has one.

    A run that was killed and goes on ends with the very weights it would have had: batches and draws follow from the
    seed and the step, and a checkpoint holds all else.

    Args:
        fabric: devices and precision.
        run: where metrics and checkpoints go.
        objective: what to minimise; its parameters are trained.
        data: crops by sample number, endless.
        plan: how to optimise.
        title: of the progress line.
        after_step: called after every step with the number of steps taken; what it returns is logged with the step.
        before_update: called with a step's number, from 1 on, and its outcome when the gradients are there and finite.

    Raises:
        NumericalError: several steps in a row had no finite loss or gradient.
        ResourceError: memory ran out.
        Stopped: a signal came; a checkpoint was written first.
    """
    fabric.to_device(
        objective
    )  # before a checkpoint's moments are loaded, which go where the weights are
    # the names of the tensors are those of the bare module, whatever wraps it
    tensors = state_tensors(objective)
    optimizer = torch.optim.AdamW(
        objective.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
    )
    step, skipped = _restore(fabric, run, objective, optimizer)
    module, optimizer = fabric.setup(objective, optimizer)
    with (
        contextlib.closing(_batches(fabric, data, plan, step)) as batches,
        _Signals() as stop,
        progress_bar(title, plan.steps, step) as bar,
    ):
        bad_in_a_row, clock = 0, _Clock(plan.batch * fabric.world_size)
        while step < plan.steps:
            outcome = _take_step(
                fabric, module, optimizer, batches, plan, step, clock, before_update
            )
            if outcome is None:
                bad_in_a_row, skipped = bad_in_a_row + 1, skipped + 1
                if bad_in_a_row > MOST_BAD_IN_A_ROW or skipped > max(
                    MOST_BAD_IN_A_ROW, plan.steps // 100
                ):
                    raise NumericalError(
                        f"{run.path}: step {step} has no finite loss or gradient, and {skipped - 1} before it; "
                        "lower --learning-rate, or use --precision fp32"
                    )
                echo(f"step {step}: loss or gradient is not finite; the step was skipped")
            else:
                bad_in_a_row = 0
            step += 1
            with clock.standing():
                extra = dict(after_step(step)) if after_step else {}
            if extra or step % LOG_EVERY == 0 or step == plan.steps:
                measured = {"skipped": float(skipped)} | extra
                if outcome is not None:
                    measured = (
                        clock.measure(outcome, plan.learning_rate_at(step - 1), skipped) | extra
                    )
                    clock.note = _caption(measured)
                if fabric.is_global_zero:
                    run.log(step, measured)
            bar.advance(clock.note)
            signal_number = _largest(fabric, stop.number)
            if signal_number or step % plan.save_every == 0 or step == plan.steps:
                if fabric.is_global_zero:
                    run.save_checkpoint(_checkpoint(step, tensors, optimizer, skipped))
                fabric.barrier()
            if signal_number and step < plan.steps:
                name = signal.Signals(signal_number).name
                raise Stopped(
                    f"{run.path}: stopped by {name} after step {step}, saved; go on with --resume",
                    signal_number,
                )


def _take_step(
    fabric: Fabric,
    module: Any,
    optimizer: Any,
    batches: Iterator[dict[str, Tensor]],
    plan: TrainingPlan,
    step: int,
    clock: _Clock,
    before_update: Callable[[int, Outcome], None] | None,
) -> Outcome | None:
    """One optimiser step; None, and weights untouched, where the loss or the gradient is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = plan.learning_rate_at(step)
    finite = True
    buffers = [
        buffer.clone() for buffer in module.buffers()
    ]  # a batch norm's statistics; most networks have none
    try:
        for part in range(plan.accumulate):
            with clock.waiting():
                batch = next(batches)
            rng = batch_generator(plan.seed, fabric.global_rank, step, part)
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=rng)))  # dropout
            with fabric.no_backward_sync(module, enabled=part < plan.accumulate - 1):
                outcome: Outcome = module(batch, step, rng)
                fabric.backward(outcome.loss / plan.accumulate)
            finite = finite and bool(torch.isfinite(outcome.loss))
        norm = fabric.clip_gradients(
            module, optimizer, max_norm=plan.clip, error_if_nonfinite=False
        )
        assert norm is not None
        finite = finite and bool(torch.isfinite(norm))
        if finite := not _largest(fabric, not finite):
            if before_update:
                before_update(step + 1, outcome)
            optimizer.step()
        else:
            for buffer, value in zip(module.buffers(), buffers, strict=True):
                buffer.copy_(value)
        optimizer.zero_grad()
    except torch.OutOfMemoryError:
        raise ResourceError(
            "the device's memory is full; use a smaller --batch with --accumulate, or a smaller --crop"
        ) from None
    return outcome if finite else None


def batch_generator(seed: int, rank: int, step: int, part: int = 0) -> torch.Generator:
    """The random stream of one batch: a function of the seed, the device and the step alone, on the CPU."""
    mixed = 0
    for number in (seed, rank, step, part):
        # one round of SplitMix64 for each number
        mixed = (mixed + number + 0x9E3779B97F4A7C15) % (1 << 64)
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % (1 << 64)
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed % (1 << 63))


def _batches(
    fabric: Fabric, data: Dataset[dict[str, Tensor]], plan: TrainingPlan, step: int
) -> Generator[dict[str, Tensor], None, None]:
    """Batches from step `step` on; batch `b` of device `r` holds the samples from `(b * devices + r) * batch` on."""

    def numbers() -> Iterator[list[int]]:
        for number in range(step * plan.accumulate, plan.steps * plan.accumulate):
            first = (number * fabric.world_size + fabric.global_rank) * plan.batch
            yield list(range(first, first + plan.batch))

    on_gpu = fabric.device.type == "cuda"
    # beside a CPU that trains, a process that reads would only take its core
    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        data,
        batch_sampler=_Sampler(numbers),
        num_workers=4 if on_gpu else 0,
        pin_memory=on_gpu,
        worker_init_fn=_leave_signals,
    )
    for batch in loader:
        yield fabric.to_device(batch)


def _leave_signals(worker: int) -> None:
    """A signal to the whole group of processes is for the one that trains, which still needs the others' batches."""
    for number in _Signals.CAUGHT:
        signal.signal(number, signal.SIG_IGN)


class _Sampler:
    """Lists of sample numbers, made on demand."""

    def __init__(self, numbers: Callable[[], Iterator[list[int]]]):
        self.numbers = numbers

    def __iter__(self) -> Iterator[list[int]]:
        return self.numbers()


def _checkpoint(
    step: int, tensors: Mapping[str, Tensor], optimizer: Any, skipped: int
) -> Checkpoint:
    moments = {
        f"optimizer.{number}.{name}": value
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    weights = {f"weights.{name}": tensor for name, tensor in tensors.items()}
    return Checkpoint(step, {**weights, **moments}, {"skipped": skipped})


def _restore(
    fabric: Fabric, run: Run, objective: Objective, optimizer: torch.optim.Optimizer
) -> tuple[int, int]:
    """Load the last checkpoint, if there is one; how many steps were taken, and how many of them skipped."""
    checkpoint = run.last_checkpoint()
    if fabric.is_global_zero:
        run.forget_metrics_after(checkpoint.step if checkpoint else 0)
    if checkpoint is None:
        return 0, 0
    weights, state = {}, dict[int, dict[str, Tensor]]()
    for key, tensor in checkpoint.tensors.items():
        kind, _, name = key.partition(".")
        if kind == "weights":
            weights[name] = tensor
        else:
            number, _, moment = name.partition(".")
            state.setdefault(int(number), {})[moment] = tensor
    load_strictly(objective, weights, f"{run.path}: checkpoint of step {checkpoint.step}")
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    echo(f"going on from step {checkpoint.step}")
    return checkpoint.step, int(checkpoint.state["skipped"])


class _Clock:
    """Speed of the steps, and the share of their time spent waiting for data."""

    def __init__(self, samples_per_batch: int):
        self.samples_per_batch = samples_per_batch
        self.note = ""
        self._since, self._waited, self._batches = time.monotonic(), 0.0, 0

    def waiting(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._waited += time.monotonic() - self._began
        self._batches += 1

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Stand still: what is done between steps, such as validation, is none of their time."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def measure(self, outcome: Outcome, learning_rate: float, skipped: int) -> dict[str, float]:
        """What is logged: since the last call, and of the last batch."""
        now = time.monotonic()
        passed = max(1e-9, now - self._since)
        measured = {
            "loss": float(outcome.loss.detach()),
            **{name: float(value) for name, value in outcome.metrics.items()},
            "learning_rate": learning_rate,
            "skipped": float(skipped),
            "images_per_s": self._batches * self.samples_per_batch / passed,
            "waiting": self._waited / passed,
        }
        self._since, self._waited, self._batches = now, 0.0, 0
        return measured


def _caption(measured: Mapping[str, float]) -> str:
    """`loss 1.23  accuracy .45 (chance .10)  12.3 images/s  1 % waiting`; of several tasks, each by its name."""
    parts = [f"loss {measured['loss']:.3f}"]
    for name, score in chance_scores(measured).items():
        called = name.removesuffix("/accuracy").replace("/", " ")
        parts.append(f"{called} {score.value:z.2f} (chance {score.chance:.2f})")
    parts += [
        f"{measured['images_per_s']:.1f} images/s",
        f"{100 * measured['waiting']:.0f} % waiting",
    ]
    return "  ".join(parts)


class _Signals:
    """Note SIGTERM, SIGINT and SIGUSR1 instead of dying of them; a second SIGINT ends the process at once."""

    CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __enter__(self) -> _Signals:
        self.number = 0
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.CAUGHT}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.number = number
        # where the signal fell into the writing of another line, Python refuses to write this one
        with contextlib.suppress(RuntimeError):
            again = "; press Ctrl-C again to end at once" if number == signal.SIGINT else ""
            echo(f"finishing this step and saving{again}")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _largest(fabric: Fabric, number: int) -> int:
    """The largest of the devices' numbers, so that all stop, or skip a step, together."""
    if fabric.world_size == 1:
        return number
    return int(fabric.all_reduce(torch.tensor(int(number), device=fabric.device), reduce_op="max"))  # type: ignore[arg-type]
