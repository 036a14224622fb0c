"""The review of a scan equals loops over passes and voxels; the least trusted scan comes first."""

import csv
import itertools
import re

import numpy as np
import pytest
import torch

from selfvox.ops.regions import nested_regions, region_labels
from selfvox.uncertainty.accumulator import VoteAccumulator
from selfvox.uncertainty.labelling import ClassLabelling, RegionLabelling
from selfvox.uncertainty.review import (
    describe_precision,
    describe_stability,
    review_votes,
    stability_in_words,
    trust_of_halves,
)
from selfvox.uncertainty.review_table import write_review
from selfvox.uncertainty.vote_rules import VOTE_RULES, VoteOptions, winner

SPACE = (4, 3, 5)
PASSES = 7
CLASSES = {0: "background", 2: "organ", 5: "lesion"}
REGIONS = {"whole": (2, 5), "core": (5,)}
CPU = torch.device("cpu")


def draw_probabilities(outputs):
    rng = np.random.default_rng(0)
    values = rng.dirichlet(np.ones(outputs), (PASSES, *SPACE)).astype(np.float32)
    return torch.from_numpy(np.moveaxis(values, -1, 1).copy())


def agreement(masks, vote):
    """Dice of all passes together with their vote, counted voxel by voxel."""
    common = 0
    total = 0
    for mask, voxel in itertools.product(masks, np.ndindex(SPACE)):
        common += bool(mask[voxel]) and bool(vote[voxel])
        total += bool(mask[voxel]) + bool(vote[voxel])
    return 2 * common / total if total else 1.0


def check(entry, masks, vote, voxel):
    sizes = [mask.sum() for mask in masks]
    low, median, high = np.percentile(sizes, (5, 50, 95)) * voxel
    volume = vote.sum() * voxel
    assert entry["volume"] == pytest.approx(volume)
    assert entry["low"] == pytest.approx(max(0, volume + low - median))
    assert entry["high"] == pytest.approx(volume + high - median)
    assert entry["low"] <= entry["volume"] <= entry["high"]
    deviations = [(size - sum(sizes) / PASSES) ** 2 for size in sizes]
    assert entry["spread"] == pytest.approx((sum(deviations) / (PASSES - 1)) ** 0.5 * voxel)
    assert entry["agreement"] == pytest.approx(agreement(masks, vote))


@pytest.mark.parametrize(
    ("spacing_mm", "voxel", "unit"), [((1.0, 2.0, 3.0), 0.006, "ml"), ((1.0, 1.0), 1, "px")]
)
def test_classes_and_regions_are_measured_as_in_loops(spacing_mm, voxel, unit):
    probabilities = draw_probabilities(3)
    accumulator = VoteAccumulator(PASSES, ClassLabelling(3), SPACE, (), CPU)
    for number, of_pass in enumerate(probabilities):
        accumulator.add(number, (), of_pass)
    label = winner(accumulator.scores(VOTE_RULES["majority"], VoteOptions()))
    written = np.array(list(CLASSES))[label.numpy()]
    step = (1.0,) * len(spacing_mm)
    review = review_votes(accumulator, label, written, CLASSES, spacing_mm, step, REGIONS)
    voted = probabilities.argmax(1).numpy()
    decided = label.numpy()
    assert review["volumes_in"] == unit
    assert [entry["class"] for entry in review["classes"]] == [2, 5]
    for entry, index in zip(review["classes"], (1, 2), strict=True):
        check(entry, voted == index, decided == index, voxel)
    assert [entry["region"] for entry in review["regions"]] == ["whole", "core"]
    for entry, indices in zip(review["regions"], ((1, 2), (2,)), strict=True):
        check(entry, np.isin(voted, indices), np.isin(decided, indices), voxel)
    agreements = [entry["agreement"] for entry in review["classes"]]
    assert review["trust"] == pytest.approx(np.mean(agreements))
    mean = probabilities.double().numpy().mean(0)
    entropy = -(mean * np.log(mean)).sum(0)
    assert review["entropy"] == pytest.approx(entropy[decided > 0].mean(), abs=1e-5)


def test_a_network_trained_on_regions_is_trusted_by_its_regions():
    labels = region_labels(REGIONS, CLASSES)
    labelling = RegionLabelling(nested_regions(REGIONS, labels))
    probabilities = draw_probabilities(3)[:, :2] * 1.5
    accumulator = VoteAccumulator(PASSES, labelling, SPACE, (), CPU)
    for number, of_pass in enumerate(probabilities):
        accumulator.add(number, (), of_pass)
    shares = accumulator.scores(VOTE_RULES["majority"], VoteOptions())
    # class indices: later regions win
    label = torch.where(shares[1] > 0.5, 2, torch.where(shares[0] > 0.5, 1, 0)).to(torch.uint8)
    written = np.array(list(CLASSES))[label.numpy()]
    unit = (1.0, 1.0, 1.0)
    review = review_votes(
        accumulator, label, written, CLASSES, unit, unit, REGIONS, trained_on_regions=True
    )
    core = (probabilities[:, 1] > 0.5).numpy()
    whole = core | (probabilities[:, 0] > 0.5).numpy()
    assert review["classes"] == []
    for entry, masks, numbers in zip(review["regions"], (whole, core), ((1, 2), (2,)), strict=True):
        check(entry, masks, np.isin(label.numpy(), numbers), 0.001)
    assert review["trust"] == pytest.approx(
        np.mean([entry["agreement"] for entry in review["regions"]])
    )


def test_passes_that_find_nothing_agree_and_have_no_entropy():
    accumulator = VoteAccumulator(2, ClassLabelling(3), SPACE, (), CPU)
    for number in range(2):
        accumulator.add(
            number, (), torch.tensor([0.8, 0.1, 0.1]).reshape(3, 1, 1, 1).expand(3, *SPACE)
        )
    label = torch.zeros(SPACE, dtype=torch.uint8)
    unit = (1.0, 1.0, 1.0)
    review = review_votes(accumulator, label, label.numpy(), CLASSES, unit, unit)
    assert (review["trust"], review["entropy"]) == (1, None)


def test_a_volume_is_that_of_the_written_mask_also_where_scans_are_resampled():
    accumulator = VoteAccumulator(PASSES, ClassLabelling(3), SPACE, (), CPU)
    for number, of_pass in enumerate(draw_probabilities(3)):
        accumulator.add(number, (), of_pass)
    label = winner(accumulator.scores(VOTE_RULES["majority"], VoteOptions()))
    # voxels of the scan are eight times as small as those of the network
    written = np.zeros([2 * edge for edge in SPACE], np.uint16)
    written[:3, :2, :5] = 5
    step = (2.0, 2.0, 2.0)
    review = review_votes(accumulator, label, written, CLASSES, (2.0, 2.0, 6.0), step, REGIONS)
    volumes = [entry["volume"] for entry in (*review["classes"], *review["regions"])]
    assert volumes == pytest.approx([0, 0.09, 0.09, 0.09])  # 30 voxels of 1 x 1 x 3 mm
    sizes = accumulator.voxels[:, 2]
    low, median = np.percentile(sizes, (5, 50))
    assert review["classes"][1]["high"] > 0.09
    assert review["classes"][1]["low"] == pytest.approx(max(0, 0.09 + (low - median) * 0.024))


def test_the_precision_of_the_volumes_is_that_of_a_mean_of_passes():
    entry = {"volume": 100.0, "spread": 10.0}
    empty = {"volume": 0.0, "spread": 1.0}
    review = {"classes": [entry, empty, {"volume": 9.0}], "regions": []}
    text = describe_precision([review], 25)
    assert "volumes of 25 passes is precise to ±3.9 %" in text
    assert "that of 100 would be to ±2 %" in text
    assert describe_precision([{"classes": [empty], "regions": []}], 25) is None
    # of many sets of 25 passes, 95 % have their mean as near as that
    draws = np.random.default_rng(0).normal(100, 10, (20000, 25)).mean(1)
    assert np.mean(np.abs(draws - 100) < 3.92) == pytest.approx(0.95, abs=0.01)


def test_the_table_begins_with_the_least_trusted_scan(tmp_path):
    entry = {"volume": 1.0, "low": 0.5, "high": 2.0, "agreement": 0.75}
    reviews = {
        case: {
            "trust": trust,
            "entropy": 0.1,
            "volumes_in": "ml",
            "classes": [{"class": 2, **entry}],
            "regions": [{"region": "whole", **entry}],
        }
        for case, trust in (("scan_10", 0.5), ("scan_2", 0.5), ("scan_3", 0.1))
    }
    write_review(tmp_path / "review.csv", reviews, CLASSES)
    with (tmp_path / "review.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["scan_3", "scan_2", "scan_10"]
    assert {
        (row["organ ml"], row["organ spread low"], row["whole spread high"]) for row in rows
    } == {("1", "0.5", "2")}


@pytest.mark.parametrize("on_regions", [False, True])
def test_halves_of_the_passes_have_the_trust_that_they_would_have_alone(on_regions):
    probabilities = draw_probabilities(3)
    members = nested_regions(REGIONS, region_labels(REGIONS, CLASSES))
    labelling = RegionLabelling(members) if on_regions else ClassLabelling(3)
    outputs = labelling.outputs()
    probabilities = probabilities[:, :outputs]
    accumulator = VoteAccumulator(PASSES, labelling, SPACE, (), CPU, halves=True)
    for number, of_pass in enumerate(probabilities):
        accumulator.add(number, (), of_pass)
    expected = []
    for part in (probabilities[:3], probabilities[3:]):
        masks = [list(labelling.masks(of_pass)) for of_pass in part]
        counts = np.sum([[mask.numpy() for mask in row] for row in masks], axis=0)
        winners = counts.argmax(0)
        agreements = []
        for output in range(0 if on_regions else 1, outputs):
            vote = counts[output] > len(part) / 2 if on_regions else winners == output
            agreements.append(agreement([row[output] for row in masks], vote))
        expected.append(sum(agreements) / len(agreements))
    assert trust_of_halves(accumulator, on_regions) == pytest.approx(expected)


def test_the_error_of_the_trust_is_that_of_repeated_draws_of_the_passes():
    rng = np.random.default_rng(0)
    depth = rng.normal(0, 1, 200)  # of each voxel in the structure
    reviews = []
    for _ in range(150):
        accumulator = VoteAccumulator(20, ClassLabelling(2), (200,), (), CPU, halves=True)
        # a pass is a network of its own: it shifts the whole surface, and errs in voxels
        shifts = rng.normal(0, 0.4, (20, 1)) + rng.normal(0, 0.3, (20, 200))
        inside = torch.from_numpy(depth + shifts > 0).float()
        for number in range(20):
            accumulator.add(number, (), torch.stack([1 - inside[number], inside[number]]))
        halves = trust_of_halves(accumulator, False)
        label = winner(accumulator.ballots)
        review = review_votes(
            accumulator, label, label.numpy(), {0: "background", 1: "organ"}, (1.0,) * 3, (1.0,)
        )
        assert review["trust_of_halves"] == halves
        reviews.append(review)
    expected = 1.96 * np.std([review["trust"] for review in reviews])
    printed = describe_stability(reviews, 20)
    error = float(re.search(r"stable to ±([\d.]+) with 20 passes", printed).group(1))
    assert error == pytest.approx(expected, rel=0.15)
    assert "measured on 150 scans" in printed


def test_passes_that_are_enough_follow_from_the_square_root_law():
    # twice as precise: four times as many
    text = stability_in_words(0.04, 25, 3, 0.02)
    assert text.endswith("measured on 3 scans); --passes 100 would be enough for ±0.02")
    assert "--passes 130 would" in stability_in_words(0.05, 20, 3, 0.02)  # 125
    text = stability_in_words(0.01, 25, 1, 0.02)
    assert text.endswith("measured on 1 scan), which is enough to rank the scans")
    assert describe_stability([{"trust": 0.5}], 20) is None
