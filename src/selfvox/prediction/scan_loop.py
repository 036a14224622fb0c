"""The loop over scans: which ones to predict, and reading them."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from selfvox.data.formats.image import Image
from selfvox.data.naming import printable
from selfvox.data.preparation.prepare_case import (
    Rejected,
    main_file,
    make_rejected,
    read_case,
)
from selfvox.data.preparation.recipe import PreparedScan, Recipe
from selfvox.data.preparation.split import Split, read_split_if_present
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.data.subjects import identity_notes
from selfvox.errors import DataError, UsageError
from selfvox.prediction.nnunet_names import join_channels
from selfvox.prediction.scan_segmenter import ShareReceiver
from selfvox.prediction.work_record import Workplace
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import Predict


@dataclass(frozen=True)
class ScanWork:
    """The work on one scan."""

    case: Case
    image: Image  # as it was read
    prepared: PreparedScan  # by the recipe
    began: float  # before it was read; a monotonic time in seconds
    report: ShareReceiver  # called with the share of the work that is done


ScanFunction = Callable[[ScanWork], None]

_NO_MEMORY = "needs more memory than there is; crop it, or use a larger machine"


def chosen_cases(settings: Predict, recipe: Recipe) -> list[Case]:
    """The cases to predict, checked as far as is possible without reading them.

    Raises:
        DataError: there is none, or they have other channels than the recipe.
        UsageError: the run has no split to choose by, or predictions and scans would be mixed up.
    """
    dataset = _list_scans(settings.scans, settings.source, recipe)
    cases = _cases_of_subset(dataset, settings)
    _check_channels(dataset, cases, recipe, "the run was trained on")
    _check_separate_folders(settings.scans, settings.out, cases)
    return cases


def all_cases(scans: Path, source: str, out: Path, recipe: Recipe, expected: str) -> list[Case]:
    """All cases in a folder, checked like `chosen_cases`.

    Args:
        scans: a folder, a scan, or a list of scans.
        source: its layout.
        out: the folder that is going to be written.
        recipe: with the channels that the scans must have.
        expected: who has these channels, for messages.

    Raises:
        DataError: there is none, or they have other channels than the recipe.
        UsageError: predictions and scans would be mixed up.
    """
    dataset = _list_scans(scans, source, recipe)
    cases = list(dataset.cases)
    if not cases:
        raise DataError(f"{dataset.root}: contains no scans; name the folder of the scans")
    _check_channels(dataset, cases, recipe, expected)
    _check_separate_folders(scans, out, cases)
    return cases


def process_scans(
    todo: Sequence[Case],
    total: int,
    recipe: Recipe,
    work: ScanFunction,
    workplace: Workplace,
    rejected: list[Rejected],
    title: str = "predict",
) -> None:
    """Read, prepare and work on each case.

    A stop gets the name of the case that is lost as a note.

    Args:
        todo: cases.
        total: how many there are with those that are finished, for the progress bar.
        recipe: prepares the scans.
        work: what to do with each.
        workplace: recorded with those that cannot be used.
        rejected: gets those that cannot be used.
        title: of the progress bar.
    """
    with progress_bar(title, total, total - len(todo)) as bar:
        for case in todo:
            began = time.monotonic()
            try:
                image, prepared = _read(case, recipe)
                report = functools.partial(bar.show, note=case.id)
                with _memory_errors_as_data_errors():
                    work(ScanWork(case, image, prepared, began, report))
            except DataError as error:
                facts = workplace.facts_with_costs(began)
                rejected.append(replace(make_rejected(case, str(error)), work=facts))
                echo(f"{rejected[-1].file}: {rejected[-1].reason}")
            except KeyboardInterrupt as request:
                request.add_note(
                    f"{main_file(case)} was being worked on and is lost; {bar.done} of {total} "
                    "scans are done"
                )
                raise
            bar.advance(f"{len(rejected)} rejected" if rejected else "")


@contextlib.contextmanager
def _memory_errors_as_data_errors() -> Iterator[None]:
    """Refuse a scan that does not fit into memory: the others may be smaller.

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
        raise DataError(_NO_MEMORY) from None
    except RuntimeError as error:
        # torch has no exception of its own for the memory of a CPU
        if "can't allocate memory" not in str(error):
            raise
        raise DataError(_NO_MEMORY) from None


def _list_scans(scans: Path, source: str, recipe: Recipe) -> Dataset:
    dataset = find_dataset(scans, source)
    for note in (*dataset.notes, *identity_notes(dataset.cases)):
        echo(note)
    return join_channels(dataset, len(recipe.channel_names))


def _cases_of_subset(dataset: Dataset, settings: Predict) -> list[Case]:
    """The cases of the subset to predict."""
    if settings.subset == "all":
        return list(dataset.cases)
    if settings.subset == "unlabelled":
        return _unlabelled_cases(dataset)
    split = read_split_if_present(settings.run / "split.json")
    if split is None:
        raise UsageError(
            f"subset: {settings.run} has no split.json that says who is {settings.subset}; "
            "leave it out"
        )
    subjects = set(getattr(split, settings.subset))
    cases = [case for case in dataset.cases if case.subject in subjects]
    if not cases:
        raise DataError(
            f"{settings.scans}: contains none of the run's {len(subjects)} {settings.subset} "
            "subjects; name the data set that the run was made from"
        )
    present = {case.subject for case in cases}
    for run in settings.ensemble:
        _check_unseen(run, settings.subset, present)
    echo(
        f"subset {settings.subset}: {len(present)} of {len(subjects)} subjects, {len(cases)} scans"
    )
    return cases


def _unlabelled_cases(dataset: Dataset) -> list[Case]:
    """The cases that have no label, grade or target."""
    cases = [case for case in dataset.cases if not case.is_labelled]
    if not cases:
        raise DataError(
            f"{dataset.root}: all {len(dataset.cases)} scans have a label; leave --subset out"
        )
    echo(f"subset unlabelled: {len(cases)} of {len(dataset.cases)} scans have no label")
    return cases


def _check_unseen(run: Path, subset: str, subjects: set[str]) -> None:
    """Refuse a further network that was trained on, or selected by, the subjects to predict.

    Raises:
        UsageError: names one of them.
    """
    split = read_split_if_present(run / "split.json")
    if split is None:
        echo(f"{run}: has no split.json, so it may have been trained on the {subset} subjects")
        return
    leaked = sorted(subjects & _seen_before(split, subset))
    if leaked:
        raise UsageError(
            f"{run}: has seen {len(leaked)} of the {len(subjects)} {subset} subjects, "
            f"such as {printable(leaked[0])}; leave it out of --ensemble, "
            "or name one fold, or predict scans that are new to all"
        )


def _seen_before(split: Split, subset: str) -> set[str]:
    """Subjects of the subsets that are used before this one."""
    if subset == "validation":
        return set(split.train)
    if subset == "test":
        return {*split.train, *split.validation}
    return set()


def _check_channels(dataset: Dataset, cases: Sequence[Case], recipe: Recipe, expected: str) -> None:
    """Refuse channels other than the recipe's; those within a file are checked when it is read."""
    names = dataset.channel_names
    trained = recipe.channel_names
    difference = (
        f"{dataset.root}: has the channels {', '.join(names)} where {expected} {', '.join(trained)}"
    )
    files = {1 if case.stacked else len(case.images) for case in cases}
    several_but_other = len(names) > 1 and len(names) != len(trained)
    if not files <= {1, len(trained)} or several_but_other:
        raise DataError(f"{difference}; name scans with those channels")
    # swapped channels would be predicted without any error
    if sorted(names) == sorted(trained) and names != trained:
        raise DataError(f"{difference}; put them in that order")
    if len(names) == len(trained) and names != trained:
        echo(f"{difference}; taken for the same, in this order")


def _check_separate_folders(scan_folder: Path, folder: Path, cases: Sequence[Case]) -> None:
    """Refuse a folder of predictions that contains scans, or is among them."""
    out = folder.resolve()
    scans = scan_folder.resolve()
    files = [image.resolve() for case in cases for image in case.images]
    if any(file.is_relative_to(out) for file in files):
        raise UsageError(f"{folder}: contains the scans themselves; name another --out")
    if scans.is_dir() and out.is_relative_to(scans):
        raise UsageError(
            f"{folder}: is among the scans, so that predictions would be taken for scans; "
            "name another --out"
        )


def _read(case: Case, recipe: Recipe) -> tuple[Image, PreparedScan]:
    """The scan of a case, as it was read and as the recipe prepared it.

    Raises:
        DataError: it cannot be used.
    """
    try:
        image = read_case(case, len(recipe.channel_names))
        prepared = recipe.apply(image)
        for note in (*image.notes, *prepared.notes):
            echo(f"{image.name}: {note}")
        return image, prepared
    except DataError:
        raise
    except MemoryError:
        raise DataError(_NO_MEMORY) from None
    # an unexpected error of a reader in one file must not end the work on the others
    except Exception as error:
        raise DataError(f"cannot be prepared ({type(error).__name__}: {error})") from error
