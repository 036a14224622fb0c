"""Scans seen in training are found among the test scans by subject or contents."""

from types import SimpleNamespace

import pytest

from selfvox.data.preparation.leakage import find_leaks, seen_scans
from selfvox.data.preparation.split import Split


def case(name, subject, contents):
    return SimpleNamespace(id=name, subject=subject, image_hash=contents)


CASES = [case("a1", "a", "x"), case("a2", "a", "y"), case("b1", "b", "z"), case("c1", "c", "x")]


def test_seen_scans_are_sorted_and_joined_with_those_seen_earlier():
    assert seen_scans(CASES[1:]) == {"subjects": ["a", "b", "c"], "image_hashes": ["x", "y", "z"]}
    earlier = {"subjects": ["d", "a"], "image_hashes": ["w"]}
    assert seen_scans(CASES[:1], earlier) == {"subjects": ["a", "d"], "image_hashes": ["w", "x"]}
    # a card of an older version
    assert seen_scans(CASES[:1], {}) == {"subjects": ["a"], "image_hashes": ["x"]}


@pytest.mark.parametrize(
    ("subjects", "contents", "leaks"),
    [((), (), []), (("a",), (), ["a1", "a2"]), ((), ("x",), ["a1"]), (("b", "c"), ("y",), ["a2"])],
)
def test_leaks_are_test_scans_with_a_subject_or_contents_seen_in_training(
    subjects, contents, leaks
):
    split = Split(train=("b", "c"), validation=(), test=("a",), seed=0)
    training = {"subjects": subjects, "image_hashes": contents}
    assert find_leaks(SimpleNamespace(cases=CASES), split, training) == (leaks, 2)
