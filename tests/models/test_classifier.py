"""Answers of a classifier: probabilities that agree with each other; a class for every image."""

import math

import pytest
import torch

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.classifier import Classifier, decide_class


def classifier(classes, ordinal, d=2):
    torch.manual_seed(0)
    return Classifier(
        build_encoder(plan_encoder({"channels": (4, 8)}, (16,) * d, (1.0,) * d), d, 1),
        classes,
        ordinal,
    )


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("ordinal", [True, False])
@pytest.mark.parametrize("d", [2, 3])
def test_training_starts_at_chance_with_every_class_possible(classes, ordinal, d):
    network = classifier(classes, ordinal, d)
    logits = network(torch.randn(6, 1, *(16,) * d))
    probabilities = network.probabilities(logits)
    assert probabilities.shape == (6, classes)
    assert probabilities.sum(1).tolist() == pytest.approx([1] * 6)
    assert (probabilities > 0.05).all()
    if not ordinal:
        answer = torch.arange(6) % classes
        assert network.loss(logits, answer).item() == pytest.approx(math.log(classes), rel=0.05)


@pytest.mark.parametrize("counts", [(3, 1), (133, 18, 133, 73, 48), (0, 9, 0)])
@pytest.mark.parametrize("ordinal", [True, False])
def test_a_fresh_head_can_answer_with_the_shares_of_the_classes(counts, ordinal):
    network = classifier(len(counts), ordinal)
    network.start_at(counts)
    with torch.no_grad():
        actual = network.probabilities(network.classify(torch.zeros(1, 8)))[0]
    assert actual.tolist() == pytest.approx(
        [(n + 1) / (sum(counts) + len(counts)) for n in counts], rel=0.01
    )


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_grades_are_cumulative_whatever_the_weights(classes):
    network = classifier(classes, ordinal=True)
    for seed in range(20):
        torch.manual_seed(seed)
        for parameter in network.head.parameters():
            torch.nn.init.normal_(parameter, std=3)
        torch.nn.init.normal_(network.steps, std=3)
        logits = network.classify(torch.randn(50, 8) * 5)
        assert logits.shape == (50, classes - 1)
        assert (logits.diff(dim=1) <= 0).all()  # "at least 2" is never likelier than "at least 1"
        probabilities = network.probabilities(logits)
        assert (probabilities >= 0).all()
        assert probabilities.sum(1).tolist() == pytest.approx([1] * 50, abs=1e-5)


def test_the_ordinal_loss_is_that_of_a_naive_loop():
    network, logits = classifier(4, ordinal=True), torch.randn(7, 3)
    answer = torch.tensor([0, 1, 2, 3, 3, 0, 1])
    total = 0.0
    for row, grade in zip(logits.tolist(), answer.tolist(), strict=True):
        for threshold, logit in enumerate(row, start=1):
            at_least = 1 / (1 + math.exp(-logit))
            total -= math.log(at_least if grade >= threshold else 1 - at_least)
    assert float(network.loss(logits, answer)) == pytest.approx(total / 21, rel=1e-5)


def test_no_image_is_left_without_a_class_where_no_cumulative_output_is_above_even_odds():
    # the papers' code counted outputs above .5, less one, and dropped the images that gave -1
    network = classifier(5, ordinal=True)
    logits = torch.tensor([[-9.0, -10, -11, -12], [9.0, 8, 7, 6], [1.0, 0.5, -0.5, -1]])
    assert decide_class(network.probabilities(logits), True).tolist() == [0, 4, 2]
    every = decide_class(torch.rand(1000, 5).softmax(1), True)
    assert len(every) == 1000
    assert 0 <= int(every.min()) <= int(every.max()) <= 4


def test_the_ordinal_decision_is_the_median_of_the_probabilities():
    probabilities = (torch.randn(500, 5) * 2).softmax(1)
    for row, actual in zip(
        probabilities.tolist(), decide_class(probabilities, True).tolist(), strict=True
    ):
        at_least = [sum(row[k:]) for k in range(5)]
        assert actual == max(k for k in range(5) if k == 0 or at_least[k] >= 0.5)
    assert torch.equal(decide_class(probabilities, False), probabilities.argmax(1))
