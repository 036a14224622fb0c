"""Networks on their device that segment one prepared scan after the other, plainly or by votes."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfvox.data.preparation.geometry import Geometry, place_in_scan
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.models.sliding_window import (
    WindowCounter,
    number_of_windows,
    segment_parts,
    segment_scan,
)
from selfvox.ops.flips import flips, mean_over_flips
from selfvox.ops.regions import nested_regions, region_class_indices
from selfvox.prediction.segmentation_result import ScanGridMaps, Segmentation, VotedScan
from selfvox.prediction.trained_model import TrainedSegmenter
from selfvox.runs.device import Fabric, inference_mode
from selfvox.uncertainty import maps
from selfvox.uncertainty.accumulator import VoteAccumulator
from selfvox.uncertainty.ensemble import PassSettings
from selfvox.uncertainty.labelling import ClassLabelling, Labelling, RegionLabelling
from selfvox.uncertainty.mirrored_passes import run_mirrored_passes
from selfvox.uncertainty.passes import SubNetworks
from selfvox.uncertainty.review import (
    LEAST_PASSES,
    PassMeasure,
    measure_passes,
    measured_parts,
    review_votes,
)
from selfvox.uncertainty.vote_rules import VOTE_RULES

OVERLAP = 0.5  # of neighbouring windows, in their edges

# called with the share of a scan that is done
ShareReceiver = Callable[[float], object]


class ScanSegmenter:
    """Networks on their device, ready to segment one scan after the other.

    Args:
        models: the leading one first; its recipe prepares the scans.
        settings: of passes and votes.
        overlap: share by which neighbouring windows overlap.
        fabric: device and arithmetic.

    Raises:
        UsageError: dropout is asked for and a network has no activation to drop units after.
    """

    def __init__(
        self,
        models: Sequence[TrainedSegmenter],
        settings: PassSettings,
        overlap: float,
        fabric: Fabric,
    ):
        self.models = models
        self.settings = settings
        self.overlap = overlap
        self.fabric = fabric
        self._sub_networks: list[SubNetworks] = []
        for model in models:
            fabric.to_device(model.network)
            if settings.passes > 1:
                sub_networks = SubNetworks(
                    model.network, settings.dropout, model.trained_on_regions
                )
                self._sub_networks.append(sub_networks)

    @property
    def votes(self) -> bool:
        """Whether several predictions of each scan vote."""
        return self.settings.has_several(len(self.models))

    def segment(
        self,
        prepared: PreparedScan,
        probabilities: bool,
        scratch: Path | None = None,
        report: ShareReceiver | None = None,
    ) -> Segmentation:
        """Segment one prepared scan.

        Args:
            prepared: by the recipe of the leading model.
            probabilities: whether the result has probabilities too.
            scratch: folder for a temporary file of all passes, which percentiles need; default: the
                system's.
            report: called after every few windows.
        """
        count = self._window_counter(prepared.data.shape[1:], report)
        if self.votes:
            return self._vote(prepared, probabilities, scratch, count)
        return self._predict_once(prepared, probabilities, count)

    def _window_counter(
        self, space: Sequence[int], report: ShareReceiver | None
    ) -> WindowCounter | None:
        """What makes shares of a scan with these edges of counted windows."""
        if report is None:
            return None
        total = 0
        for model in self.models:
            windows = number_of_windows(space, model.window, self.overlap, model.slice_axis)
            # passes take turns with the mirror images
            times = len(flips(self._mirror_axes(model)))
            total += windows * (times if self.settings.passes == 1 else self.settings.passes)
        done = 0

        def count(windows: int) -> None:
            nonlocal done
            done += windows
            report(done / total)

        return count

    def _predict_once(
        self, prepared: PreparedScan, with_probabilities: bool, count: WindowCounter | None
    ) -> Segmentation:
        """The plain prediction of the only network."""
        model = self.models[0]
        geometry = prepared.geometry
        with inference_mode(self.fabric):
            data = self.fabric.to_device(torch.from_numpy(prepared.data))
            if not (with_probabilities or model.resamples or self._mirror_axes(model)):
                label = place_in_scan(self._label_by_parts(model, data, count), geometry)
                return Segmentation(label, None, {}, None, None)
            probabilities = self._probabilities(model, data, count).cpu().numpy()
        if not with_probabilities:
            label = model.decide_on_scan(probabilities, geometry)
            return Segmentation(label, None, {}, None, None)
        on_scan = model.undo(probabilities, geometry)
        return Segmentation(model.decide(on_scan), on_scan, {}, None, None)

    def _label_by_parts(
        self, model: TrainedSegmenter, image: Tensor, count: WindowCounter | None
    ) -> np.ndarray:
        """Class numbers (*space) of a prepared scan, without the probabilities of all of it."""
        label = np.zeros(image.shape[1:], np.uint16)
        parts = segment_parts(
            model.network,
            image,
            model.window,
            self.overlap,
            model.slice_axis,
            model.trained_on_regions,
            count,
        )
        for part, probabilities in parts:
            label[part] = model.decide(probabilities.cpu().numpy())
        return label

    def _mirror_axes(self, model: TrainedSegmenter) -> tuple[int, ...]:
        return model.mirror_axes if self.settings.mirror else ()

    def _vote(
        self,
        prepared: PreparedScan,
        with_probabilities: bool,
        scratch: Path | None,
        count: WindowCounter | None,
    ) -> Segmentation:
        """What the passes of all networks decide together."""
        model = self.models[0]
        geometry = prepared.geometry
        names = self.settings.maps
        # percentiles alone need the probabilities of every pass
        stores_passes = any(maps.MAPS[name].stores_passes for name in names)
        with _passes_file(scratch, stores_passes) as passes_file:
            accumulator, networks = self._accumulate(prepared.data, passes_file, count)
            # of a network trained on regions, its outputs are these already
            regions = None if model.trained_on_regions else model.regions
            groups = list(region_class_indices(regions, model.classes).values())
            prepared_maps = maps.compute_maps(names, accumulator, groups)
        scores = accumulator.scores(
            VOTE_RULES[self.settings.vote], self.settings.options(model.output_names)
        )
        decided = model.class_indices(scores)
        voted = VotedScan(model.class_values[decided.cpu().numpy()], prepared_maps)
        probabilities = None
        if with_probabilities:
            probabilities = model.undo(accumulator.mean().cpu().numpy(), geometry)
        label = self._label_of_votes(voted.label, scores, geometry)
        review = review_votes(
            accumulator,
            decided,
            label,
            model.classes,
            prepared.spacing_mm,
            geometry.step,
            model.regions,
            model.trained_on_regions,
            networks,
        )
        return Segmentation(
            label=label,
            probabilities=probabilities,
            maps=ScanGridMaps(prepared_maps, model, geometry),
            review=review,
            voted=voted,
        )

    def _label_of_votes(self, voted: np.ndarray, scores: Tensor, geometry: Geometry) -> np.ndarray:
        """The vote on the scan's grid.

        Where voxels change their size, each class's share of the score is resampled and then
        decides.
        """
        model = self.models[0]
        if not model.resamples:
            return model.recipe.undo(voted, geometry)
        shares = scores
        if not model.trained_on_regions:
            # 0/0 where a weight of 0 leaves no score
            shares = (scores / scores.sum(0)).nan_to_num(0)
        return model.decide_on_scan(shares.cpu().numpy(), geometry)

    def _accumulate(
        self, data: np.ndarray, passes_file: Path | None, count: WindowCounter | None
    ) -> tuple[VoteAccumulator, list[list[PassMeasure]]]:
        """All passes of all networks over one prepared scan (channel, *space).

        Also what the passes of each of several networks say, for their calibrations.
        """
        settings = self.settings
        networks = []
        with inference_mode(self.fabric):
            image = self.fabric.to_device(torch.from_numpy(data))
            needs = set(VOTE_RULES[settings.vote].needs)
            for name in settings.maps:
                needs |= set(maps.MAPS[name].needs)
            accumulator = VoteAccumulator(
                len(self.models) * settings.passes,
                _labelling(self.models[0]),
                image.shape[1:],
                needs,
                image.device,
                passes_file,
                # passes of several networks are no draws of one kind
                halves=len(self.models) == 1 and settings.passes >= LEAST_PASSES,
            )
            for number, model in enumerate(self.models):
                if settings.passes == 1:
                    accumulator.add(number, (), self._probabilities(model, image, count))
                    continue
                # passes are numbered across the networks: no two have the same masks
                passes = range(number * settings.passes, (number + 1) * settings.passes)
                is_alone = len(self.models) == 1
                before = None if is_alone else accumulator.ballots.clone()
                with self._sub_networks[number] as sub_networks:
                    run_mirrored_passes(
                        sub_networks,
                        image,
                        model.window,
                        self.overlap,
                        passes,
                        accumulator.add,
                        model.slice_axis,
                        self._mirror_axes(model),
                        count,
                    )
                if before is not None:
                    networks.append(_measure_network(model, accumulator, before, passes))
        return accumulator, networks

    def _probabilities(
        self, model: TrainedSegmenter, image: Tensor, count: WindowCounter | None
    ) -> Tensor:
        """(class or region, *space) of a prepared scan (channel, *space), without dropout."""
        predict = functools.partial(
            segment_scan,
            model.network,
            window=model.window,
            overlap=self.overlap,
            slice_axis=model.slice_axis,
            overlapping=model.trained_on_regions,
            count_windows=count,
        )
        return mean_over_flips(predict, image, self._mirror_axes(model))


def _labelling(model: TrainedSegmenter) -> Labelling:
    if model.region_labels is None:
        return ClassLabelling(len(model.classes))
    return RegionLabelling(nested_regions(model.regions or {}, model.region_labels))


def _measure_network(
    model: TrainedSegmenter, accumulator: VoteAccumulator, before: Tensor, passes: range
) -> list[PassMeasure]:
    """What the passes of one network say of each class and region, by their own majority.

    Args:
        model: the network.
        accumulator: of all passes until its last one.
        before: the ballots until its first one.
        passes: their numbers.
    """
    ballots = accumulator.ballots - before
    label = model.class_indices(accumulator.majority(ballots, len(passes)))
    sizes = accumulator.voxels[passes.start : passes.stop]
    parts = measured_parts(model.classes, model.regions, model.trained_on_regions)
    return measure_passes(ballots, sizes, label, parts)


@contextlib.contextmanager
def _passes_file(folder: Path | None, is_needed: bool) -> Iterator[Path | None]:
    """A temporary file for the probabilities of all passes, removed at the end."""
    if not is_needed:
        yield None
        return
    # an output folder removes files of such names that a killed process left
    handle, name = tempfile.mkstemp(prefix=".passes.part.", dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
