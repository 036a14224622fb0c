"""Each vote against loops over passes, classes and voxels, and what no vote may depend on."""

import numpy as np
import pytest
import torch

from selfvox.uncertainty import vote_rules

PASSES, CLASSES, SPACE = 7, 4, (3, 2, 5)


def drawn(seed, passes=PASSES):
    """Probabilities (pass, class, *space) with many ties in them."""
    parts = np.random.default_rng(seed).integers(1, 4, (passes, CLASSES, *SPACE)).astype(np.float32)
    return torch.from_numpy(parts / 16)


def naive(rule, probabilities, weights=(1, 2, 2, 3), of=2):
    label = np.zeros(SPACE, int)
    for voxel in np.ndindex(SPACE):
        columns = [[float(one[(c, *voxel)]) for c in range(CLASSES)] for one in probabilities]
        voted = [max(range(CLASSES), key=lambda c: (column[c], -c)) for column in columns]
        score = [0.0] * CLASSES
        for column, vote in zip(columns, voted, strict=True):
            if rule == "borda":
                for points, c in enumerate(sorted(range(CLASSES), key=lambda c: (column[c], -c))):
                    score[c] += points
            elif rule == "mean":
                score = [a + b for a, b in zip(score, column, strict=True)]
            else:
                score[vote] += weights[vote] if rule == "weighted" else 1
        best = max(range(CLASSES), key=lambda c: (score[c], -c))
        label[voxel] = of if rule == "union" and of in voted else best
    return label


def decide(rule, probabilities):
    ballots = vote_rules.count_ballots(probabilities)
    scores = {
        "majority": lambda: vote_rules.majority(ballots),
        "weighted": lambda: vote_rules.weighted(ballots, (1, 2, 2, 3)),
        "borda": lambda: vote_rules.borda_points(probabilities),
        "union": lambda: vote_rules.union(ballots, 2),
        "mean": lambda: probabilities.sum(0),
    }[rule]()
    return vote_rules.winner(scores).numpy()


RULES = pytest.mark.parametrize("rule", ["majority", "weighted", "borda", "union", "mean"])


@RULES
@pytest.mark.parametrize("seed", range(3))
def test_a_vote_is_that_of_loops(rule, seed):
    probabilities = drawn(seed)
    np.testing.assert_array_equal(decide(rule, probabilities), naive(rule, probabilities))


@RULES
def test_the_order_of_passes_does_not_matter(rule):
    probabilities = drawn(1)
    np.testing.assert_array_equal(decide(rule, probabilities.flip(0)), decide(rule, probabilities))


@pytest.mark.parametrize("rule", ["majority", "borda", "union", "mean"])
@pytest.mark.parametrize("passes", [1, 5])
def test_passes_that_agree_get_what_they_say(rule, passes):
    one = drawn(2, 1)
    np.testing.assert_array_equal(
        decide(rule, one.expand(passes, *one.shape[1:])), one[0].argmax(0).numpy()
    )


def test_an_equal_number_of_votes_goes_to_the_lower_class():
    probabilities = torch.tensor([[0.1, 0.2, 0.7], [0.1, 0.7, 0.2]])[..., None]
    assert decide_three(vote_rules.majority(vote_rules.count_ballots(probabilities))) == 1
    assert decide_three(vote_rules.borda_points(probabilities)) == 1
    assert decide_three(vote_rules.union(vote_rules.count_ballots(probabilities), 2)) == 2


def decide_three(scores):
    return int(vote_rules.winner(scores)[0])


def test_union_leaves_as_many_votes_as_there_were():
    ballots = vote_rules.count_ballots(drawn(3))
    assert (vote_rules.union(ballots, 1).sum(0) == PASSES).all()
