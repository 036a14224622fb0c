"""What a pretext task is, how several are asked at once, and how one is found by name."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selfvox.errors import UsageError, did_you_mean
from selfvox.models.encoder import Encoder
from selfvox.options import as_dict, resolve

Batch = dict[str, Tensor]


class Outcome(NamedTuple):
    """What a loss has to say."""

    loss: Tensor  # scalar, with gradient
    metrics: dict[str, Tensor]  # scalars, detached; `accuracy` has its `chance` beside it


class Panel(NamedTuple):
    """One picture of a preview: a caption and an image of shape (channel, *space)."""

    caption: str
    image: Tensor


@dataclass(frozen=True, kw_only=True)
class PretextTask(ABC):
    """A question that images can answer about themselves: settings only.

    Weights live in the head, random numbers in the generator that is passed in.
    """

    def suited_to(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> PretextTask:
        """This task, settled for crops of this size, and for all spacings of the scans, as prepared and as scanned.

        Raises:
            UsageError: the question would be ill-posed, or give itself away, on such images; says what to do.
        """
        return self

    def least_crop(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Edges with room for the question, none below the crop's."""
        return tuple(crop)

    @property
    def least_batch(self) -> int:
        """How many images a device's batch must have, so that there is something to ask."""
        return 1

    def check_batch(self, images: int) -> None:
        """Refuse a batch of fewer images.

        Raises:
            UsageError: it has fewer.
        """
        if images < self.least_batch:
            raise UsageError(
                f"task {to_setting(self)['name']}: a device's batch of {images} leaves nothing to compare; use "
                f"--batch {self.least_batch} or more"
            )

    def view_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Edges, in voxels, of what the encoder is shown of a crop."""
        return tuple(crop)

    @property
    def tells_scans_apart(self) -> bool:
        """Whether the question compares scans, so that one alone leaves nothing to ask."""
        return False

    @abstractmethod
    def head(self, encoder: Encoder) -> nn.Module:
        """The layers between an embedding and an answer; thrown away after pre-training."""

    @abstractmethod
    def ask(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Make the question for a whole batch, on the images' device.

        Args:
            images: (batch, channel, *space).
            rng: a generator on the CPU, so that every device is asked the same.
            scan: (batch,) number of the scan that each image is from, the same on all devices, for tasks that tell
                images apart; by default each is from one of its own.
        """

    @abstractmethod
    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """How well the network answers what `ask` made."""

    @abstractmethod
    def panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """The question as pictures: one row per image, in their order; of several tasks, one per image and task."""


@dataclass(frozen=True, kw_only=True)
class Joint(PretextTask):
    """Several tasks asked of the same images and one encoder; the loss is their weighted sum.

    Each has its own head and its own draws. Heads, entries of a batch and metrics are called after their task, such as
    `rotation/accuracy`.
    """

    tasks: tuple[PretextTask, ...]
    weights: tuple[float, ...]

    def suited_to(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> Joint:  # noqa: D102
        suited = []
        for task in self.tasks:
            with _refusals_of(name_of(task)):
                suited.append(task.suited_to(crop, *spacings_mm))
        return replace(self, tasks=tuple(suited))

    def least_crop(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Room for each task."""
        return tuple(map(max, zip(*(task.least_crop(crop) for task in self.tasks), strict=True)))

    @property
    def least_batch(self) -> int:
        """Enough for each task."""
        return max(task.least_batch for task in self.tasks)

    def view_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Along each axis the smallest view of any task: the encoder halves no map further than that allows."""
        return tuple(map(min, zip(*(task.view_size(crop) for task in self.tasks), strict=True)))

    @property
    def tells_scans_apart(self) -> bool:
        """Whether any task does."""
        return any(task.tells_scans_apart for task in self.tasks)

    def head(self, encoder: Encoder) -> nn.ModuleDict:
        """A head for each task, by its name."""
        return nn.ModuleDict({name_of(task): task.head(encoder) for task in self.tasks})

    def ask(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Every task's question about the same images, as `NAME/KEY`."""
        seed = int(torch.randint(1 << 62, (), generator=rng))
        return {
            f"{name_of(task)}/{key}": value
            for task in self.tasks
            for key, value in task.ask(images, stream(seed, name_of(task)), scan).items()
        }

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """The weighted sum; `NAME/loss` is each task's own, without its weight."""
        assert isinstance(head, nn.ModuleDict)
        terms, metrics = [], {}
        for task, weight in zip(self.tasks, self.weights, strict=True):
            name = name_of(task)
            outcome = task.loss(encoder, head[name], _part(batch, name))
            terms.append(weight * outcome.loss)
            own = {"loss": outcome.loss.detach(), **outcome.metrics}
            metrics.update({f"{name}/{key}": value for key, value in own.items()})
        return Outcome(torch.stack(terms).sum(), metrics)

    def panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """The rows of every task, image by image; the first panel says whose question it is."""
        rows = []
        for task in self.tasks:
            name = name_of(task)
            own = task.panels(images, _part(batch, name))
            rows.append([[Panel(f"{name}: {row[0].caption}", row[0].image), *row[1:]] for row in own])
        return [row for of_one_image in zip(*rows, strict=True) for row in of_one_image]


def stream(seed: int, name: str) -> torch.Generator:
    """One task's random numbers: by its name, so that they are the same whichever tasks stand beside it."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _part(batch: Batch, name: str) -> Batch:
    """The entries of one task, under the names it gave them."""
    return {key.removeprefix(f"{name}/"): value for key, value in batch.items() if key.startswith(f"{name}/")}


TASKS = "selfvox.tasks"  # by name: the folder is looked into, not depended upon


def names() -> list[str]:
    """The tasks there are: the files of `tasks/`."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(TASKS).__path__))


def find(name: str) -> type[PretextTask]:
    """The task called `name`.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in names():
        raise UsageError(f"task: no pretext task is called '{name}'{did_you_mean(name, names())}")
    module = importlib.import_module(f"{TASKS}.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, PretextTask) and value.__module__ == module.__name__:
            return value
    raise AssertionError(f"tasks/{name}.py defines no PretextTask")


def name_of(task: PretextTask) -> str:
    """The name that `find` knows it by."""
    return type(task).__module__.rpartition(".")[2]


def split_names(name: str) -> list[str]:
    """`rotation+simclr` -> each by itself."""
    return [part.strip() for part in name.split("+")]


def from_setting(task: str | Mapping[str, Any], weights: Sequence[float] | None = None) -> PretextTask:
    """The task that a setting means: its name, or a mapping of `name` and its options.

    Several names joined by `+` mean a `Joint` task. Its options are called `NAME.OPTION`, and `weights` (1 each by
    default) follow the names. Their order makes no difference: the tasks are sorted by name.

    Raises:
        UsageError: a task, option or weight that cannot be; says what to do.
    """
    options = {"name": task} if isinstance(task, str) else dict(task)
    given = split_names(str(options.pop("name", "")))
    if len(given) > 1:
        return _joint(given, options, weights)
    if weights is not None:
        raise UsageError("weights: are for several tasks at once, such as --task rotation+simclr; leave them out")
    return resolve(find(given[0]), options, where="task.")


def to_setting(task: PretextTask) -> dict[str, Any]:
    """The mapping that `from_setting` reads back; a joint task's `weights` go beside it."""
    if isinstance(task, Joint):
        own = {f"{name_of(each)}.{key}": value for each in task.tasks for key, value in as_dict(each).items()}
        return {"name": "+".join(map(name_of, task.tasks)), **own}
    return {"name": name_of(task), **as_dict(task)}


def _joint(names: Sequence[str], options: Mapping[str, Any], weights: Sequence[float] | None) -> Joint:
    kinds, own = {name: find(name) for name in names}, {name: dict[str, Any]() for name in names}
    if len(kinds) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"task: {twice} is named twice; name each task once")
    weights = (1.0,) * len(names) if weights is None else weights
    if len(weights) != len(names):
        raise UsageError(f"weights: are {len(weights)} for {len(names)} tasks; give one for each of {'+'.join(names)}")
    if 0 in weights:
        idle = names[list(weights).index(0)]
        raise UsageError(f"weights: with 0 for {idle} nothing would be learned from it; leave {idle} out of the task")
    for key, value in options.items():
        name, _, option = str(key).partition(".")
        if name not in own or not option:
            known = [f"{each}.{field.name}" for each, kind in kinds.items() for field in fields(kind)]
            meant = [each for each in known if each.partition(".")[2] == key]
            remedy = f"; write task.{meant[0]}" if meant else did_you_mean(str(key), known)
            raise UsageError(f"task.{key}: is no option of {' or '.join(names)}{remedy}")
        own[name][option] = value
    tasks = []
    for name in sorted(names):
        with _refusals_of(name):
            tasks.append(resolve(kinds[name], own[name], where="task."))
    return Joint(tasks=tuple(tasks), weights=tuple(weight for _, weight in sorted(zip(names, weights, strict=True))))


@contextlib.contextmanager
def _refusals_of(name: str) -> Iterator[None]:
    """Refusals that call an option what it is called beside other tasks: `task.grid` is `task.jigsaw.grid`."""
    try:
        yield
    except UsageError as error:
        raise UsageError(re.sub(r"\btask\.(?=\w)", f"task.{name}.", str(error))) from None
