"""The verb `predict`: segmentations of scans, each on the scan's own grid."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch
from lightning_fabric import Fabric

from selfvox.data import cases as reading
from selfvox.data import image as images
from selfvox.data.cases import Rejected, rejected
from selfvox.data.image import Image
from selfvox.data.recipe import Prepared, Recipe
from selfvox.data.sources import Case, Dataset, find
from selfvox.data.split import read_if_there
from selfvox.device import make_fabric
from selfvox.errors import DataError, ResourceError, Stopped, UsageError, WeightsError
from selfvox.inference.folder import Folder
from selfvox.models.encoder import build
from selfvox.models.network import Segmenter, segment_whole
from selfvox.progress import progress, say
from selfvox.settings import Predict
from selfvox.weights import load_into, load_part


@dataclass(frozen=True)
class Model:
    """A trained segmenter and all that it takes to ask it."""

    network: Segmenter
    recipe: Recipe
    window: tuple[int, ...]  # edges in voxels of what it was trained on
    classes: dict[int, str]
    sha256: str  # of its weights


def predict(settings: Predict) -> list[Path]:
    """Predict segmentations, each on the grid of the scan it was made from.

    Predictions that lie in `out` already, made by the same run in the same way, are kept.

    Returns:
        The predicted labels' files, in the order of the cases.

    Raises:
        UsageError: `out` holds predictions of another run, or of other scans of the same names.
        DataError: no scan is there, or at least one could not be predicted; the others were.
        WeightsError: the run holds no intact network.
        ResourceError: disk or memory is full.
        Stopped: a signal came; what was finished stays.
    """
    model = load(settings.run)
    fabric = make_fabric(settings.device, 1, settings.precision)
    dataset = find(settings.scans, settings.source)
    for note in dataset.notes:
        say(note)
    cases = _chosen(dataset, settings)
    _check_channels(dataset, cases, model.recipe)
    with _stoppable(settings.out):
        _check_apart(settings, cases)
        how = {"overlap": settings.overlap, "precision": str(fabric.strategy.precision.precision)}
        folder = Folder(settings.out, settings.probabilities)
        done = folder.open(cases, {"network_sha256": model.sha256, **how}, model.classes)
        todo = [case for case in cases if case.id not in done]
        if done:
            say(f"{len(done)} of {len(cases)} predictions are there already and are kept")
        refused = _predict_all(todo, len(cases), model, fabric, folder, settings.overlap)
    folder.reject(refused)
    if refused:
        raise DataError(
            f"{settings.out}: {len(refused)} of {len(cases)} scans could not be predicted, see rejected.csv there; "
            "repair or remove them and run the same command again"
        )
    say(f"predictions: {settings.out} ({len(cases)} scans)")
    say(f"next: selfvox evaluate {settings.out} TRUTH/ --out scores.csv")
    return [folder.files(case)[0] for case in cases]


def load(run: Path) -> Model:
    """The segmenter of a fine-tuning run, or of its `network/` folder.

    Raises:
        WeightsError: it is missing, damaged, or its weights do not fit.
    """
    folder = run / "network" if (run / "network").is_dir() else run
    tensors, card = load_part(folder, "network")
    try:
        spec, classes = card["network"], {int(value): str(name) for value, name in card["classes"].items()}
        encoder = build(spec, card["spatial_dims"], card["in_channels"])
        network = Segmenter(encoder, len(classes), spec.get("norm", "instance"))
        recipe, window = Recipe.from_dict(card["recipe"]), tuple(int(edge) for edge in card["crop"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{folder / 'network.json'}: damaged ({error!r}); copy it again") from None
    say(f"network: {load_into(network, tensors, str(folder))}, of step {card.get('step')}")
    return Model(network.eval(), recipe, window, classes, card["sha256"])


# which scans


def _chosen(dataset: Dataset, settings: Predict) -> list[Case]:
    if settings.subset == "all":
        return list(dataset.cases)
    split = read_if_there(settings.run / "split.json")
    if split is None:
        raise UsageError(f"subset: {settings.run} holds no split.json that says who is {settings.subset}; leave it out")
    subjects = set(getattr(split, settings.subset))
    cases = [case for case in dataset.cases if case.subject in subjects]
    if not cases:
        raise DataError(
            f"{settings.scans}: holds none of the run's {len(subjects)} {settings.subset} subjects; "
            "name the data set that the run was made from"
        )
    there = len({case.subject for case in cases})
    say(f"subset {settings.subset}: {there} of {len(subjects)} subjects, {len(cases)} scans")
    return cases


def _check_channels(dataset: Dataset, cases: Sequence[Case], recipe: Recipe) -> None:
    """Refuse what all scans have in common; the channels within a file are seen when it is read."""
    have, want = dataset.channel_names, recipe.channel_names
    named = f"{dataset.root}: has the channels {', '.join(have)} where the run was trained on {', '.join(want)}"
    if any(len(case.images) not in (1, len(want)) for case in cases) or (len(have) > 1 and len(have) != len(want)):
        raise DataError(f"{named}; name scans with those channels")
    if sorted(have) == sorted(want) and have != want:
        raise DataError(f"{named}; put them in that order")
    if len(have) == len(want) and have != want:
        say(f"{named}; taken for the same, in this order")


def _check_apart(settings: Predict, cases: Sequence[Case]) -> None:
    out, scans = settings.out.resolve(), settings.scans.resolve()
    if any(image.resolve().is_relative_to(out) for case in cases for image in case.images):
        raise UsageError(f"{settings.out}: holds the scans themselves; name another --out")
    if scans.is_dir() and out.is_relative_to(scans):
        raise UsageError(
            f"{settings.out}: lies among the scans, so that predictions would be taken for scans; name another --out"
        )


# the work


def _predict_all(
    todo: Sequence[Case], total: int, model: Model, fabric: Fabric, folder: Folder, overlap: float
) -> list[Rejected]:
    fabric.to_device(model.network)
    refused = []
    with progress("predict", total, total - len(todo)) as bar:
        for case in todo:
            try:
                image, prepared = _read(case, model.recipe)
            except DataError as error:
                refused.append(rejected(case, str(error)))
                say(f"{refused[-1].file}: {refused[-1].reason}")
            else:
                probabilities = _segment(model, fabric, prepared.data, overlap)
                _write(folder.files(case), probabilities, image, prepared, model)
                folder.record(case)
            bar.advance(f"{len(refused)} rejected" if refused else "")
    return refused


def _read(case: Case, recipe: Recipe) -> tuple[Image, Prepared]:
    names = recipe.channel_names
    try:
        image = reading.read(case, len(names))
        for note in image.notes:
            say(f"{image.name}: {note}")
        return image, recipe.apply(image)
    except DataError:
        raise
    except MemoryError:
        raise DataError("needs more memory than there is; crop it, or use a larger machine") from None
    except Exception as error:  # a reader's surprise at one file must not end the work on the others
        raise DataError(f"cannot be prepared ({type(error).__name__}: {error})") from error


def _segment(model: Model, fabric: Fabric, data: np.ndarray, overlap: float) -> np.ndarray:
    """Probabilities (class, *space) on the prepared grid."""
    try:
        with torch.inference_mode(), fabric.autocast():
            image = fabric.to_device(torch.from_numpy(data))
            found: np.ndarray = segment_whole(model.network, image, model.window, overlap).cpu().numpy()
    except torch.OutOfMemoryError:
        raise ResourceError("the device's memory is full; run the same command again with --device cpu") from None
    return found


def _write(paths: Sequence[Path], probabilities: np.ndarray, image: Image, prepared: Prepared, model: Model) -> None:
    """Back to the scan's grid; where voxels change their size, the probabilities go back and then decide."""
    recipe, values = model.recipe, np.array(sorted(model.classes), np.uint16)
    if len(paths) == 1 and recipe.size is None and recipe.spacing_mm is None:
        label = recipe.undo(values[probabilities.argmax(0)], prepared.trail)
    else:
        probabilities = recipe.undo_probabilities(probabilities, prepared.trail)
        label = values[probabilities.argmax(0)]
    for path in paths[1:]:
        images.write_map(path, probabilities, image)
    images.write_label(paths[0], label, image)


@contextlib.contextmanager
def _stoppable(out: Path) -> Iterator[None]:
    """End as `Stopped` on SIGTERM and SIGINT, at once: files are whole or not there, and the rest can go on."""
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        came.append(number)
        # no ordinary exception: nobody takes it for a damaged scan
        raise KeyboardInterrupt

    before: Mapping[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        number = came[0] if came else int(signal.SIGINT)
        name = signal.Signals(number).name
        raise Stopped(f"{out}: stopped by {name}; run the same command again to go on", number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
