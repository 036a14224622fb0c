"""What passes add up to, against loops over passes and voxels."""

import itertools

import numpy as np
import pytest
import torch

from selfvox.ops.regions import decode_regions, nested_regions, region_labels
from selfvox.uncertainty import vote_rules
from selfvox.uncertainty.accumulator import VoteAccumulator
from selfvox.uncertainty.labelling import ClassLabelling, RegionLabelling
from selfvox.uncertainty.vote_rules import VoteOptions

SPACE = (4, 5, 6)
CPU = torch.device("cpu")
REGIONS = {"whole": (1, 2, 3), "core": (1, 3), "apart": (3,)}
OWN = region_labels(REGIONS, [0, 1, 2, 3])


def count_ballots(probabilities):
    """(pass, class, *space) -> (class, *space) int64: passes with each class most probable."""
    votes = probabilities.argmax(1)
    return torch.stack([(votes == number).sum(0) for number in range(probabilities.shape[1])])


def test_slices_add_up_as_slabs_do(tmp_path):
    probabilities = torch.rand(3, 3, 5, 6, 7).softmax(1)
    options = {
        "passes": 3,
        "labelling": ClassLabelling(3),
        "space": (5, 6, 7),
        "needs": {"points", "squares", "entropies"},
        "device": CPU,
    }
    slabs = VoteAccumulator(**options, passes_file=tmp_path / "slabs")
    slices = VoteAccumulator(**options, passes_file=tmp_path / "slices")
    for number in range(3):
        slabs.add(number, (), probabilities[number])
        for place in range(7):
            plane = (slice(None), slice(None), slice(place, place + 1))
            slices.add(number, plane, probabilities[number][(slice(None), *plane)])
    for name in ("ballots", "points", "sums", "squares", "entropies"):
        torch.testing.assert_close(getattr(slices, name), getattr(slabs, name), atol=1e-6, rtol=0)
    np.testing.assert_array_equal(slices.voxels, slabs.voxels)
    for value in range(3):
        expected = (probabilities[:, value] * 255).round().to(torch.uint8).numpy().reshape(3, -1)
        for tally in (slabs, slices):
            np.testing.assert_array_equal(tally.stored_passes(value, 11, 140), expected[:, 11:140])


def test_slabs_add_up_to_the_whole():
    probabilities = torch.rand(4, 3, 9, 5, 6).softmax(1)
    needs = {"points", "squares", "entropies"}
    tally = VoteAccumulator(4, ClassLabelling(3), (9, 5, 6), needs, CPU)
    for first, last in ((4, 9), (0, 4)):
        for number in (2, 0, 3, 1):
            tally.add(number, (slice(first, last),), probabilities[number, :, first:last])
    assert torch.equal(tally.ballots.long(), count_ballots(probabilities))
    assert torch.equal(tally.points.long(), vote_rules.borda_points(probabilities))
    torch.testing.assert_close(tally.sums, probabilities.sum(0))
    torch.testing.assert_close(tally.squares, probabilities.square().sum(0))
    torch.testing.assert_close(tally.entropies, -(probabilities * probabilities.log()).sum((0, 1)))
    for number, labels in enumerate(probabilities.argmax(1)):
        np.testing.assert_array_equal(
            tally.voxels[number], np.bincount(labels.ravel().numpy(), minlength=3)
        )


def of_regions(probabilities):
    labelling = RegionLabelling(nested_regions(REGIONS, OWN))
    tally = VoteAccumulator(len(probabilities), labelling, SPACE, {"entropies"}, CPU)
    for number, planes in enumerate(probabilities):
        tally.add(number, (), planes)
    return tally


def test_regions_are_counted_as_the_labels_that_the_passes_would_write():
    probabilities = torch.rand(5, 3, *SPACE, generator=torch.Generator().manual_seed(0))
    tally = of_regions(probabilities)
    expected = np.zeros((5, 3, *SPACE), int)
    for number, *voxel in itertools.product(range(5), *map(range, SPACE)):
        label = 0
        for place, region_label in enumerate((2, 1, 3)):
            if probabilities[(number, place, *voxel)] > 0.5:
                label = region_label
        for place, values in enumerate(REGIONS.values()):
            expected[(number, place, *voxel)] = label in values
    np.testing.assert_array_equal(tally.ballots.numpy(), expected.sum(0))
    np.testing.assert_array_equal(tally.voxels, expected.sum((2, 3, 4)))
    np.testing.assert_allclose(
        tally.scores(vote_rules.VOTE_RULES["majority"], VoteOptions(union_index=0)),
        expected.mean(0),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        tally.scores(vote_rules.VOTE_RULES["mean"], VoteOptions(union_index=0)),
        probabilities.mean(0),
        atol=1e-6,
    )
    union = tally.scores(vote_rules.VOTE_RULES["union"], VoteOptions(union_index=1))
    np.testing.assert_array_equal(union[1], expected[:, 1].any(0))
    np.testing.assert_allclose(union[[0, 2]], expected.mean(0)[[0, 2]], atol=1e-6)


@pytest.mark.parametrize("rule", ["majority", "mean"])
def test_one_pass_over_regions_is_what_it_would_write_alone(rule):
    probabilities = torch.rand(1, 3, *SPACE, generator=torch.Generator().manual_seed(1))
    voted = decode_regions(
        of_regions(probabilities).scores(vote_rules.VOTE_RULES[rule], VoteOptions(union_index=0)),
        OWN,
    )
    np.testing.assert_array_equal(voted, decode_regions(probabilities[0], OWN))
    assert len(np.unique(voted)) == 4


def test_the_entropy_of_regions_is_the_mean_of_each_beside_its_complement():
    p = torch.rand(2, 3, *SPACE, generator=torch.Generator().manual_seed(2)).double()
    expected = -(p * p.log() + (1 - p) * (1 - p).log()).mean(1)
    tally = of_regions(p.float())
    torch.testing.assert_close(tally.labelling.entropy(p[0]), expected[0])
    torch.testing.assert_close(tally.entropies.double(), expected.sum(0), atol=1e-5, rtol=0)
    assert float(tally.labelling.entropy(torch.full((3, 1), 0.5))) == pytest.approx(np.log(2))


@pytest.mark.parametrize("passes", [255, 256, 300])
def test_as_many_votes_are_counted_as_there_are_passes(passes):
    accumulator = VoteAccumulator(passes, ClassLabelling(2), (1,), (), CPU)
    for number in range(passes):
        accumulator.add(number, (), torch.tensor([[0.2], [0.8]]))
    assert accumulator.ballots.tolist() == [[0], [passes]]
    assert accumulator.voxels[:, 1].tolist() == [1] * passes


@pytest.mark.parametrize(
    ("passes", "classes"), [(2**15 - 1, 2), (2**15, 2), (2**14, 3), (10**5, 4)]
)
def test_borda_points_of_all_passes_can_be_counted(passes, classes):
    accumulator = VoteAccumulator(passes, ClassLabelling(classes), (1,), {"points"}, CPU)
    assert torch.iinfo(accumulator.points.dtype).max >= passes * (classes - 1)
