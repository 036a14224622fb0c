"""Weights after a few steps are those of AdamW computed by hand."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from selfvox.errors import ResourceError
from selfvox.ops.outcome import Outcome
from selfvox.runs.device import make_fabric
from selfvox.runs.run_folder import Run, read_metrics
from selfvox.training.loop import Hooks, Objective, train
from selfvox.training.schedule import TrainingPlan

START = [2.0, -3.0]
# the gradient of each batch: an ordinary one, a huge one that is clipped, and small ones
GRADIENTS = [[0.48, 0.64], [3e6, 4e6], [0.03, -0.01], [0.02, 0.05], [-0.1, 0.2], [0.06, 0.08]]


class Gradients(Dataset):
    """A sample is the gradient of the loss."""

    def __getitem__(self, number):
        return {"gradient": torch.tensor(GRADIENTS[number])}


class Linear(Objective):
    """A loss with the batch as its gradient."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(START))

    def forward(self, batch, step, rng):
        gradient = batch["gradient"].mean(0)
        return Outcome((self.weight * gradient).sum(), {"size": gradient.abs().sum()})


def plan(**settings):
    defaults = {"batch": 1, "learning_rate": 0.1, "weight_decay": 0.3, "save_every": 2, "seed": 0}
    return TrainingPlan(**defaults | settings)


def optimise(folder, objective, data, training_plan, hooks=None):
    folder.mkdir(exist_ok=True)
    run = Run(folder, {})
    fabric = make_fabric("cpu", 1, "fp32")
    train(fabric, run, objective, data, training_plan, title="test", hooks=hooks or Hooks())
    return run


def adamw(gradients, training_plan, steps=None):
    """The weights after these steps, one number at a time (Loshchilov and Hutter 2019, alg. 2).

    `steps` are their numbers, if some between them were skipped.
    """
    steps = steps or range(len(gradients))
    weights = list(START)
    first = [0.0] * len(weights)
    second = [0.0] * len(weights)
    for step, gradient in enumerate(gradients):
        norm = math.sqrt(sum(value**2 for value in gradient))
        clipped = [value * min(1.0, training_plan.clip / norm) for value in gradient]
        rate = training_plan.learning_rate_at(steps[step])
        for place, value in enumerate(clipped):
            first[place] = 0.9 * first[place] + 0.1 * value
            second[place] = 0.999 * second[place] + 0.001 * value**2
            mean = first[place] / (1 - 0.9 ** (step + 1))
            variance = second[place] / (1 - 0.999 ** (step + 1))
            weights[place] -= rate * training_plan.weight_decay * weights[place]
            weights[place] -= rate * mean / (math.sqrt(variance) + 1e-8)
    return weights


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_steps_are_those_of_adamw_on_clipped_mean_gradients(tmp_path, accumulate):
    training_plan = plan(steps=6 // accumulate, accumulate=accumulate)
    objective = Linear()
    optimise(tmp_path, objective, Gradients(), training_plan)
    batches = [GRADIENTS[first : first + accumulate] for first in range(0, 6, accumulate)]
    means = [[sum(column) / accumulate for column in zip(*group, strict=True)] for group in batches]
    assert objective.weight.tolist() == pytest.approx(adamw(means, training_plan), rel=1e-5)


def test_weight_decay_shrinks_weights_without_a_gradient(tmp_path):
    class Zeros(Gradients):
        def __getitem__(self, number):
            return {"gradient": torch.zeros(2)}

    objective = Linear()
    optimise(tmp_path, objective, Zeros(), plan(steps=1))
    # one step at the full rate of .1, by a decay of .3
    assert objective.weight.tolist() == pytest.approx([value * (1 - 0.03) for value in START])


class Dropped(Objective):
    """A loss that depends on dropout."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(50))

    def forward(self, batch, step, rng):
        if step == self.fails_at:
            raise KeyboardInterrupt
        dropped = nn.functional.dropout(self.weight, 0.5)
        return Outcome((dropped * torch.arange(50)).square().sum(), {})

    fails_at = None


def test_dropout_of_a_step_is_the_same_in_a_resumed_run(tmp_path):
    training_plan = plan(steps=6)
    alone = Dropped()
    optimise(tmp_path / "alone", alone, Gradients(), training_plan)
    stopped = Dropped()
    stopped.fails_at = 5
    with pytest.raises(KeyboardInterrupt):
        optimise(tmp_path / "resumed", stopped, Gradients(), training_plan)
    torch.manual_seed(123)  # of another process
    resumed = Dropped()
    optimise(tmp_path / "resumed", resumed, Gradients(), training_plan)
    assert torch.equal(alone.weight, resumed.weight)
    # and the steps of one run do not drop the same weights
    assert len(set(alone.weight.tolist())) > 10


def test_a_line_has_the_means_over_all_batches_since_the_last_one(tmp_path):
    log_at = {2, 3}
    hooks = Hooks(after_step=lambda step: {"extra": 1.0} if step in log_at else {})
    weights = []
    objective = Linear()
    record = objective.register_forward_pre_hook(
        lambda module, _: weights.append(module.weight.tolist())
    )
    run = optimise(tmp_path, objective, Gradients(), plan(steps=3, accumulate=2), hooks)
    record.remove()
    losses = [
        sum(w * g for w, g in zip(weight, gradient, strict=True))
        for weight, gradient in zip(weights, GRADIENTS, strict=True)
    ]
    sizes = [sum(map(abs, gradient)) for gradient in GRADIENTS]
    lines = read_metrics(run.path)
    assert [line["step"] for line in lines] == [2, 3]
    for line, batches in zip(lines, (slice(0, 4), slice(4, 6)), strict=True):
        count = batches.stop - batches.start
        assert line["loss"] == pytest.approx(sum(losses[batches]) / count, rel=1e-5)
        assert line["size"] == pytest.approx(sum(sizes[batches]) / count, rel=1e-5)


def test_skipped_steps_are_in_no_mean_and_change_no_weight(tmp_path):
    class Poisoned(Linear):
        def forward(self, batch, step, rng):
            outcome = super().forward(batch, step, rng)
            return outcome._replace(loss=outcome.loss * math.nan) if step == 1 else outcome

    weights = []
    learned = []
    objective = Poisoned()
    hooks = Hooks(
        learned=lambda outcome: learned.append(float(outcome.metrics["size"])),
        after_step=lambda step: weights.append(objective.weight.tolist()) or {},
    )
    run = optimise(tmp_path, objective, Gradients(), plan(steps=3), hooks)
    assert weights[0] == weights[1] != weights[2]
    # nor a moment of the gradients, nor how many there were
    expected = adamw([GRADIENTS[0], GRADIENTS[2]], plan(steps=3), steps=[0, 2])
    assert weights[2] == pytest.approx(expected, rel=1e-5)
    assert learned == pytest.approx([1.12, 0.04])
    (line,) = read_metrics(run.path)
    assert line["skipped"] == 1
    assert line["size"] == pytest.approx((1.12 + 0.04) / 2)
    assert math.isfinite(line["loss"])


def test_nothing_is_read_from_the_device_but_at_every_tenth_step(tmp_path, monkeypatch):
    """To read a number is to wait for all that the device was given."""
    reads = set()
    taken = 0

    def counted(real):
        def read(tensor, *arguments):
            # whole numbers are seeds, drawn on the CPU
            if tensor.dtype != torch.int64:
                reads.add(taken)
            return real(tensor, *arguments)

        return read

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))

    def after_step(step):
        nonlocal taken
        taken = step
        return {}

    monkeypatch.setattr(
        Gradients, "__getitem__", lambda self, number: {"gradient": torch.full((2,), 0.1 * number)}
    )
    objective = Linear()
    optimise(
        tmp_path,
        objective,
        Gradients(),
        plan(steps=25, save_every=17),
        Hooks(after_step=after_step),
    )
    # before each line and each checkpoint, which is written after its step
    assert reads - {10, 17, 20, 25} == {9, 16, 19, 24}


def out_of_memory(monkeypatch, forward, error, largest, at_step=0):
    """From a step on, more than `largest` images of a batch do not fit into memory."""

    def limited(self, batch, step, rng):
        if step >= at_step and len(next(iter(batch.values()))) > largest:
            raise error
        return forward(self, batch, step, rng)

    return limited


MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


@pytest.mark.fault(
    "F23",
    "out of memory at the batch size",
    "the batch is halved and accumulated; printed",
)
@pytest.mark.parametrize("error", MEMORY_ERRORS)
@pytest.mark.parametrize("largest", [1, 2])
def test_out_of_memory_is_a_smaller_batch_with_more_of_them_accumulated(
    tmp_path, monkeypatch, capsys, error, largest
):
    whole = Linear()
    optimise(tmp_path / "whole", whole, Gradients(), plan(steps=1, batch=4))
    limited = Linear()
    forward = out_of_memory(monkeypatch, Linear.forward, error, largest)
    monkeypatch.setattr(Linear, "forward", forward)
    optimise(tmp_path / "limited", limited, Gradients(), plan(steps=1, batch=4))
    small = Linear()
    accumulate = 4 // largest
    optimise(
        tmp_path / "small",
        small,
        Gradients(),
        plan(steps=1, batch=largest, accumulate=accumulate),
    )
    assert limited.weight.tolist() == small.weight.tolist()
    assert limited.weight.tolist() == pytest.approx(whole.weight.tolist(), rel=1e-6)
    printed = capsys.readouterr().err
    assert f"each batch of 4 images is computed in {accumulate} parts" in printed
    assert printed.count("out of memory") == {1: 2, 2: 1}[largest]


def test_a_run_that_met_the_limit_is_resumed_in_as_many_parts(tmp_path, monkeypatch, capsys):
    forward = out_of_memory(monkeypatch, Linear.forward, MemoryError(), 2, at_step=1)
    monkeypatch.setattr(Linear, "forward", forward)
    alone = Linear()
    six = [*GRADIENTS, *GRADIENTS]
    monkeypatch.setattr(
        Gradients, "__getitem__", lambda self, n: {"gradient": torch.tensor(six[n])}
    )
    how = {"batch": 3, "save_every": 1}
    optimise(tmp_path / "alone", alone, Gradients(), plan(steps=4, **how))

    def stop_at_3(step):
        if step == 3:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        optimise(
            tmp_path / "run",
            Linear(),
            Gradients(),
            plan(steps=4, **how),
            Hooks(after_step=stop_at_3),
        )
    capsys.readouterr()
    resumed = Linear()
    optimise(tmp_path / "run", resumed, Gradients(), plan(steps=4, **how))
    assert resumed.weight.tolist() == alone.weight.tolist()
    assert "out of memory" not in capsys.readouterr().err


def test_parts_that_a_loss_cannot_learn_from_are_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(Linear, "min_batch", 2)
    forward = out_of_memory(monkeypatch, Linear.forward, MemoryError(), 1)
    monkeypatch.setattr(Linear, "forward", forward)
    with pytest.raises(ResourceError, match="use a smaller --batch with --accumulate"):
        optimise(tmp_path / "run", Linear(), Gradients(), plan(steps=1, batch=2))
