"""The printed tables of a study: which columns they have, and how wide they are."""

import pytest

from selfvox.studies.print_tables import print_comparison

ROW = {
    "method": "masked",
    "labels": 3,
    "cost_ratio": 2.23,
    "difference": 0.013,
    "low": 0.005,
    "high": 0.020,
    "low_simultaneous": 0.005,
    "high_simultaneous": 0.020,
    "low_familywise": 0.003,
    "high_familywise": 0.022,
    "difference_median": 0.013,
    "wins": 5,
    "twins": 5,
    "labels_saved": "more than +3",
    "labels_saved_low": None,
    "labels_saved_high": None,
}


def printed(rows, capsys):
    print_comparison("Minus scratch", rows)
    return capsys.readouterr().out


def test_a_comparison_names_each_difference_with_its_intervals(capsys):
    (row,) = [line for line in printed([ROW], capsys).splitlines() if "masked" in line]
    assert row.split("  ")[1:2] == ["masked"]
    for text in ("x 2.23", "+0.013", "+0.005 ... +0.020", "+0.003 ... +0.022", "5 of 5", "less"):
        assert text in row


@pytest.mark.parametrize(
    ("changes", "is_shown"),
    [
        ([{}], False),  # a single number of labels: the same as the interval of the row
        ([{}, {"labels": 5, "low_simultaneous": 0.001}], True),
        ([{"low": None, "high": None, "low_simultaneous": None, "high_simultaneous": None}], False),
    ],
)
def test_an_interval_that_says_nothing_more_is_not_printed(changes, is_shown, capsys):
    text = printed([ROW | change for change in changes], capsys)
    assert ("95 %, all labels" in text) == is_shown
    assert "95 %" in text


def test_rows_are_in_the_order_of_their_labels_and_fit_a_wide_terminal(capsys):
    rows = [ROW | {"labels": count, "low_simultaneous": 0.001 * count} for count in (10, 3, 5)]
    lines = printed(rows, capsys).splitlines()
    assert [line.split()[1] for line in lines if "masked" in line] == ["3", "5", "10"]
    assert max(map(len, lines)) <= 160


def test_without_rows_nothing_is_printed(capsys):
    assert printed([], capsys) == ""
