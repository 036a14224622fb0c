"""Signals end the work in order, with the exit code that a shell expects."""

import signal

import pytest

from selfvox import cli
from selfvox.runs import progress
from selfvox.runs.stop_signals import STOP_SIGNALS, StopRequest, handle_stop_signals, request_stop
from selfvox.training.stop_after_step import StopSignals


@pytest.mark.fault("F3 F6", "each stop signal before the first step", "exit code 128 + number")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_verb_ends_on_a_signal_with_its_exit_code(monkeypatch, capsys, number):
    cleaned = []

    def verb(settings):
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(number)

    monkeypatch.setattr(cli, "run_verb", verb)
    before = signal.getsignal(number)
    assert cli.main(["prepare", "scans", "--out", "out"]) == 128 + number
    assert cleaned == [number]
    assert signal.getsignal(number) == before
    assert f"stopped by {signal.Signals(number).name}" in capsys.readouterr().err


def test_a_closed_terminal_does_not_end_what_nohup_started():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handle_stop_signals(request_stop), StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.number == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handler_of_the_inner_work_is_the_one_that_counts():
    with handle_stop_signals(request_stop):
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(StopRequest):
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_repeats_is_reported_once(capsys):
    with StopSignals():
        for _ in range(3):
            signal.raise_signal(signal.SIGXCPU)
    assert capsys.readouterr().err.count("finishing this step") == 1


class ClosedTerminal:
    """What a program writes to after its terminal was closed."""

    encoding = "utf-8"

    def isatty(self):
        return False

    def write(self, text=""):
        raise OSError(5, "Input/output error")

    flush = write


@pytest.mark.fault("F3", "a terminal that is gone", "output that fails ends nothing")
def test_work_goes_on_when_its_terminal_is_closed(monkeypatch):
    monkeypatch.setattr("sys.stderr", ClosedTerminal())
    progress.echo("a line")
    with progress.progress_bar("work", 2) as bar:
        bar.advance()
        bar.advance()
    monkeypatch.setattr(cli, "run_verb", lambda settings: signal.raise_signal(signal.SIGHUP))
    assert cli.main(["prepare", "scans", "--out", "out"]) == 129
