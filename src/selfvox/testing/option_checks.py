"""Checks of the options of a pretext task: each is written, matters, and is refused by name."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
import yaml
from torch import nn

from selfvox.errors import UsageError
from selfvox.ops.outcome import Batch
from selfvox.pretext import PretextTask
from selfvox.settings.options import as_dict, options, resolve
from selfvox.tasks import task_from_setting, task_to_setting
from selfvox.testing.require import refusal_of, require
from selfvox.testing.task_setup import (
    CROPS,
    changed_options,
    configured,
    make_images,
    make_network,
    with_options,
)


def a_task_is_frozen_settings(task: PretextTask, spatial_dims: int) -> None:
    """A task is a frozen dataclass, and each of its options has a help text."""
    require(dataclasses.is_dataclass(task), "a task is a dataclass")
    parameters: Any = getattr(type(task), "__dataclass_params__", None)
    require(parameters.frozen, "a task is frozen: @dataclass(frozen=True, kw_only=True)")
    for option in options(type(task)):
        require(option.help, f"{option.name} has no help text: Annotated[TYPE, 'what it is']")


def settings_survive_yaml(task: PretextTask, spatial_dims: int) -> None:
    """Any options are written and read back as the same task, or refused by name."""
    for changed in [{}, *changed_options(task)]:
        refusal = refusal_of(with_options, task, changed)
        if refusal:
            option = next(iter(changed), "")
            require(f"task.{option}" in refusal, f"a refusal does not name {option}: {refusal}")
            continue
        variant = with_options(task, changed)
        written = yaml.safe_load(yaml.safe_dump(task_to_setting(variant)))
        for option, value in changed.items():
            require(written[option] == value, f"{option} is written as {written[option]}")
        if ":" in written["name"]:  # not installed: found by no name
            options_read = {key: value for key, value in written.items() if key != "name"}
            restored = resolve(type(task), options_read, prefix="task.")
        else:
            restored = task_from_setting(written)
        require(restored == variant, f"{written} is read back as another task")


def every_option_matters(task: PretextTask, spatial_dims: int) -> None:
    """A changed option changes the batch or the loss, is refused, or allows other scans."""
    default = _batch_and_loss(task, spatial_dims)
    matters: dict[str, bool] = {}
    for changed in changed_options(task):
        option = next(iter(changed))
        try:
            result = _batch_and_loss(task, spatial_dims, **changed)
        except UsageError as error:
            require("task" in str(error), f"a refusal of {changed} names no option: {error}")
            matters[option] = True
            continue
        differs = result.keys() != default.keys() or any(
            not torch.equal(result[key], default[key]) for key in result
        )
        matters[option] = matters.get(option, False) or differs
    # some options only say which scans are allowed
    unequal_spacing = (*(1.0,) * (spatial_dims - 1), 3.0)
    crop = CROPS[spatial_dims]
    for option in [option for option, differs in matters.items() if not differs]:
        refusal = refusal_of(task.configure, crop, unequal_spacing)
        require(f"task {task.name}" in refusal, f"the option {option} makes no difference")
        changed_task = with_options(task, {option: not as_dict(task)[option]})
        refusal = refusal_of(changed_task.configure, crop, unequal_spacing)
        require(not refusal, f"the option {option} makes no difference, not even: {refusal}")


def _batch_and_loss(task: PretextTask, spatial_dims: int, **changed: Any) -> Batch:
    task = configured(task, spatial_dims, **changed)
    encoder, head = make_network(task, spatial_dims)
    for weight in head.parameters():
        nn.init.normal_(weight, std=0.3)  # large: small ones would hide differences of the loss
    images = torch.cat([make_images(spatial_dims, 3), make_images(spatial_dims, 3, seed=1)])
    scan = torch.tensor([0, 1, 2, 3, 1, 0])  # two scans are in the batch twice
    rng = torch.Generator().manual_seed(0)
    if task.pairs_scans:
        batch = task.make_pair_batch(images, images.flip(0), rng, scan)
    else:
        batch = task.make_batch(images, rng, scan)
    loss = task.loss(encoder, head, batch).loss.detach()
    require(loss.isfinite(), f"the loss is {float(loss)} with {changed or 'default options'}")
    return {**batch, "loss": loss}


def bad_options_are_refused_by_name(task: PretextTask, spatial_dims: int) -> None:
    """An unknown option or a value of nonsense is refused in one line that names the option."""
    refusal = refusal_of(with_options, task, {"nonsense": 1})
    require("task.nonsense" in refusal, f"an unknown option is refused as: {refusal}")
    for option in options(type(task)):
        refusal = refusal_of(configured, task, spatial_dims, **{option.name: "nonsense"})
        require(
            re.search(rf"task\.{option.name}\b", refusal),
            f"{option.name} = nonsense is not refused by name: {refusal or 'accepted'}",
        )
        require("\n" not in refusal, f"the refusal of {option.name} has several lines")
