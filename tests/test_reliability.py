"""The page of faults is made of what tests inject, and of nothing else."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"


def load_script():
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "docs" / "reliability.py")
    module = importlib.util.module_from_spec(spec)
    # its dataclasses look for it
    sys.modules["reliability"] = module
    spec.loader.exec_module(module)
    return module


def marks() -> list[list[str]]:
    """Rows, injected and right of every mark in the tests."""
    nodes = [
        node
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault"
    ]
    return [[ast.literal_eval(argument) for argument in node.args] for node in nodes]


def test_every_row_is_tried_by_a_test_or_named_as_not_tried():
    script = load_script()
    tried = {row for rows, _, _ in marks() for row in script.expand_rows(rows)}
    assert script.missing_rows(tried) == []
    assert tried & set(script.NOT_TRIED) == set()


def test_every_line_of_the_page_is_that_of_a_test_or_of_a_row_that_no_test_tries():
    script = load_script()
    text = PAGE.read_text(encoding="utf-8")
    lines = re.findall(r"^\| (?!row|-)(.*?) \| (.*?) \| (.*?) ?\| (.*) \|$", text, re.MULTILINE)
    assert len(lines) > 200
    known = {(injected, right) for _, injected, right in marks()}
    for row, injected, right, happened in lines:
        if right:
            assert (injected, right) in known, row
        else:
            assert row in script.NOT_TRIED
            assert happened == f"not run: {script.NOT_TRIED[row][1]}"


def test_every_mark_of_a_test_is_on_the_page():
    script = load_script()
    on_page = script.outcomes_of(PAGE.read_text(encoding="utf-8"))
    cells = [(script._cell(injected), script._cell(right)) for _, injected, right in marks()]
    missing = sorted(set(cells) - set(on_page))
    assert missing == [], "run: python docs/reliability.py --new"


def test_the_page_is_read_back_as_it_was_written():
    script = load_script()
    rows = tuple(script.required_rows())
    outcomes = ({"passed": 1}, {"passed": 2, "failed": 1}, {"passed": 6, "skipped": 1})
    faults = [
        script.Fault(rows, f"{number} a|b", "refused", "", Counter(counts), "no data")
        for number, counts in enumerate(outcomes)
    ]
    text = script.page(faults)
    read = script.outcomes_of(text)
    for fault in faults:
        fault.earlier = read[script._cell(fault.injected), "refused"]
        assert fault.variants == fault.outcomes.total()
        fault.outcomes.clear()
    again = script.page(faults)
    assert "0 of these faults were run on that day" in again
    assert again.partition("##")[2] == text.partition("##")[2]


def test_what_failed_or_was_skipped_is_not_said_to_have_held():
    script = load_script()

    def happened(**outcomes):
        counts = Counter(outcomes)
        return script.Fault(("F1",), "", "", "", counts, "no data").happened

    assert happened(passed=1) == "held"
    assert happened(passed=3) == "held, 3 variants"
    assert happened(passed=3, failed=1) == "**failed**, 1 of 4"
    assert happened(skipped=2) == "not run: no data"
    assert happened(passed=1, skipped=1) == "held, 2 variants, 1 not run: no data"


def test_what_fails_is_run_once_more_and_this_is_said():
    script = load_script()
    runs = []
    for outcomes in ({"a[1]": "failed", "a[2]": "failed", "b": "passed"}, {"a[1]": "passed"}):
        recorder = script.Recorder()
        for name in ("a", "b"):
            recorder.faults[name] = script.Fault(("F1",), "", "", name)
        for nodeid, outcome in outcomes.items():
            report = SimpleNamespace(
                nodeid=nodeid,
                when="call",
                outcome=outcome,
                passed=outcome == "passed",
                failed=outcome == "failed",
                skipped=False,
            )
            recorder.pytest_runtest_logreport(report)
        runs.append(recorder)
    first, second = runs
    assert first.failed() == ["a[1]", "a[2]"]
    first.repeat(second)
    # a[2] was not run once more
    assert first.faults["a"].happened == "**failed**, 1 of 2"
    first._failed = {"a[2]"}
    second._passed = {"a[2]"}
    first.repeat(second)
    assert first.faults["a"].happened == "held, 2 variants, 2 at the second attempt"
    assert first.faults["b"].happened == "held"


def test_rows_are_written_as_runs_and_read_back():
    script = load_script()
    assert script.expand_rows("F1 N3-N5 X1b K-man") == ("F1", "N3", "N4", "N5", "X1b", "K-man")
    assert script._as_runs(["N3", "N4", "N5", "N8", "N9"]) == "N3-N5, N8, N9"
