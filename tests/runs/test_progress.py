"""Progress lines count items, estimate the time left and come only every few seconds."""

import pytest

from selfvox.runs import progress
from selfvox.runs.log_file import log_to


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self):
        self.seconds = 100.0

    def monotonic(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.fault(
    "F28",
    "a clock without time of day",
    "times left follow from the monotonic clock alone",
)
def test_a_line_is_printed_every_ten_seconds_and_at_the_end(clock, capsys):
    with progress.progress_bar("training", total=40) as bar:
        for _ in range(40):
            clock.seconds += 1
            bar.advance("loss 1.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training  10/40  loss 1.5  30 s left",
        "training  20/40  loss 1.5  20 s left",
        "training  30/40  loss 1.5  10 s left",
        "training  40/40  loss 1.5  0 s left",
    ]


def test_items_of_an_earlier_run_do_not_count_for_the_speed(clock, capsys):
    with progress.progress_bar("training", total=100, start=90) as bar:
        clock.seconds += 20
        bar.advance(count=5)
    assert capsys.readouterr().err == "training  95/100  20 s left\n"


def test_progress_within_an_item_counts_for_the_time_left(clock, capsys):
    with progress.progress_bar("predict", total=2) as bar:
        clock.seconds += 9
        bar.show(0.1, "ct_1")
        clock.seconds += 3
        bar.show(0.25, "ct_1")
        clock.seconds += 30
        bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "predict  0/2  25 % of ct_1  1:24 min left",
        "predict  1/2  42 s left",
    ]


def test_redirected_output_is_appended_to_the_log(tmp_path, capsys):
    (tmp_path / "log.txt").write_text("before\n")
    with progress.redirect_output(tmp_path / "log.txt"):
        progress.echo("meanwhile [1/2]")
    progress.echo("after")
    assert (tmp_path / "log.txt").read_text() == "before\nmeanwhile [1/2]\n"
    assert capsys.readouterr().err == "after\n"


def test_what_is_redirected_is_in_no_other_log(tmp_path):
    log = tmp_path / "log.txt"
    with progress.redirect_output(log), log_to(log):
        progress.echo("once")
    assert log.read_text() == "once\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (185, "3:05 min"),
        (3600, "1:00 h"),
        (7800, "2:10 h"),
    ],
)
def test_seconds_are_written_as_people_write_them(seconds, text):
    assert progress.format_seconds(seconds) == text
