"""Checks of a pretext task: its batches, its loss and its previews."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfvox.errors import UsageError
from selfvox.joint import Joint, task_generator
from selfvox.ops.outcome import Batch
from selfvox.pretext import PretextTask
from selfvox.tasks import task_from_setting
from selfvox.testing.require import refusal_of, require, require_equal
from selfvox.testing.task_setup import (
    CROPS,
    changed_options,
    configured,
    make_batch,
    make_images,
    make_network,
)


def untrained_answers_are_at_chance(task: PretextTask, spatial_dims: int) -> None:
    """The loss of a task with an `answer` starts at that of a guess."""
    task = configured(task, spatial_dims)
    encoder, head = make_network(task, spatial_dims)
    batch = make_batch(task, make_images(spatial_dims, 8))
    if "answer" not in batch:
        return  # no answer out of a fixed number
    outcome = task.loss(encoder, head, batch)
    loss = float(outcome.loss.detach())
    at_chance = math.log(1 / float(outcome.metrics["chance"]))
    require(
        # 5 %: small weights do not make all answers exactly alike
        math.isclose(loss, at_chance, rel_tol=0.05),
        f"the loss of an untrained network is {loss:.3f}, not {at_chance:.3f} as at chance: give "
        "the last layer small weights (selfvox.models.answer_head.answer_layer)",
    )


def gradients_reach_every_weight(task: PretextTask, spatial_dims: int) -> None:
    """The loss is a scalar that trains all of the encoder and the head, with 1 or 3 channels."""
    task = configured(task, spatial_dims)
    for channels in (1, 3):
        encoder, head = make_network(task, spatial_dims, channels)
        images = make_images(spatial_dims, channels=channels)
        outcome = task.loss(encoder, head, make_batch(task, images))
        require(outcome.loss.ndim == 0, "the loss is not a scalar")
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        for name, weight in [*encoder.named_parameters(), *head.named_parameters()]:
            require(weight.grad is not None, f"{name} has no gradient")
            assert weight.grad is not None
            require(weight.grad.isfinite().all(), f"the gradient of {name} is not finite")
            # a bias before a normalisation cannot matter, so only weights must
            require(weight.ndim == 1 or weight.grad.any(), f"the gradient of {name} is zero")


def metrics_are_detached_numbers(task: PretextTask, spatial_dims: int) -> None:
    """Metrics are finite scalars without a gradient, and accuracy comes with its chance."""
    task = configured(task, spatial_dims)
    batch = make_batch(task, make_images(spatial_dims))
    metrics = task.loss(*make_network(task, spatial_dims), batch).metrics
    for name, value in metrics.items():
        require(not value.requires_grad, f"the metric {name} has a gradient; detach it")
        require(value.ndim == 0, f"the metric {name} is not a scalar")
        require(math.isfinite(float(value)), f"the metric {name} is {float(value)}")
    require(("accuracy" in metrics) == ("chance" in metrics), "accuracy and chance go together")


def the_generator_alone_decides(task: PretextTask, spatial_dims: int) -> None:
    """The same seed gives the same batch, another seed another; nothing else changes."""
    task = configured(task, spatial_dims)
    images = make_images(spatial_dims)
    original = images.clone()
    state = torch.get_rng_state()
    batch = make_batch(task, images)
    require_equal(batch, make_batch(task, images), "the same seed gives another batch")
    changed = make_batch(task, images, seed=1)
    differs = any(not torch.equal(batch[key], changed[key]) for key in batch)
    require(differs, "another seed gives the same batch")
    require(torch.equal(torch.get_rng_state(), state), "draws from the global generator")
    require(torch.equal(images, original), "changes the images that it was given")


class RecordedDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Of every random draw, whether it came from the generator that was passed in."""

    def __init__(self, rng: torch.Generator):
        super().__init__()  # type: ignore[no-untyped-call]
        self.rng = rng
        self.from_rng: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            generator = (kwargs or {}).get("generator")
            # its state moves with every draw, so no other generator has the same
            self.from_rng.append(
                generator is not None and torch.equal(generator.get_state(), self.rng.get_state())
            )
        return func(*args, **(kwargs or {}))


def every_draw_is_from_the_generator(task: PretextTask, spatial_dims: int) -> None:
    """With any options, all random numbers come from the generator: every device draws the same."""
    images = make_images(spatial_dims)
    for changed in [{}, *changed_options(task)]:
        try:
            variant = configured(task, spatial_dims, **changed)
            make_batch(variant, images)  # fills caches, which may have a seed of their own
        except UsageError:
            continue
        rng = torch.Generator().manual_seed(0)
        with RecordedDraws(rng) as draws:
            variant.make_batch(images, rng)
        require(draws.from_rng, f"draws no random number ({changed or 'by default'})")
        require(
            all(draws.from_rng),
            f"draws from another generator than the one passed in ({changed or 'by default'})",
        )


def images_do_not_depend_on_their_neighbours(task: PretextTask, spatial_dims: int) -> None:
    """A changed image changes what is shown of itself, and nothing else of the batch."""
    task = configured(task, spatial_dims)
    images = make_images(spatial_dims)
    original = make_batch(task, images.clone())
    # brighter and inverted: a standardised image must differ too
    images[0] = 5 - images[0]
    for key, value in make_batch(task, images).items():
        differs = value != original[key]
        rows = differs.flatten(1).any(1) if value.ndim > 1 else differs
        is_image = value.ndim == spatial_dims + 2
        expected = len(value) // len(images) if is_image else 0
        require(
            int(rows.sum()) == expected,
            f"one changed image of {len(images)} changes {int(rows.sum())} rows of {key}, not "
            f"{expected}",
        )


def reorder(batch: Batch, order: Tensor) -> Batch:
    """The batch as it would be with its images in another order."""
    count = len(order)
    reordered: Batch = {}
    for key, value in batch.items():
        if key in ("views", "scan"):  # first views, then second ones
            rows = value.view(2, count, *value.shape[1:])[:, order].flatten(0, 1)
        elif len(value) % count == 0:
            rows = value.view(count, -1, *value.shape[1:])[order].flatten(0, 1)
        else:
            rows = value
        reordered[key] = order.argsort()[rows] if key == "other" else rows
    return reordered


def the_order_of_the_batch_does_not_matter(task: PretextTask, spatial_dims: int) -> None:
    """Loss and metrics are those of the reordered batch."""
    task = configured(task, spatial_dims)
    encoder, head = make_network(task, spatial_dims)
    batch = make_batch(task, make_images(spatial_dims))
    with torch.no_grad():
        expected = task.loss(encoder, head, batch)
        actual = task.loss(encoder, head, reorder(batch, torch.tensor([2, 0, 3, 1])))
    # sums in another order differ in their last digits
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-4, atol=1e-5)
    for key, value in expected.metrics.items():
        torch.testing.assert_close(actual.metrics[key], value, rtol=1e-3, atol=1e-4)


def mixed_precision_makes_the_same_batch(task: PretextTask, spatial_dims: int) -> None:
    """Under autocast the batch is bit-identical, and the loss is in float32."""
    task = configured(task, spatial_dims)
    images = make_images(spatial_dims)
    expected = make_batch(task, images)
    with torch.autocast("cpu", torch.bfloat16):
        batch = make_batch(task, images)
        outcome = task.loss(*make_network(task, spatial_dims), batch)
    require_equal(batch, expected, "mixed precision changes the batch")
    require(
        outcome.loss.dtype == torch.float32,
        f"the loss under autocast is {outcome.loss.dtype}; take the head's output as float()",
    )


def a_cuda_device_gets_the_batch_of_the_cpu(task: PretextTask, spatial_dims: int) -> None:
    """A GPU's batch is made there, and is that of the CPU; passes where there is no GPU."""
    if not torch.cuda.is_available():
        return
    task = configured(task, spatial_dims)
    images = make_images(spatial_dims)
    expected = make_batch(task, images)
    actual = make_batch(task, images.cuda())
    require(actual.keys() == expected.keys(), "the GPU's batch has other entries")
    for key, value in expected.items():
        require(actual[key].is_cuda, f"{key} is not on the images' device")
        torch.testing.assert_close(actual[key].cpu(), value, rtol=1e-4, atol=1e-4)


def images_have_the_input_size(task: PretextTask, spatial_dims: int) -> None:
    """The images of a batch have the edges that `input_size` says."""
    task = configured(task, spatial_dims)
    batch = make_batch(task, make_images(spatial_dims))
    shapes = {tuple(value.shape[2:]) for value in batch.values() if value.ndim == spatial_dims + 2}
    require(shapes, "the batch has no images for the encoder")
    expected = task.input_size(CROPS[spatial_dims])
    require(shapes == {expected}, f"images of {shapes} voxels, and input_size says {expected}")


def the_smallest_batch_has_a_loss(task: PretextTask, spatial_dims: int) -> None:
    """A batch of `min_batch` images has a loss to learn from; smaller ones are refused."""
    task = configured(task, spatial_dims)
    batch = make_batch(task, make_images(spatial_dims, task.min_batch))
    loss = task.loss(*make_network(task, spatial_dims), batch).loss.detach()
    require(loss > 0, f"a batch of {task.min_batch} images has a loss of {float(loss)}")
    remedy = f"use --batch {task.min_batch} or more"
    for count in range(1, task.min_batch):
        images = make_images(spatial_dims, count)
        refusals = (
            refusal_of(task.check_batch, count),
            refusal_of(make_batch, task, images),
        )
        require(
            all(remedy in refusal for refusal in refusals),
            f"a batch of {count} images is not refused: call check_batch in make_batch",
        )


def joins_another_task(task: PretextTask, spatial_dims: int) -> None:
    """Next to another task it has the batch, loss and metrics that it has alone."""
    task = configured(task, spatial_dims)
    partner_name = "simclr" if task.name == "rotation" else "rotation"
    partner = configured(task_from_setting(partner_name), spatial_dims)
    members = tuple(sorted([task, partner], key=lambda member: member.name))
    joint = Joint(tasks=members, weights=(0.5, 2.0))
    encoder, head = make_network(joint, spatial_dims)
    batch = make_batch(joint, make_images(spatial_dims))
    fresh_head = copy.deepcopy(head)  # a loss may change a head, as one with a memory does
    outcome = joint.loss(encoder, head, batch)
    seed = int(torch.randint(1 << 62, (), generator=torch.Generator().manual_seed(0)))
    total = 0.0
    for member, weight in zip(members, joint.weights, strict=True):
        prefix = f"{member.name}/"
        entries = {
            key.removeprefix(prefix): value
            for key, value in batch.items()
            if key.startswith(prefix)
        }
        rng = task_generator(seed, member.name)
        alone = member.make_batch(make_images(spatial_dims), rng)
        require_equal(entries, alone, f"{member.name} has another batch next to a task")
        single = member.loss(encoder, fresh_head.get_submodule(member.name), entries)
        total += weight * float(single.loss.detach())
        for key, value in {"loss": single.loss.detach(), **single.metrics}.items():
            require(
                torch.equal(outcome.metrics[prefix + key], value),
                f"the metric {key} of {member.name} differs next to a task",
            )
    loss = float(outcome.loss.detach())
    require(math.isclose(loss, total, rel_tol=1e-6), f"the joint loss is {loss}, not {total}")
    outcome.loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in [*encoder.named_parameters(), *head.named_parameters()]:
        learns = parameter.grad is not None and bool(parameter.grad.any())
        require(parameter.ndim == 1 or learns, f"{name} has no gradient next to a task")
    rows = joint.preview_panels(make_images(spatial_dims), batch)
    require(len(rows) == 2 * len(make_images(spatial_dims)), "a preview lacks rows")


def panels_show_every_image(task: PretextTask, spatial_dims: int) -> None:
    """A preview has one row per image, which begins with the image; every panel has a caption."""
    task = configured(task, spatial_dims)
    images = make_images(spatial_dims)
    rows = task.preview_panels(images, make_batch(task, images))
    require(len(rows) == len(images), f"a preview of {len(images)} images has {len(rows)} rows")
    for row, image in zip(rows, images, strict=True):
        require(torch.equal(row[0].image, image), "a row does not begin with its image")
        for panel in row:
            require(panel.caption, "a panel has no caption")
            require(
                panel.image.ndim == spatial_dims + 1,
                f"a panel has the shape {tuple(panel.image.shape)}, not (channel, *space)",
            )
