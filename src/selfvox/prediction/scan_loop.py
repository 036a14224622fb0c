"""What all predictions share: which scans are asked for, how one after the other is read, and how they are stopped."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from selfvox.data.formats.image import Image
from selfvox.data.naming import printable
from selfvox.data.preparation import prepare_case as reading
from selfvox.data.preparation.prepare_case import Rejected, make_rejected
from selfvox.data.preparation.recipe import PreparedScan, Recipe
from selfvox.data.preparation.split import read_split_if_present
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.errors import DataError, Stopped, UsageError
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import Predict

ScanFunction = Callable[
    [Case, Image, PreparedScan], None
]  # on a case: as it is, and as the network wants it


def chosen_cases(settings: Predict, recipe: Recipe) -> list[Case]:
    """The cases that are asked for, which the network of this recipe can take as far as can be told without reading.

    Raises:
        DataError: there is none, or they have other channels.
        UsageError: the run has no split to choose by, or predictions and scans would be mixed up.
    """
    dataset = find_dataset(settings.scans, settings.source)
    for note in dataset.notes:
        echo(note)
    cases = _chosen(dataset, settings)
    _check_channels(dataset, cases, recipe)
    _check_apart(settings, cases)
    return cases


def process_scans(
    todo: Sequence[Case], total: int, recipe: Recipe, work: ScanFunction
) -> list[Rejected]:
    """Read each case that is to be done, of so many in all, and work on it; those that cannot be read are returned."""
    refused = []
    with progress_bar("predict", total, total - len(todo)) as bar:
        for case in todo:
            try:
                image, prepared = _read(case, recipe)
                with _in_memory():
                    work(case, image, prepared)
            except DataError as error:
                refused.append(make_rejected(case, str(error)))
                echo(f"{refused[-1].file}: {refused[-1].reason}")
            bar.advance(f"{len(refused)} rejected" if refused else "")
    return refused


@contextlib.contextmanager
def _in_memory() -> Iterator[None]:
    """Refuse a scan that memory has no room for: the others may be smaller.

    Raises:
        DataError: memory is full.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise DataError(
            "the device's memory is full; predict it with --device cpu, into another --out"
        ) from None
    except MemoryError:
        raise DataError(
            "needs more memory than there is; crop it, or use a larger machine"
        ) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise DataError(
            "needs more memory than there is; crop it, or use a larger machine"
        ) from None


def _chosen(dataset: Dataset, settings: Predict) -> list[Case]:
    """The cases of the subset that is asked for."""
    if settings.subset == "all":
        return list(dataset.cases)
    split = read_split_if_present(settings.run / "split.json")
    if split is None:
        raise UsageError(
            f"subset: {settings.run} holds no split.json that says who is {settings.subset}; leave it out"
        )
    subjects = set(getattr(split, settings.subset))
    cases = [case for case in dataset.cases if case.subject in subjects]
    if not cases:
        raise DataError(
            f"{settings.scans}: holds none of the run's {len(subjects)} {settings.subset} subjects; "
            "name the data set that the run was made from"
        )
    there = len({case.subject for case in cases})
    for run in settings.ensemble:
        _check_unseen(run, settings.subset, {case.subject for case in cases})
    echo(f"subset {settings.subset}: {there} of {len(subjects)} subjects, {len(cases)} scans")
    return cases


def _check_unseen(run: Path, subset: str, subjects: set[str]) -> None:
    """Refuse a voter that was trained on, or chosen by, those whom it is to be tested on.

    Raises:
        UsageError: names one of them.
    """
    split = read_split_if_present(run / "split.json")
    if split is None:
        echo(
            f"{run}: holds no split.json, so that nobody can tell whether it has seen the {subset} subjects"
        )
        return
    seen = {"train": (), "validation": split.train, "test": (*split.train, *split.validation)}[
        subset
    ]
    if both := sorted(subjects & set(seen)):
        raise UsageError(
            f"{run}: has seen {len(both)} of the {len(subjects)} {subset} subjects, such as {printable(both[0])}; "
            "leave it out of --ensemble, or predict scans that are new to all"
        )


def _check_channels(dataset: Dataset, cases: Sequence[Case], recipe: Recipe) -> None:
    """Refuse what all scans have in common; the channels within a file are seen when it is read."""
    have, want = dataset.channel_names, recipe.channel_names
    named = f"{dataset.root}: has the channels {', '.join(have)} where the run was trained on {', '.join(want)}"
    files = {1 if case.stacked else len(case.images) for case in cases}
    if not files <= {1, len(want)} or (len(have) > 1 and len(have) != len(want)):
        raise DataError(f"{named}; name scans with those channels")
    if sorted(have) == sorted(want) and have != want:
        raise DataError(f"{named}; put them in that order")
    if len(have) == len(want) and have != want:
        echo(f"{named}; taken for the same, in this order")


def _check_apart(settings: Predict, cases: Sequence[Case]) -> None:
    """Refuse a folder of predictions that is mixed up with the scans."""
    out, scans = settings.out.resolve(), settings.scans.resolve()
    if any(image.resolve().is_relative_to(out) for case in cases for image in case.images):
        raise UsageError(f"{settings.out}: holds the scans themselves; name another --out")
    if scans.is_dir() and out.is_relative_to(scans):
        raise UsageError(
            f"{settings.out}: lies among the scans, so that predictions would be taken for scans; name another --out"
        )


def _read(case: Case, recipe: Recipe) -> tuple[Image, PreparedScan]:
    """The case as it is and as the network wants it.

    Raises:
        DataError: it cannot be used.
    """
    names = recipe.channel_names
    try:
        image = reading.read_case(case, len(names))
        for note in image.notes:
            echo(f"{image.name}: {note}")
        return image, recipe.apply(image)
    except DataError:
        raise
    except MemoryError:
        raise DataError(
            "needs more memory than there is; crop it, or use a larger machine"
        ) from None
    except (
        Exception
    ) as error:  # a reader's surprise at one file must not end the work on the others
        raise DataError(f"cannot be prepared ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def stop_on_signal(out: Path) -> Iterator[None]:
    """End as `Stopped` on SIGTERM and SIGINT, at once: files are whole or not there, and the rest can go on."""
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        came.append(number)
        # no ordinary exception: nobody takes it for a damaged scan
        raise KeyboardInterrupt

    before: Mapping[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)
        }
    try:
        yield
    except KeyboardInterrupt:
        number = came[0] if came else int(signal.SIGINT)
        name = signal.Signals(number).name
        raise Stopped(
            f"{out}: stopped by {name}; run the same command again to go on", number
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
