"""What was seen is joined with what was seen before, and found among the test scans by subject or contents."""

from types import SimpleNamespace

import pytest

from selfvox.data.preparation.leakage import find_leaks, seen_scans
from selfvox.data.preparation.split import Split


def case(name, subject, contents):
    return SimpleNamespace(id=name, subject=subject, image_hash=contents)


CASES = [case("a1", "a", "x"), case("a2", "a", "y"), case("b1", "b", "z"), case("c1", "c", "x")]


def test_what_was_seen_is_sorted_and_joined_with_what_was_before():
    assert seen_scans(CASES[1:]) == {"subjects": ["a", "b", "c"], "image_hashes": ["x", "y", "z"]}
    before = {"subjects": ["d", "a"], "image_hashes": ["w"]}
    assert seen_scans(CASES[:1], before) == {"subjects": ["a", "d"], "image_hashes": ["w", "x"]}
    assert seen_scans(CASES[:1], {}) == {
        "subjects": ["a"],
        "image_hashes": ["x"],
    }  # kept by an older version


@pytest.mark.parametrize(
    ("subjects", "contents", "found"),
    [((), (), []), (("a",), (), ["a1", "a2"]), ((), ("x",), ["a1"]), (("b", "c"), ("y",), ["a2"])],
)
def test_a_test_scan_is_known_by_its_subject_or_its_contents_and_others_do_not_count(
    subjects, contents, found
):
    split = Split(train=("b", "c"), validation=(), test=("a",), seed=0)
    known = {"subjects": subjects, "image_hashes": contents}
    assert find_leaks(SimpleNamespace(cases=CASES), split, known) == (found, 2)
