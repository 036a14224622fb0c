"""Checks that every pretext task and every encoder must pass, for the tests of plug-ins.

    from selfvox.testing import check_encoder, check_task

    def test_my_task_satisfies_the_contract():
        check_task(MyTask())

    def test_my_encoder_satisfies_the_contract():
        check_encoder(make)

A check that fails raises an AssertionError, which says what is wrong. Each is also a function of
its own, in `TASK_CHECKS` and `ENCODER_CHECKS`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from selfvox.errors import UsageError
from selfvox.joint import Joint, task_generator
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.encoder import Encoder
from selfvox.models.segmenter import Segmenter
from selfvox.ops.outcome import Batch
from selfvox.pretext import PretextTask
from selfvox.runs.weights import state_tensors
from selfvox.settings.options import as_dict, options, resolve
from selfvox.tasks import task_from_setting, task_to_setting

CROPS = {2: (32, 48), 3: (32, 40, 32)}  # voxels; of unequal edges, multiples of 8
ENCODER_EDGE = 32  # voxels
# embeddings of different images must differ by this share of their length
MIN_EMBEDDING_DISTANCE = 0.15

MakeEncoder = Callable[[int, int], nn.Module]  # from spatial_dims and in_channels


def check_task(task: PretextTask, dimensions: Sequence[int] = (2, 3)) -> None:
    """Check a task against everything that training, previews and joint tasks rely on.

    It takes some seconds. A batch that is made of several parts is checked part by part, so entries
    have one row per sample, image by image; `views` and `scan` have all first views before all
    second ones, and `other` is a row of the batch.

    Args:
        task: with the options to test; each option is varied too.
        dimensions: of the scans that it is for.

    Raises:
        AssertionError: says what the task does wrong.
    """
    for check in TASK_CHECKS:
        for spatial_dims in dimensions:
            check(task, spatial_dims)


def check_encoder(make: MakeEncoder, dimensions: Sequence[int] = (2, 3)) -> None:
    """Check an encoder against everything that training and prediction rely on.

    Args:
        make: makes it from spatial dimensions and channels; an `Encoder`, or a module that returns
            feature maps.
        dimensions: of the images that it is for.

    Raises:
        AssertionError: says what the encoder does wrong.
    """
    for check in ENCODER_CHECKS:
        for spatial_dims in dimensions:
            check(make, spatial_dims)


# Helpers of the checks of tasks


def configured(task: PretextTask, spatial_dims: int, **changed: Any) -> PretextTask:
    """The task with some options changed, configured for the crops of the checks."""
    return with_options(task, changed).configure(CROPS[spatial_dims], (1.0,) * spatial_dims)


def with_options(task: PretextTask, changed: Mapping[str, Any]) -> PretextTask:
    """The task with some options changed, and all checked as on the command line."""
    return resolve(type(task), {**as_dict(task), **changed}, prefix="task.")


def make_network(
    task: PretextTask, spatial_dims: int, channels: int = 1
) -> tuple[Encoder, nn.Module]:
    """A small encoder for a task, and the task's head, always with the same weights."""
    torch.manual_seed(0)
    spacing_mm = (1.0,) * spatial_dims
    network = {"channels": [4, 8, 16], "blocks": 1}
    spec = plan_encoder(network, CROPS[spatial_dims], spacing_mm)
    encoder = build_encoder(spec, spatial_dims, channels)
    return encoder, task.head(encoder)


def make_images(spatial_dims: int, count: int = 4, channels: int = 1, seed: int = 0) -> Tensor:
    """Noise images (count, channels, *crop)."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, *CROPS[spatial_dims], generator=rng)


def make_batch(task: PretextTask, images: Tensor, seed: int = 0) -> Batch:
    """The task's question about the images, drawn from a seed."""
    return task.make_batch(images, torch.Generator().manual_seed(seed))


def changed_options(task: PretextTask) -> Iterator[dict[str, Any]]:
    """Each option of the task, changed: numbers up and down, every choice, yes and no."""
    values = as_dict(task)
    for option in options(type(task)):
        value = values[option.name]
        choices = [choice for kind in option.kinds for choice in typing.get_args(kind)]
        if isinstance(value, bool):
            yield {option.name: not value}
        elif isinstance(value, int):
            yield from ({option.name: number} for number in (value + 1, value // 2) if number)
        elif isinstance(value, float):
            numbers = (0.5 * value, 2 * value) if value else (1.0,)
            yield from ({option.name: number} for number in numbers)
        elif isinstance(value, str) and all(isinstance(choice, str) for choice in choices):
            yield from ({option.name: choice} for choice in choices if choice != value)


def _require(condition: Any, message: str) -> None:
    """An assertion that no optimised Python leaves out."""
    if not condition:
        raise AssertionError(message)


def _refusal(action: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The message of the UsageError that the call raises; empty where it raises none."""
    try:
        action(*args, **kwargs)
    except UsageError as error:
        return str(error)
    return ""


def _require_equal(first: Batch, second: Batch, message: str) -> None:
    _require(first.keys() == second.keys(), f"{message}: entries {[*first]} and {[*second]}")
    for key, value in first.items():
        _require(torch.equal(value, second[key]), f"{message}: {key} differs")


# Checks of tasks


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
    _require(
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
        _require(outcome.loss.ndim == 0, "the loss is not a scalar")
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        for name, weight in [*encoder.named_parameters(), *head.named_parameters()]:
            _require(weight.grad is not None, f"{name} has no gradient")
            assert weight.grad is not None
            _require(weight.grad.isfinite().all(), f"the gradient of {name} is not finite")
            # a bias before a normalisation cannot matter, so only weights must
            _require(weight.ndim == 1 or weight.grad.any(), f"the gradient of {name} is zero")


def metrics_are_detached_numbers(task: PretextTask, spatial_dims: int) -> None:
    """Metrics are finite scalars without a gradient, and accuracy comes with its chance."""
    task = configured(task, spatial_dims)
    batch = make_batch(task, make_images(spatial_dims))
    metrics = task.loss(*make_network(task, spatial_dims), batch).metrics
    for name, value in metrics.items():
        _require(not value.requires_grad, f"the metric {name} has a gradient; detach it")
        _require(value.ndim == 0, f"the metric {name} is not a scalar")
        _require(math.isfinite(float(value)), f"the metric {name} is {float(value)}")
    _require(("accuracy" in metrics) == ("chance" in metrics), "accuracy and chance go together")


def the_generator_alone_decides(task: PretextTask, spatial_dims: int) -> None:
    """The same seed gives the same batch, another seed another; nothing else changes."""
    task = configured(task, spatial_dims)
    images = make_images(spatial_dims)
    original = images.clone()
    state = torch.get_rng_state()
    batch = make_batch(task, images)
    _require_equal(batch, make_batch(task, images), "the same seed gives another batch")
    changed = make_batch(task, images, seed=1)
    differs = any(not torch.equal(batch[key], changed[key]) for key in batch)
    _require(differs, "another seed gives the same batch")
    _require(torch.equal(torch.get_rng_state(), state), "draws from the global generator")
    _require(torch.equal(images, original), "changes the images that it was given")


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
        _require(draws.from_rng, f"draws no random number ({changed or 'by default'})")
        _require(
            all(draws.from_rng),
            f"draws from another generator than the one passed in ({changed or 'by default'})",
        )


def images_do_not_depend_on_their_neighbours(task: PretextTask, spatial_dims: int) -> None:
    """A changed image changes what is shown of itself, and nothing else of the batch."""
    task = configured(task, spatial_dims)
    images = make_images(spatial_dims)
    original = make_batch(task, images.clone())
    images[0] = 5 - images[0]
    for key, value in make_batch(task, images).items():
        differs = value != original[key]
        rows = differs.flatten(1).any(1) if value.ndim > 1 else differs
        is_image = value.ndim == spatial_dims + 2
        expected = len(value) // len(images) if is_image else 0
        _require(
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
    _require_equal(batch, expected, "mixed precision changes the batch")
    _require(
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
    _require(actual.keys() == expected.keys(), "the GPU's batch has other entries")
    for key, value in expected.items():
        _require(actual[key].is_cuda, f"{key} is not on the images' device")
        torch.testing.assert_close(actual[key].cpu(), value, rtol=1e-4, atol=1e-4)


def images_have_the_input_size(task: PretextTask, spatial_dims: int) -> None:
    """The images of a batch have the edges that `input_size` says."""
    task = configured(task, spatial_dims)
    batch = make_batch(task, make_images(spatial_dims))
    shapes = {tuple(value.shape[2:]) for value in batch.values() if value.ndim == spatial_dims + 2}
    _require(shapes, "the batch has no images for the encoder")
    expected = task.input_size(CROPS[spatial_dims])
    _require(shapes == {expected}, f"images of {shapes} voxels, and input_size says {expected}")


def the_smallest_batch_has_a_loss(task: PretextTask, spatial_dims: int) -> None:
    """A batch of `min_batch` images has a loss to learn from; smaller ones are refused."""
    task = configured(task, spatial_dims)
    batch = make_batch(task, make_images(spatial_dims, task.min_batch))
    loss = task.loss(*make_network(task, spatial_dims), batch).loss.detach()
    _require(loss > 0, f"a batch of {task.min_batch} images has a loss of {float(loss)}")
    remedy = f"use --batch {task.min_batch} or more"
    for count in range(1, task.min_batch):
        images = make_images(spatial_dims, count)
        refusals = (
            _refusal(task.check_batch, count),
            _refusal(make_batch, task, images),
        )
        _require(
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
        _require_equal(entries, alone, f"{member.name} has another batch next to a task")
        single = member.loss(encoder, fresh_head.get_submodule(member.name), entries)
        total += weight * float(single.loss.detach())
        for key, value in {"loss": single.loss.detach(), **single.metrics}.items():
            _require(
                torch.equal(outcome.metrics[prefix + key], value),
                f"the metric {key} of {member.name} differs next to a task",
            )
    loss = float(outcome.loss.detach())
    _require(math.isclose(loss, total, rel_tol=1e-6), f"the joint loss is {loss}, not {total}")
    outcome.loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in [*encoder.named_parameters(), *head.named_parameters()]:
        learns = parameter.grad is not None and bool(parameter.grad.any())
        _require(parameter.ndim == 1 or learns, f"{name} has no gradient next to a task")
    rows = joint.preview_panels(make_images(spatial_dims), batch)
    _require(len(rows) == 2 * len(make_images(spatial_dims)), "a preview lacks rows")


def settings_survive_yaml(task: PretextTask, spatial_dims: int) -> None:
    """Any options are written and read back as the same task, or refused by name."""
    for changed in [{}, *changed_options(task)]:
        refusal = _refusal(with_options, task, changed)
        if refusal:
            option = next(iter(changed), "")
            _require(f"task.{option}" in refusal, f"a refusal does not name {option}: {refusal}")
            continue
        variant = with_options(task, changed)
        written = yaml.safe_load(yaml.safe_dump(task_to_setting(variant)))
        for option, value in changed.items():
            _require(written[option] == value, f"{option} is written as {written[option]}")
        if ":" in written["name"]:  # not installed: found by no name
            options_read = {key: value for key, value in written.items() if key != "name"}
            restored = resolve(type(task), options_read, prefix="task.")
        else:
            restored = task_from_setting(written)
        _require(restored == variant, f"{written} is read back as another task")


def every_option_matters(task: PretextTask, spatial_dims: int) -> None:
    """A changed option changes the batch or the loss, is refused, or allows other scans."""
    default = _batch_and_loss(task, spatial_dims)
    matters: dict[str, bool] = {}
    for changed in changed_options(task):
        option = next(iter(changed))
        try:
            result = _batch_and_loss(task, spatial_dims, **changed)
        except UsageError as error:
            _require("task" in str(error), f"a refusal of {changed} names no option: {error}")
            matters[option] = True
            continue
        differs = result.keys() != default.keys() or any(
            not torch.equal(result[key], default[key]) for key in result
        )
        matters[option] = matters.get(option, False) or differs
    unequal_spacing = (*(1.0,) * (spatial_dims - 1), 3.0)
    crop = CROPS[spatial_dims]
    for option in [option for option, differs in matters.items() if not differs]:
        refusal = _refusal(task.configure, crop, unequal_spacing)
        _require(f"task {task.name}" in refusal, f"the option {option} makes no difference")
        changed_task = with_options(task, {option: not as_dict(task)[option]})
        refusal = _refusal(changed_task.configure, crop, unequal_spacing)
        _require(not refusal, f"the option {option} makes no difference, not even: {refusal}")


def _batch_and_loss(task: PretextTask, spatial_dims: int, **changed: Any) -> Batch:
    task = configured(task, spatial_dims, **changed)
    encoder, head = make_network(task, spatial_dims)
    for weight in head.parameters():
        nn.init.normal_(weight, std=0.3)  # large: small ones would hide differences of the loss
    images = torch.cat([make_images(spatial_dims, 3), make_images(spatial_dims, 3, seed=1)])
    scan = torch.tensor([0, 1, 2, 3, 1, 0])  # two scans are in the batch twice
    batch = task.make_batch(images, torch.Generator().manual_seed(0), scan)
    loss = task.loss(encoder, head, batch).loss.detach()
    _require(loss.isfinite(), f"the loss is {float(loss)} with {changed or 'default options'}")
    return {**batch, "loss": loss}


def bad_options_are_refused_by_name(task: PretextTask, spatial_dims: int) -> None:
    """An unknown option or a value of nonsense is refused in one line that names the option."""
    refusal = _refusal(with_options, task, {"nonsense": 1})
    _require("task.nonsense" in refusal, f"an unknown option is refused as: {refusal}")
    for option in options(type(task)):
        refusal = _refusal(configured, task, spatial_dims, **{option.name: "nonsense"})
        _require(
            re.search(rf"task\.{option.name}\b", refusal),
            f"{option.name} = nonsense is not refused by name: {refusal or 'accepted'}",
        )
        _require("\n" not in refusal, f"the refusal of {option.name} has several lines")


def panels_show_every_image(task: PretextTask, spatial_dims: int) -> None:
    """A preview has one row per image, which begins with the image; every panel has a caption."""
    task = configured(task, spatial_dims)
    images = make_images(spatial_dims)
    rows = task.preview_panels(images, make_batch(task, images))
    _require(len(rows) == len(images), f"a preview of {len(images)} images has {len(rows)} rows")
    for row, image in zip(rows, images, strict=True):
        _require(torch.equal(row[0].image, image), "a row does not begin with its image")
        for panel in row:
            _require(panel.caption, "a panel has no caption")
            _require(
                panel.image.ndim == spatial_dims + 1,
                f"a panel has the shape {tuple(panel.image.shape)}, not (channel, *space)",
            )


def a_task_is_frozen_settings(task: PretextTask, spatial_dims: int) -> None:
    """A task is a frozen dataclass, and each of its options has a help text."""
    _require(dataclasses.is_dataclass(task), "a task is a dataclass")
    parameters: Any = getattr(type(task), "__dataclass_params__", None)
    _require(parameters.frozen, "a task is frozen: @dataclass(frozen=True, kw_only=True)")
    for option in options(type(task)):
        _require(option.help, f"{option.name} has no help text: Annotated[TYPE, 'what it is']")


TASK_CHECKS: tuple[Callable[[PretextTask, int], None], ...] = (
    a_task_is_frozen_settings,
    untrained_answers_are_at_chance,
    gradients_reach_every_weight,
    metrics_are_detached_numbers,
    the_generator_alone_decides,
    every_draw_is_from_the_generator,
    images_do_not_depend_on_their_neighbours,
    the_order_of_the_batch_does_not_matter,
    mixed_precision_makes_the_same_batch,
    a_cuda_device_gets_the_batch_of_the_cpu,
    images_have_the_input_size,
    the_smallest_batch_has_a_loss,
    joins_another_task,
    settings_survive_yaml,
    every_option_matters,
    bad_options_are_refused_by_name,
    panels_show_every_image,
)


# Checks of encoders


def make_encoder(make: MakeEncoder, spatial_dims: int, in_channels: int = 1) -> Encoder:
    """The encoder of a seed; a module that returns feature maps is wrapped."""
    torch.manual_seed(0)
    return build_encoder(make(spatial_dims, in_channels), spatial_dims, in_channels)


def smooth_images(spatial_dims: int, count: int = 6) -> Tensor:
    """Images (count, 1, *space) that differ as anatomy does: in where things are."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 1, *(4,) * spatial_dims, generator=rng)
    mode = "trilinear" if spatial_dims == 3 else "bilinear"
    return F.interpolate(coarse, size=(ENCODER_EDGE,) * spatial_dims, mode=mode)


def relative_distance(vectors: Tensor) -> float:
    """Mean distance between vectors (n, width), as a share of their mean length."""
    return float(torch.pdist(vectors).mean() / vectors.norm(dim=1).mean())


def channels_and_strides_are_true(make: MakeEncoder, spatial_dims: int) -> None:
    """`channels` and `strides` are those of the maps, finest first."""
    encoder = make_encoder(make, spatial_dims)
    maps = encoder(smooth_images(spatial_dims))
    channels = tuple(level.shape[1] for level in maps)
    _require(channels == tuple(encoder.channels), f"the maps have {channels} channels")
    for level, strides in zip(maps, encoder.strides, strict=True):
        expected = tuple(ENCODER_EDGE // stride for stride in strides)
        size = tuple(level.shape[2:])
        _require(size == expected, f"a map of stride {strides} has {size} voxels, not {expected}")
    _require(list(encoder.strides) == sorted(encoder.strides), "the maps are not finest first")


def embeddings_have_the_width(make: MakeEncoder, spatial_dims: int) -> None:
    """`embed` gives (batch, width)."""
    encoder = make_encoder(make, spatial_dims)
    images = smooth_images(spatial_dims)
    shape = tuple(encoder.embed(images).shape)
    expected = (len(images), encoder.width)
    _require(shape == expected, f"an embedding has the shape {shape}, not {expected}")


def different_images_have_different_embeddings(make: MakeEncoder, spatial_dims: int) -> None:
    """Untrained embeddings of different images are apart: pooling has not averaged them away."""
    encoder = make_encoder(make, spatial_dims)
    distance = relative_distance(encoder.embed(smooth_images(spatial_dims)).detach())
    _require(
        distance > MIN_EMBEDDING_DISTANCE,
        f"embeddings of different images differ by {distance:.3f} of their length; a mean after an "
        "instance norm is the same for all images",
    )


def a_segmenter_trains_every_weight(make: MakeEncoder, spatial_dims: int) -> None:
    """A segmenter of it gives logits of the input's size, and a gradient to every weight."""
    network = Segmenter(make_encoder(make, spatial_dims), 3)
    shape = (*(ENCODER_EDGE,) * (spatial_dims - 1), 2 * ENCODER_EDGE)
    logits = network(torch.randn(2, 1, *shape))
    _require(tuple(logits.shape) == (2, 3, *shape), f"logits have the shape {tuple(logits.shape)}")
    logits.square().mean().backward()
    for name, weight in network.named_parameters():
        _require(weight.grad is not None, f"{name} has no gradient in a segmenter")
        assert weight.grad is not None
        _require(weight.ndim == 1 or weight.grad.any(), f"the gradient of {name} is zero")


def the_embedding_trains_every_weight(make: MakeEncoder, spatial_dims: int) -> None:
    """An embedding has a gradient to every weight."""
    encoder = make_encoder(make, spatial_dims)
    loss = encoder.embed(smooth_images(spatial_dims)).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    unused = [name for name, weight in encoder.named_parameters() if weight.grad is None]
    _require(not unused, f"no gradient from the embedding: {', '.join(unused)}")


def the_state_has_every_tensor_once(make: MakeEncoder, spatial_dims: int) -> None:
    """The saved state of a segmenter has all tensors once, the encoder's by its name."""
    network = Segmenter(make_encoder(make, spatial_dims), 2)
    state = state_tensors(network)
    addresses = [tensor.data_ptr() for tensor in state.values()]
    _require(len(addresses) == len(set(addresses)), "a tensor is in the state twice")
    complete = {tensor.data_ptr() for tensor in network.state_dict().values()}
    _require(set(addresses) == complete, "a tensor is missing from the state")
    of_encoder = sum(name.startswith("encoder.") for name in state)
    expected = len(state_tensors(network.encoder))
    _require(of_encoder == expected, f"{of_encoder} tensors are called encoder., not {expected}")


def three_channels_go_in(make: MakeEncoder, spatial_dims: int) -> None:
    """It takes images of several channels."""
    encoder = make_encoder(make, spatial_dims, 3)
    images = torch.randn(2, 3, *(ENCODER_EDGE,) * spatial_dims)
    shape = tuple(encoder.embed(images).shape)
    _require(shape == (2, encoder.width), f"three channels give an embedding of the shape {shape}")


ENCODER_CHECKS: tuple[Callable[[MakeEncoder, int], None], ...] = (
    channels_and_strides_are_true,
    embeddings_have_the_width,
    different_images_have_different_embeddings,
    a_segmenter_trains_every_weight,
    the_embedding_trains_every_weight,
    the_state_has_every_tensor_once,
    three_channels_go_in,
)
