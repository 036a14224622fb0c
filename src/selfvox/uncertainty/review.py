"""What the passes over a scan say of it: volumes, their spread, agreement and entropy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfvox.ops.regions import Regions, region_class_indices
from selfvox.uncertainty.accumulator import VoteAccumulator
from selfvox.uncertainty.vote_rules import winner

INTERVAL = (5, 95)  # percentiles over the passes
LEAST_PASSES = 4  # of which halves are compared
STABLE = 0.02  # an error of the trust that hardly changes the order of the scans


@dataclass(frozen=True)
class MeasuredPart:
    """A class or region that a review measures."""

    key: Mapping[str, int | str]  # what the review calls it
    outputs: Sequence[int]  # that vote for it: classes, which exclude each other, or one region
    indices: Sequence[int]  # of its classes
    numbers: Sequence[int]  # the same, as class numbers


@dataclass(frozen=True)
class PassMeasure:
    """What several passes say of a class or region, in prepared voxels."""

    agreement: float  # with their vote
    voxels: int  # of their vote
    sizes: np.ndarray  # (pass,), voxels of each pass


def measured_parts(
    classes: Mapping[int, str], regions: Regions | None, trained_on_regions: bool
) -> list[MeasuredPart]:
    """The classes above 0, unless the network was trained on regions, and then the regions."""
    values = sorted(classes)
    measured = []
    if not trained_on_regions:
        for index, value in enumerate(values):
            if value != 0:
                measured.append(MeasuredPart({"class": value}, [index], [index], [value]))
    indices_of_regions = region_class_indices(regions, classes)
    for place, (name, numbers) in enumerate((regions or {}).items()):
        present = [number for number in numbers if number in classes]
        measured.append(
            MeasuredPart(
                {"region": name},
                [place] if trained_on_regions else indices_of_regions[name],
                [values.index(number) for number in present],
                present,
            )
        )
    return measured


def measure_passes(
    ballots: Tensor, sizes: np.ndarray, label: Tensor, measured: Sequence[MeasuredPart]
) -> list[PassMeasure]:
    """What some passes say of each class and region.

    Args:
        ballots: (output, *space), of these passes.
        sizes: (pass, output), voxels of each pass.
        label: (*space), class indices: their vote.
        measured: classes and regions.
    """
    measures = []
    for part in measured:
        vote = torch.isin(label, label.new_tensor(part.indices))
        measures.append(
            PassMeasure(
                agreement=_agreement(ballots, sizes, part.outputs, vote),
                voxels=int(vote.sum()),
                sizes=sizes[:, part.outputs].sum(1),
            )
        )
    return measures


def review_votes(
    accumulator: VoteAccumulator,
    label: Tensor,
    written: np.ndarray,
    classes: Mapping[int, str],
    spacing_mm: Sequence[float],
    step: Sequence[float],
    regions: Regions | None = None,
    trained_on_regions: bool = False,
    networks: Sequence[Sequence[PassMeasure]] = (),
) -> dict[str, Any]:
    """Volumes with the spread of the passes, agreement with the vote, and entropy, of one scan.

    A volume is that of the written mask. `low` and `high` are the percentiles of the passes' own
    volumes, moved so that their median is this volume; `spread` is their standard deviation. They
    show how much the passes differ, not how far the truth may be away.

    Agreement is the Dice of all passes together with their vote, `2 sum |pass and vote| / sum
    (|pass| + |vote|)`; 1 where neither any pass nor the vote has the class. Trust is its mean over
    the classes above 0; where the network was trained on regions, over these, and classes are not
    measured.

    Args:
        accumulator: of all passes.
        label: their vote on the prepared grid (*space), class indices.
        written: the vote on the scan's own grid (*space), class numbers.
        classes: name by class number.
        spacing_mm: edges of a prepared voxel; the pixels of a picture, which have no known size,
            are counted instead.
        step: voxels of the scan per prepared voxel, along each axis.
        regions: sets of classes to measure too.
        trained_on_regions: whether the outputs are these regions.
        networks: of each of several networks, what its own passes say; a part then has `networks`,
            with agreement, volume and spread of each.
    """
    voxel = written_voxel(spacing_mm, step)
    prepared_voxel = voxel * math.prod(step)
    counts = np.bincount(written.ravel(), minlength=max(classes) + 1)
    measured = measured_parts(classes, regions, trained_on_regions)
    of_all = measure_passes(accumulator.ballots, accumulator.voxels, label, measured)
    of_classes: list[dict[str, Any]] = []
    of_regions: list[dict[str, Any]] = []
    for number, (part, measure) in enumerate(zip(measured, of_all, strict=True)):
        volume = float(counts[part.numbers].sum()) * voxel
        entry: dict[str, Any] = {**part.key, **_entry(measure, volume, prepared_voxel)}
        if networks:
            of_each = [of_network[number] for of_network in networks]
            entry["networks"] = [
                # as much larger than the written mask as its vote is than that of all
                _network_entry(
                    own, volume + (own.voxels - measure.voxels) * prepared_voxel, prepared_voxel
                )
                for own in of_each
            ]
        (of_regions if "region" in part.key else of_classes).append(entry)
    halves = trust_of_halves(accumulator, trained_on_regions)
    return {
        "trust": statistics.fmean(entry["agreement"] for entry in of_classes or of_regions),
        **({} if halves is None else {"trust_of_halves": halves}),
        "entropy": _mean_entropy(accumulator, label),
        "volumes_in": "ml" if len(spacing_mm) == 3 else "px",
        "classes": of_classes,
        "regions": of_regions,
    }


def written_voxel(spacing_mm: Sequence[float], step: Sequence[float]) -> float:
    """Volume in ml of a voxel of the scan; 1 for the pixels of a picture.

    Args:
        spacing_mm: edges of a prepared voxel.
        step: voxels of the scan per prepared voxel, along each axis.
    """
    scale = 1000 if len(spacing_mm) == 3 else 1  # mm³ to ml
    return math.prod(spacing_mm) / scale / math.prod(step)


def parts(review: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The measures of each class, and then of each region."""
    return [*review["classes"], *review["regions"]]


def part_names(review: Mapping[str, Any], classes: Mapping[int, str]) -> list[str]:
    """The name of each class and region, in the order of `parts`."""
    names = [classes[part["class"]] for part in review["classes"]]
    return names + [part["region"] for part in review["regions"]]


def describe_precision(reviews: Iterable[Mapping[str, Any]], passes: int) -> str | None:
    """How precise the mean of the volumes of the passes is, and that of four times as many.

    Passes are independent draws, so that the mean of their volumes has the standard error of a
    mean; 1.96 of it, relative to the volume, is the median over scans, classes and regions. None
    where no volume is above 0.
    """
    errors = [
        1.96 * part["spread"] / math.sqrt(passes) / part["volume"]
        for review in reviews
        for part in parts(review)
        # records of earlier versions have no spread
        if part["volume"] > 0 and "spread" in part
    ]
    if not errors:
        return None
    percent = 100 * statistics.median(errors)
    return (
        f"the mean of the volumes of {passes} passes is precise to ±{percent:.2g} % (chance of the "
        f"dropout alone, median); that of {4 * passes} would be to ±{percent / 2:.2g} %"
    )


def trust_of_halves(
    accumulator: VoteAccumulator, trained_on_regions: bool
) -> tuple[float, float] | None:
    """The trust that the first and the second half of the passes have alone, by majority.

    None where the accumulator has no halves.
    """
    if accumulator.first_half is None:
        return None
    middle = accumulator.passes // 2
    first = accumulator.first_half
    return (
        _trust(first, accumulator.voxels[:middle], trained_on_regions),
        _trust(accumulator.ballots - first, accumulator.voxels[middle:], trained_on_regions),
    )


def _trust(ballots: Tensor, sizes: np.ndarray, trained_on_regions: bool) -> float:
    """Mean agreement of the outputs, without class 0.

    Args:
        ballots: (output, *space).
        sizes: (pass, output), voxels of each pass.
        trained_on_regions: whether the outputs are regions.
    """
    label = None if trained_on_regions else winner(ballots)
    agreements = []
    for output in range(0 if label is None else 1, len(ballots)):
        vote = 2 * ballots[output].int() > len(sizes) if label is None else label == output
        agreements.append(_agreement(ballots, sizes, [output], vote))
    return statistics.fmean(agreements)


def describe_stability(reviews: Iterable[Mapping[str, Any]], passes: int) -> str | None:
    """How far the trust of a scan depends on the draw of the passes, and how many are enough.

    The trust of either half of the passes has twice the variance of that of all, so that half of
    their difference has the standard error of the trust; over all scans, its root mean square
    counts. None where no scan has halves.
    """
    halves = [review["trust_of_halves"] for review in reviews if "trust_of_halves" in review]
    if not halves:
        return None
    squares = statistics.fmean((first - second) ** 2 for first, second in halves)
    return stability_in_words(1.96 * math.sqrt(squares) / 2, passes, len(halves), STABLE)


def stability_in_words(error: float, passes: int, scans: int, enough: float) -> str:
    """`trust is stable to ±0.05 with 20 passes; --passes 130 would be enough for ±0.02`.

    Args:
        error: of the trust: 1.96 standard errors.
        passes: that it was measured with.
        scans: likewise.
        enough: error that is small enough.
    """
    plural = "scan" if scans == 1 else "scans"
    text = (
        f"trust is stable to ±{error:.2g} with {passes} passes (chance of the dropout alone, "
        f"measured on {scans} {plural})"
    )
    if error <= enough:
        return f"{text}, which is enough to rank the scans"
    # rounded up to two digits: the error itself is not known better
    needed = passes * (error / enough) ** 2
    unit = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return f"{text}; --passes {math.ceil(needed / unit) * unit} would be enough for ±{enough:g}"


def _entry(measure: PassMeasure, volume: float, voxel: float) -> dict[str, float]:
    """Volume, spread of the passes, and agreement with the vote.

    Args:
        measure: of the passes.
        volume: of the written mask.
        voxel: volume of a prepared voxel.
    """
    low, high = (np.percentile(measure.sizes, INTERVAL) - np.median(measure.sizes)) * voxel
    return {
        "volume": volume,
        "low": max(0.0, volume + float(low)),
        "high": volume + float(high),
        "spread": _spread(measure, voxel),
        "agreement": measure.agreement,
    }


def _network_entry(measure: PassMeasure, volume: float, voxel: float) -> dict[str, float]:
    """The same of one of several networks, without percentiles."""
    return {
        "volume": max(0.0, volume),
        "spread": _spread(measure, voxel),
        "agreement": measure.agreement,
    }


def _spread(measure: PassMeasure, voxel: float) -> float:
    # ddof=1: the passes are a sample of all sub-networks
    return float(np.std(measure.sizes, ddof=1)) * voxel


def _agreement(ballots: Tensor, sizes: np.ndarray, outputs: Sequence[int], vote: Tensor) -> float:
    """Dice of all passes together with their vote, of several outputs.

    Args:
        ballots: (output, *space).
        sizes: (pass, output), voxels of each pass.
        outputs: indices of classes, which exclude each other, or of one region.
        vote: (*space), where the vote has them.
    """
    # int64, since the sum of bytes would overflow
    common = sum(int(ballots[output][vote].sum(dtype=torch.int64)) for output in outputs)
    total = int(sizes[:, outputs].sum()) + len(sizes) * int(vote.sum())
    return 2 * common / total if total else 1.0


def _mean_entropy(accumulator: VoteAccumulator, label: Tensor) -> float | None:
    """Mean entropy of the mean probabilities over the labelled voxels, in nats, if any."""
    voxels = int((label > 0).sum())
    if not voxels:
        return None
    planes = []
    # plane by plane, since the mean of a whole scan takes as much memory as the sums
    for sums, mask in zip(accumulator.sums.movedim(1, 0), label > 0, strict=True):
        entropy = accumulator.labelling.entropy(sums / accumulator.passes)
        planes.append(float(entropy[mask].cpu().sum(dtype=torch.float64)))
    return sum(planes) / voxels
