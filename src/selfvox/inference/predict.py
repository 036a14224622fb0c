"""The verb `predict`: segmentations of scans, each on the scan's own grid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from selfvox import regions
from selfvox.data import image as images
from selfvox.data.crops import SLICE_AXES
from selfvox.data.image import Image
from selfvox.data.recipe import Prepared, Recipe
from selfvox.data.sources import Case
from selfvox.device import asking, make_fabric
from selfvox.errors import DataError, UsageError, WeightsError
from selfvox.inference import asked, classify, maps, review, voters, votes
from selfvox.inference.folder import Folder
from selfvox.inference.passes import SubNetworks, Tally, sweep
from selfvox.models.encoder import build
from selfvox.models.network import Segmenter, segment_whole
from selfvox.progress import say
from selfvox.regions import Regions, decode, own_values
from selfvox.settings import Predict
from selfvox.weights import load_into, load_part, part_of


@dataclass(frozen=True)
class Model:
    """A trained segmenter and all that it takes to ask it."""

    network: Segmenter
    recipe: Recipe
    window: tuple[int, ...]  # edges in voxels of what it was trained on
    classes: dict[int, str]
    sha256: str  # of its weights
    slice_axis: int | None = None  # of the volumes whose slices it was trained on
    regions: Regions | None = None
    own: tuple[int, ...] | None = None  # of a network trained on regions: the class that each stands for

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Class numbers (*space) from (class, *space), or from (region, *space)."""
        if self.own is not None:
            return decode(probabilities, self.own)
        decided: np.ndarray = np.array(sorted(self.classes), np.uint16)[probabilities.argmax(0)]
        return decided


def predict(settings: Predict) -> list[Path]:
    """Predict segmentations, each on the grid of the scan it was made from; or a table of classes.

    Predictions that lie in `out` already, made by the same run in the same way, are kept.

    Returns:
        The predicted labels' files, in the order of the cases; of a run that classifies, the table.

    Raises:
        UsageError: `out` holds predictions of another run, or of other scans of the same names.
        DataError: no scan is there, or at least one could not be predicted; the others were.
        WeightsError: the run holds no intact network.
        ResourceError: disk or memory is full.
        Stopped: a signal came; what was finished stays.
    """
    if classify.classifies(settings.run):
        return [classify.predict(settings)]
    models = [load(run) for run in (settings.run, *settings.ensemble)]
    model = models[0]
    _check_alike(models, settings)
    fabric = make_fabric(settings.device, 1, settings.precision)
    cases, many = asked.scans(settings, model.recipe), voters.many(settings)
    with asked.stoppable(settings.out):
        how: dict[str, Any] = {"overlap": settings.overlap, "precision": str(fabric.strategy.precision.precision)}
        how |= voters.how(settings, [model.sha256 for model in models])
        how |= {"maps": list(settings.maps)} if many else {}
        how |= {"trained_on": "regions"} if model.own else {}
        folder = Folder(settings.out, settings.probabilities, maps.files(settings.maps))
        todo = folder.open(cases, {"network_sha256": model.sha256, **how}, model.classes, model.regions)
        work = _many_passes(models, fabric, folder, settings) if many else _one_pass(model, fabric, folder, settings)
        refused = asked.each(todo, len(cases), model.recipe, work)
    if many and (measured := folder.noted("review")):
        review.write(settings.out / "review.csv", measured, model.classes)
        say(f"look at these first: {settings.out / 'review.csv'}")
    folder.reject(refused, len(cases))
    say(f"predictions: {settings.out} ({len(cases)} scans)")
    say(f"next: selfvox evaluate {settings.out} TRUTH/ --out scores.csv")
    return [folder.files(case)[0] for case in cases]


def load(run: Path) -> Model:
    """The segmenter of a fine-tuning run, or of its `network/` folder.

    Raises:
        WeightsError: it is missing, damaged, or its weights do not fit.
    """
    folder = part_of(run, "network")
    tensors, card = load_part(folder, "network")
    try:
        spec, classes = card["network"], {int(value): str(name) for value, name in card["classes"].items()}
        encoder = build(spec, card["spatial_dims"], card["in_channels"])
        parts = regions.from_json(card.get("regions"))
        own = tuple(own_values(parts or {}, classes)) if card.get("trained_on") == "regions" else None
        network = Segmenter(encoder, len(own or classes), spec.get("norm", "instance"), card.get("head") == "linear")
        recipe, window = Recipe.from_dict(card["recipe"]), tuple(int(edge) for edge in card["crop"])
        axis = SLICE_AXES[card["slices"]] if card.get("slices") else None
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise WeightsError(f"{folder / 'network.json'}: damaged ({error!r}); copy it again") from None
    say(f"network: {load_into(network, tensors, str(folder))}, of step {card.get('step')}")
    return Model(network.eval(), recipe, window, classes, card["sha256"], axis, parts, own)


# the work


def _one_pass(model: Model, fabric: Fabric, folder: Folder, settings: Predict) -> asked.Work:
    """Predict each scan once."""
    fabric.to_device(model.network)

    def work(case: Case, image: Image, prepared: Prepared) -> None:
        _write(folder.files(case), _segment(model, fabric, prepared.data, settings.overlap), image, prepared, model)
        folder.record(case, notes=image.notes)

    return work


def _many_passes(models: Sequence[Model], fabric: Fabric, folder: Folder, settings: Predict) -> asked.Work:
    """Predict each scan by many passes, or by several networks."""
    for model in models:
        fabric.to_device(model.network)
    networks = [SubNetworks(model.network, voters.dropout(settings)) for model in models]

    def work(case: Case, image: Image, prepared: Prepared) -> None:
        spill = settings.out / f".{os.getpid()}.part.{case.id}.passes" if "percentiles" in settings.maps else None
        try:
            tally = _tally(models, networks, fabric, prepared.data, settings, spill)
            label = _write_vote(folder.files(case), tally, image, prepared, models[0], settings)
            measured = review.measure(tally, label, models[0].classes, prepared.spacing_mm, models[0].regions)
            if settings.maps:
                _write_maps(folder.maps(case), tally, label, case, image, prepared, models[0])
        finally:
            if spill is not None:
                spill.unlink(missing_ok=True)
        folder.record(case, review=measured, notes=image.notes)

    return work


def _segment(model: Model, fabric: Fabric, data: np.ndarray, overlap: float) -> np.ndarray:
    """Probabilities (class, *space) on the prepared grid."""
    with asking(fabric):
        image, own = fabric.to_device(torch.from_numpy(data)), model.own is not None
        found: Tensor = segment_whole(model.network, image, model.window, overlap, model.slice_axis, overlapping=own)
    return found.cpu().numpy()


def _write(paths: Sequence[Path], probabilities: np.ndarray, image: Image, prepared: Prepared, model: Model) -> None:
    """Back to the scan's grid; where voxels change their size, the probabilities go back and then decide."""
    recipe = model.recipe
    if len(paths) == 1 and recipe.size is None and recipe.spacing_mm is None:
        label = recipe.undo(model.decide(probabilities), prepared.trail)
    else:
        # beyond the box, the first map is sure: of regions, it is nobody's
        apart = np.concatenate([probabilities[:1], probabilities]) if model.own else probabilities
        probabilities = recipe.undo_probabilities(apart, prepared.trail)[1 if model.own else 0 :]
        label = model.decide(probabilities)
    for path in paths[1:]:
        images.write_map(path, probabilities, image)
    images.write_label(paths[0], label, image)


# many passes


def _check_alike(models: Sequence[Model], settings: Predict) -> None:
    """Refuse runs that cannot vote together, and votes that the classes do not allow."""
    first = models[0]
    if (settings.passes > 1 or settings.ensemble) and any(model.own for model in models):
        raise UsageError(
            "passes: networks trained on regions have no votes; leave --passes and --ensemble out, or train on classes"
        )
    voters.check_alike(settings, [{"list of classes": model.classes, "recipe": model.recipe} for model in models])
    voters.check_vote(settings, [first.classes[value] for value in sorted(first.classes)])


def _tally(
    models: Sequence[Model],
    networks: Sequence[SubNetworks],
    fabric: Fabric,
    data: np.ndarray,
    settings: Predict,
    spill: Path | None,
) -> Tally:
    """All passes of all networks over one prepared scan (channel, *space)."""
    with asking(fabric):
        image = fabric.to_device(torch.from_numpy(data))
        count, wants = len(models) * settings.passes, {settings.vote, *settings.maps}
        tally = Tally(count, len(models[0].classes), image.shape[1:], wants, image.device, spill)
        for number, (model, network) in enumerate(zip(models, networks, strict=True)):
            if settings.passes == 1:
                whole = segment_whole(model.network, image, model.window, settings.overlap, model.slice_axis)
                tally.add(number, (), whole)
            else:
                mine = range(number * settings.passes, (number + 1) * settings.passes)
                with network:
                    sweep(network, image, model.window, settings.overlap, mine, tally.add, model.slice_axis)
    return tally


def _write_vote(
    paths: Sequence[Path], tally: Tally, image: Image, prepared: Prepared, model: Model, settings: Predict
) -> Tensor:
    """What the passes decided, on the scan's grid; returns it as class indices on the prepared grid.

    Where voxels change their size, each class's share of the score goes back and then decides.
    """
    recipe, values = model.recipe, np.array(sorted(model.classes), np.uint16)
    names = [model.classes[int(value)] for value in values]
    of = names.index(settings.union_class) if settings.union_class is not None else 0
    scores = tally.scores(settings.vote, settings.vote_weights or (), of)
    decided = votes.winner(scores)
    if recipe.size is None and recipe.spacing_mm is None:
        label = recipe.undo(values[decided.cpu().numpy()], prepared.trail)
    else:
        shares = (scores / scores.sum(0)).nan_to_num(0).cpu().numpy()
        label = values[recipe.undo_probabilities(shares, prepared.trail).argmax(0)]
    for path in paths[1:2] if settings.probabilities else ():
        mean = (tally.sums / tally.passes).cpu().numpy()
        images.write_map(path, recipe.undo_probabilities(mean, prepared.trail), image)
    images.write_label(paths[0], label, image)
    return decided


def _write_maps(
    paths: Mapping[str, Path],
    tally: Tally,
    decided: Tensor,
    case: Case,
    image: Image,
    prepared: Prepared,
    model: Model,
) -> None:
    """Maps on the scan's grid, where nothing is unsure outside the foreground box; and their picture."""
    recipe, trail = model.recipe, prepared.trail
    values = np.array(sorted(model.classes), np.uint16)
    groups = list(regions.positions(model.regions, model.classes).values())
    heat = maps.percentile_maps(tally, groups) if tally.spill is not None else None
    unsure = {}
    for name, path in paths.items():
        if name == "picture":
            continue
        if name.startswith("percentile-"):
            assert heat is not None
            of_classes = heat[[f"percentile-{each:02}" for each in maps.PERCENTILES].index(name)]
            images.write_map(path, recipe.undo_probabilities(of_classes, trail), image)
            continue
        found = maps.scalar_map(name, tally).cpu().numpy()
        each = found if found.ndim > len(tally.space) else found[None]
        # a class in front that is sure outside the box, so that all others are 0 there
        written = recipe.undo_probabilities(np.concatenate([np.zeros_like(each[:1]), each]), trail)[1:]
        images.write_map(path, written if found.ndim > len(tally.space) else written[0], image)
        unsure[name] = found.sum(0) if found.ndim > len(tally.space) else found
    labels = {"vote": values[decided.cpu().numpy()]}
    if case.label is not None:
        try:
            labels["truth"] = recipe.apply_label(images.read_label(case.label, image), trail)
        except DataError as error:
            say(f"{error}; drawn without it")
    spacing = prepared.spacing_mm
    maps.draw(paths["picture"], prepared.data[0], labels, model.classes, unsure, heat, spacing, model.regions)
