"""What the passes of one of several networks say is what these passes would say alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from selfvox.prediction.scan_segmenter import _measure_network
from selfvox.uncertainty.accumulator import VoteAccumulator
from selfvox.uncertainty.labelling import ClassLabelling
from selfvox.uncertainty.review import review_votes
from selfvox.uncertainty.vote_rules import winner

SPACE = (5, 4, 6)
CLASSES = {0: "background", 2: "organ", 5: "lesion"}
REGIONS = {"whole": (2, 5)}
MODEL = SimpleNamespace(
    classes=CLASSES, regions=REGIONS, trained_on_regions=False, class_indices=winner
)
UNIT = (1.0, 1.0, 1.0)
CPU = torch.device("cpu")


def added(passes):
    """An accumulator of these passes, and what each of two networks says, three passes each."""
    accumulator = VoteAccumulator(len(passes), ClassLabelling(3), SPACE, (), CPU)
    networks = []
    for first in range(0, len(passes), 3):
        before = accumulator.ballots.clone()
        for number in range(first, first + 3):
            accumulator.add(number, (), passes[number])
        networks.append(_measure_network(MODEL, accumulator, before, range(first, first + 3)))
    return accumulator, networks


def review(accumulator, label, networks=()):
    written = np.array(list(CLASSES))[label.numpy()]
    return review_votes(accumulator, label, written, CLASSES, UNIT, UNIT, REGIONS, False, networks)


def test_each_network_is_measured_by_its_own_passes_and_their_own_vote():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), (6, *SPACE)).astype(np.float32)
    passes = torch.from_numpy(np.moveaxis(shares, -1, 1).copy())
    accumulator, networks = added(passes)
    both = review(accumulator, winner(accumulator.ballots), networks)
    alone = []
    for of_network in (passes[:3], passes[3:]):
        single, _ = added(of_network)
        alone.append(review(single, winner(single.ballots)))
    for group in ("classes", "regions"):
        for place, part in enumerate(both[group]):
            assert len(part["networks"]) == 2
            for measure, expected in zip(part["networks"], alone, strict=True):
                own = expected[group][place]
                assert measure == pytest.approx({key: own[key] for key in measure})
            assert part["networks"][0]["volume"] != part["networks"][1]["volume"]


def test_where_the_written_mask_is_resampled_a_network_differs_from_it_by_its_vote():
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(3), (6, *SPACE)).astype(np.float32)
    accumulator, networks = added(torch.from_numpy(np.moveaxis(shares, -1, 1).copy()))
    label = winner(accumulator.ballots)
    # the written mask has 7 voxels of the organ, whatever the vote
    written = np.zeros(SPACE, np.uint16)
    written.flat[:7] = 2
    part = review_votes(accumulator, label, written, CLASSES, UNIT, UNIT, None, False, networks)[
        "classes"
    ][0]
    assert part["volume"] == pytest.approx(0.007)
    for measure, of_network in zip(part["networks"], networks, strict=True):
        voxels = 7 + of_network[0].voxels - int((label == 1).sum())
        assert measure["volume"] == pytest.approx(max(0, voxels) / 1000)
