"""Segment scans with a trained segmenter, on each scan's own grid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.models.sliding_window import segment_scan
from selfvox.ops import regions
from selfvox.ops.regions import decode_regions, nested_regions
from selfvox.prediction import scan_loop
from selfvox.prediction.output_folder import OutputFolder
from selfvox.prediction.trained_segmenter import TrainedSegmenter
from selfvox.runs.device import inference_mode
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Predict
from selfvox.uncertainty import ensemble, maps, review, vote_rules
from selfvox.uncertainty.accumulator import RegionVoteAccumulator, VoteAccumulator
from selfvox.uncertainty.passes import SubNetworks, run_passes

# the work


def _one_pass(
    model: TrainedSegmenter, fabric: Fabric, folder: OutputFolder, settings: Predict
) -> scan_loop.ScanFunction:
    """Predict each scan once."""
    fabric.to_device(model.network)

    def work(case: Case, image: Image, prepared: PreparedScan) -> None:
        _write(
            folder.files(case),
            _segment(model, fabric, prepared.data, settings.overlap),
            image,
            prepared,
            model,
        )
        folder.record(case, notes=image.notes)

    return work


def _many_passes(
    models: Sequence[TrainedSegmenter], fabric: Fabric, folder: OutputFolder, settings: Predict
) -> scan_loop.ScanFunction:
    """Predict each scan by many passes, or by several networks."""
    for model in models:
        fabric.to_device(model.network)
    networks = [_sub_networks(model, settings) for model in models]

    def work(case: Case, image: Image, prepared: PreparedScan) -> None:
        spill = (
            settings.out / f".{os.getpid()}.part.{case.id}.passes"
            if "percentiles" in settings.maps
            else None
        )
        try:
            tally = _tally(models, networks, fabric, prepared.data, settings, spill)
            label = _write_vote(folder.files(case), tally, image, prepared, models[0], settings)
            measured = review.measure_review(
                tally, label, models[0].classes, prepared.spacing_mm, models[0].regions
            )
            if settings.maps:
                _write_maps(folder.maps(case), tally, label, case, image, prepared, models[0])
        finally:
            if spill is not None:
                spill.unlink(missing_ok=True)
        folder.record(case, review=measured, notes=image.notes)

    return work


def _segment(
    model: TrainedSegmenter, fabric: Fabric, data: np.ndarray, overlap: float
) -> np.ndarray:
    """Probabilities (class, *space) on the prepared grid."""
    with inference_mode(fabric):
        found = _whole(model, fabric.to_device(torch.from_numpy(data)), overlap)
    return found.cpu().numpy()


def _whole(model: TrainedSegmenter, image: Tensor, overlap: float) -> Tensor:
    """Probabilities (class or region, *space) of a prepared scan (channel, *space), asked once."""
    own = model.own is not None
    found: Tensor = segment_scan(
        model.network, image, model.window, overlap, model.slice_axis, overlapping=own
    )
    return found


def _write(
    paths: Sequence[Path],
    probabilities: np.ndarray,
    image: Image,
    prepared: PreparedScan,
    model: TrainedSegmenter,
) -> None:
    """Back to the scan's grid; where voxels change their size, the probabilities go back and then decide."""
    recipe = model.recipe
    if len(paths) == 1 and recipe.size is None and recipe.spacing_mm is None:
        label = recipe.undo(model.decide(probabilities), prepared.geometry)
    else:
        probabilities = model.undo(probabilities, prepared.geometry)
        label = model.decide(probabilities)
    for path in paths[1:]:
        images.write_map(path, probabilities, image)
    images.write_label(paths[0], label, image)


# many passes


def _check_alike(models: Sequence[TrainedSegmenter], settings: Predict) -> None:
    """Refuse runs that cannot vote together, and votes that the classes do not allow."""
    alike = [
        {
            "list of classes": model.classes,
            "choice of classes or regions to train on": model.outputs,
            "recipe": model.recipe,
        }
        for model in models
    ]
    ensemble.check_compatible(settings, alike)
    ensemble.check_vote(
        settings, [name for name, _ in models[0].outputs], of_regions=models[0].own is not None
    )


def _tally(
    models: Sequence[TrainedSegmenter],
    networks: Sequence[SubNetworks | None],
    fabric: Fabric,
    data: np.ndarray,
    settings: Predict,
    spill: Path | None,
) -> VoteAccumulator:
    """All passes of all networks over one prepared scan (channel, *space)."""
    with inference_mode(fabric):
        image = fabric.to_device(torch.from_numpy(data))
        tally = _empty_tally(models[0], len(models) * settings.passes, image, settings, spill)
        for number, (model, network) in enumerate(zip(models, networks, strict=True)):
            if network is None:
                tally.add(number, (), _whole(model, image, settings.overlap))
            else:
                mine = range(number * settings.passes, (number + 1) * settings.passes)
                with network:
                    run_passes(
                        network,
                        image,
                        model.window,
                        settings.overlap,
                        mine,
                        tally.add,
                        model.slice_axis,
                    )
    return tally


def _sub_networks(model: TrainedSegmenter, settings: Predict) -> SubNetworks | None:
    """None where the network is asked once, as it is."""
    if settings.passes == 1:
        return None
    return SubNetworks(
        model.network, ensemble.dropout_from_settings(settings), model.own is not None
    )


def _empty_tally(
    model: TrainedSegmenter, passes: int, image: Tensor, settings: Predict, spill: Path | None
) -> VoteAccumulator:
    how: dict[str, Any] = {
        "passes": passes,
        "space": image.shape[1:],
        "device": image.device,
        "spill": spill,
    }
    how["wants"] = {settings.vote, *settings.maps}
    if model.own is not None:
        return RegionVoteAccumulator(nested_regions(model.regions or {}, model.own), **how)
    return VoteAccumulator(classes=len(model.classes), **how)


def _write_vote(
    paths: Sequence[Path],
    tally: VoteAccumulator,
    image: Image,
    prepared: PreparedScan,
    model: TrainedSegmenter,
    settings: Predict,
) -> Tensor:
    """What the passes decided, on the scan's grid; returns it as class indices on the prepared grid.

    Where voxels change their size, each class's share of the score goes back and then decides.
    """
    recipe, values = model.recipe, np.array(sorted(model.classes), np.uint16)
    names = [name for name, _ in model.outputs]
    of = names.index(settings.union_class) if settings.union_class is not None else 0
    scores = tally.scores(settings.vote, settings.vote_weights or (), of)
    if model.own is not None:
        decided = torch.from_numpy(
            np.searchsorted(values, decode_regions(scores.cpu(), model.own)).astype(np.uint8)
        )
    else:
        decided = vote_rules.winner(scores)
    if recipe.size is None and recipe.spacing_mm is None:
        label = recipe.undo(values[decided.cpu().numpy()], prepared.geometry)
    else:
        shares = scores if model.own else (scores / scores.sum(0)).nan_to_num(0)
        label = model.decide(model.undo(shares.cpu().numpy(), prepared.geometry))
    for path in paths[1:2] if settings.probabilities else ():
        images.write_map(
            path, model.undo((tally.sums / tally.passes).cpu().numpy(), prepared.geometry), image
        )
    images.write_label(paths[0], label, image)
    return decided.to(scores.device)


def _write_maps(
    paths: Mapping[str, Path],
    tally: VoteAccumulator,
    decided: Tensor,
    case: Case,
    image: Image,
    prepared: PreparedScan,
    model: TrainedSegmenter,
) -> None:
    """Maps on the scan's grid, where nothing is unsure outside the foreground box; and their picture."""
    recipe, geometry = model.recipe, prepared.geometry
    values = np.array(sorted(model.classes), np.uint16)
    # of a network trained on regions these are all that there is
    groups = (
        []
        if model.own
        else list(regions.region_class_indices(model.regions, model.classes).values())
    )
    heat = maps.percentile_maps(tally, groups) if tally.spill is not None else None
    unsure = {}
    for name, path in paths.items():
        if name == "picture":
            continue
        if name.startswith("percentile-"):
            assert heat is not None
            of_classes = heat[[f"percentile-{each:02}" for each in maps.PERCENTILES].index(name)]
            images.write_map(path, model.undo(of_classes, geometry), image)
            continue
        found = maps.scalar_map(name, tally).cpu().numpy()
        each = found if found.ndim > len(tally.space) else found[None]
        written = recipe.undo_probabilities(each, geometry, background=False)
        images.write_map(path, written if found.ndim > len(tally.space) else written[0], image)
        unsure[name] = found.sum(0) if found.ndim > len(tally.space) else found
    labels = {"vote": values[decided.cpu().numpy()]}
    if case.label is not None:
        try:
            labels["truth"] = recipe.apply_label(images.read_label(case.label, image), geometry)
        except DataError as error:
            echo(f"{error}; drawn without it")
    spacing = prepared.spacing_mm
    parts = model.outputs if model.own else [*model.outputs, *(model.regions or {}).items()]
    maps.draw_maps(paths["picture"], prepared.data[0], labels, parts, unsure, heat, spacing)
