"""Each vote rule equals loops over passes, classes and voxels."""

import typing

import numpy as np
import pytest
import torch

from selfvox.settings import verbs
from selfvox.uncertainty import maps, vote_rules
from selfvox.uncertainty.vote_rules import VOTE_RULES, VoteOptions, VoteTotals

PASSES = 7
CLASSES = 4
SPACE = (3, 2, 5)
WEIGHTS = (1, 2, 2, 3)
UNION = 2


def draw_passes(seed, passes=PASSES):
    """Probabilities (pass, class, *space) with many ties in them."""
    parts = np.random.default_rng(seed).integers(1, 4, (passes, CLASSES, *SPACE)).astype(np.float32)
    return torch.from_numpy(parts / 16)


def count_ballots(probabilities):
    """(pass, class, *space) -> (class, *space) int64: passes with each class most probable."""
    votes = probabilities.argmax(1)
    return torch.stack([(votes == number).sum(0) for number in range(probabilities.shape[1])])


def decide_in_loops(rule, probabilities):
    """The vote, voxel by voxel, from its definition."""
    label = np.zeros(SPACE, int)
    for voxel in np.ndindex(SPACE):
        columns = [[float(scores[(c, *voxel)]) for c in range(CLASSES)] for scores in probabilities]
        voted = [max(range(CLASSES), key=lambda c: (column[c], -c)) for column in columns]
        score = [0.0] * CLASSES
        for column, vote in zip(columns, voted, strict=True):
            if rule == "borda":
                for points, c in enumerate(sorted(range(CLASSES), key=lambda c: (column[c], -c))):
                    score[c] += points
            elif rule == "mean":
                score = [a + b for a, b in zip(score, column, strict=True)]
            else:
                score[vote] += WEIGHTS[vote] if rule == "weighted" else 1
        best = max(range(CLASSES), key=lambda c: (score[c], -c))
        label[voxel] = UNION if rule == "union" and UNION in voted else best
    return label


def decide(rule, probabilities):
    """The vote by the table of rules."""
    totals = VoteTotals(
        count_ballots(probabilities),
        probabilities.sum(0),
        vote_rules.borda_points(probabilities),
        len(probabilities),
    )
    scores = VOTE_RULES[rule].score(totals, VoteOptions(WEIGHTS, UNION))
    return vote_rules.winner(scores).numpy()


every_rule = pytest.mark.parametrize("rule", VOTE_RULES)


@every_rule
@pytest.mark.parametrize("seed", range(3))
def test_a_vote_equals_that_of_loops(rule, seed):
    probabilities = draw_passes(seed)
    np.testing.assert_array_equal(decide(rule, probabilities), decide_in_loops(rule, probabilities))


@every_rule
def test_the_order_of_passes_does_not_matter(rule):
    probabilities = draw_passes(1)
    np.testing.assert_array_equal(decide(rule, probabilities.flip(0)), decide(rule, probabilities))


@pytest.mark.parametrize("rule", [rule for rule in VOTE_RULES if rule != "weighted"])
@pytest.mark.parametrize("passes", [1, 5])
def test_passes_that_agree_win(rule, passes):
    single = draw_passes(2, 1)
    repeated = single.expand(passes, *single.shape[1:])
    np.testing.assert_array_equal(decide(rule, repeated), single[0].argmax(0).numpy())


def test_an_equal_number_of_votes_goes_to_the_lower_class():
    probabilities = torch.tensor([[0.1, 0.2, 0.7], [0.1, 0.7, 0.2]])[..., None]
    ballots = count_ballots(probabilities)
    assert int(vote_rules.winner(ballots)[0]) == 1
    assert int(vote_rules.winner(vote_rules.borda_points(probabilities))[0]) == 1
    assert int(vote_rules.winner(vote_rules.union(ballots, 2))[0]) == 2


def test_union_leaves_as_many_votes_as_there_were():
    ballots = count_ballots(draw_passes(3))
    assert (vote_rules.union(ballots, 1).sum(0) == PASSES).all()


def test_the_settings_offer_exactly_the_votes_and_maps_of_the_tables():
    hints = typing.get_type_hints(verbs.Predict)
    assert typing.get_args(hints["vote"]) == tuple(VOTE_RULES)
    assert tuple(maps.MAPS) == verbs.MAPS


def test_a_vote_that_needs_a_setting_names_one_of_the_verb():
    needed = {rule.setting for rule in VOTE_RULES.values()} - {None}
    assert needed == {"vote_weights", "union_class"}
    assert needed <= set(verbs.Predict.__dataclass_fields__)
