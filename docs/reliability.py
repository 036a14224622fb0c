"""Run the tests that inject faults, and write what happened: `python docs/reliability.py`.

A test names its fault by `@pytest.mark.fault(rows, injected, right)`. The page has a line for each
of them, with its outcome here and now, and names the rows that no test tries.

`python docs/reliability.py --new` runs only faults that the page does not have, in seconds; the
others keep their outcomes, and lines without a test go.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

# before torch is imported, as in tests/conftest.py: a run that goes on with other threads is not
# bit-identical
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import selfvox

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"

OPTIONS = ("-m", "fault", "-p", "no:cacheprovider", "-n", "0")

# heading, first letters of the rows, and the numbers of the rows that have to be there
SECTIONS = (
    ("Processes, signals, disks", "F", 34),
    ("Environments and file systems", "E", 0),
    ("NIfTI, NRRD, MetaImage", "N", 40),
    ("DICOM", "D", 21),
    ("Pictures", "P", 9),
    ("Tables, lists, settings", "C", 16),
    ("Checkpoints, cards, manifests", "K", 7),
    ("Security and privacy", "X", 20),
    ("Several processes that train together", "G", 0),
    ("Files as people have them", "H", 14),
)

# rows that no test tries: what would have to be injected, and why it is not
NOT_TRIED: dict[str, tuple[str, str]] = {}


@dataclass
class Fault:
    """A fault and what its test made of it."""

    rows: tuple[str, ...]
    injected: str
    right: str
    test: str
    outcomes: Counter[str] = field(default_factory=Counter)
    reason: str = ""  # why it was not run
    again: int = 0  # variants that failed, and held when they were run once more
    earlier: str = ""  # what the page says, if it was not run now

    @property
    def variants(self) -> int:
        """How many were run."""
        if not self.earlier:
            return sum(self.outcomes.values())
        number = re.search(r"(\d+) variants|of (\d+)", self.earlier)
        return int(number[1] or number[2]) if number else 1

    @property
    def happened(self) -> str:
        """The outcome in words."""
        if self.earlier:
            return self.earlier
        total = sum(self.outcomes.values())
        times = f", {total} variants" if total > 1 else ""
        if self.again:
            times += f", {self.again} at the second attempt"
        if self.outcomes["failed"]:
            return f"**failed**, {self.outcomes['failed']} of {total}"
        if self.outcomes["skipped"] == total:
            return f"not run: {self.reason}"
        if self.outcomes["skipped"]:
            return f"held{times}, {self.outcomes['skipped']} not run: {self.reason}"
        return f"held{times}"


class Recorder:
    """A plugin of pytest that notes the outcome of every test with a fault."""

    def __init__(self) -> None:
        self.faults: dict[str, Fault] = {}
        self._failed: set[str] = set()
        self._passed: set[str] = set()

    def failed(self) -> list[str]:
        """The tests that failed, each with its variant."""
        return sorted(self._failed)

    def repeat(self, other: Recorder) -> None:
        """Take over what a second run made of the tests that failed here."""
        held = self._failed & (other._passed - other._failed)
        for nodeid in held:
            fault = self.faults[_place(nodeid)]
            fault.outcomes["failed"] -= 1
            fault.outcomes["passed"] += 1
            fault.again += 1

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note the marks."""
        for item in items:
            for mark in item.iter_markers("fault"):
                rows, injected, right = mark.args
                fault = Fault(expand_rows(rows), injected, right, item.name.partition("[")[0])
                self.faults.setdefault(_place(item.nodeid), fault)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note an outcome; a failure before or after the test counts too."""
        fault = self.faults.get(_place(report.nodeid))
        if fault is None or (report.when != "call" and report.passed):
            return
        # a test may fail and its fixtures too
        if report.failed and report.nodeid in self._failed:
            return
        if report.failed:
            self._failed.add(report.nodeid)
        elif report.passed:
            self._passed.add(report.nodeid)
        fault.outcomes[report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            fault.reason = report.longrepr[2].removeprefix("Skipped: ")


def expand_rows(text: str) -> tuple[str, ...]:
    """`F1 N3-N5 X1b` as F1, N3, N4, N5, X1b."""
    rows: list[str] = []
    for word in text.split():
        run = re.fullmatch(r"([A-Z])(\d+)-\1(\d+)", word)
        if run is None:
            rows.append(word)
        else:
            rows += [f"{run[1]}{number}" for number in range(int(run[2]), int(run[3]) + 1)]
    return tuple(rows)


def required_rows() -> list[str]:
    """The rows of the whole matrix that must be on the page."""
    return [f"{letter}{number}" for _, letter, count in SECTIONS for number in range(1, count + 1)]


def missing_rows(tried: set[str]) -> list[str]:
    """Rows that are neither tried nor named as not tried."""
    return [row for row in required_rows() if row not in tried and row not in NOT_TRIED]


def page(faults: list[Fault]) -> str:
    """The whole page."""
    tried = {row for fault in faults for row in fault.rows}
    counts = Counter(fault.happened.partition(",")[0].partition(":")[0] for fault in faults)
    variants = sum(fault.variants for fault in faults)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    lines = [
        "# Reliability",
        "",
        "What was broken on purpose, and what happened. Written by `make reliability`, which runs",
        "the tests that inject the faults; a line is here only if its test is.",
        "",
        f"**{today}**, selfvox {selfvox.__version__}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {platform.system()} on {os.cpu_count()} cores: {len(faults)} faults",
        f"in {variants} variants; {counts['held']} held, {counts['**failed**']} failed, "
        f"{counts['not run']} not run. {len(NOT_TRIED)} more are named without a test.",
        "",
        *_which_ran(faults),
        "A row may have several lines. H1 to H14 are habits of data sets rather than damage.",
    ]
    for heading, letter, _ in SECTIONS:
        lines += ["", f"## {heading}", "", "| row | injected | right | what happened |"]
        lines += ["|---|---|---|---|"]
        lines += _section(faults, letter)
    assert not missing_rows(tried), f"no test and no reason: {missing_rows(tried)}"
    return "\n".join(lines) + "\n"


def _which_ran(faults: list[Fault]) -> list[str]:
    """A sentence if some outcomes are of an earlier day."""
    now = sum(not fault.earlier for fault in faults)
    if now == len(faults):
        return []
    return [f"{now} of these faults were run on that day, the others on an earlier one.", ""]


def outcomes_of(text: str) -> dict[tuple[str, str], str]:
    """What a page says to have happened, by what was injected and what is right."""
    lines = re.findall(r"^\| (?!row|-).*? \| (.*?) \| (.*?) ?\| (.*) \|$", text, re.MULTILINE)
    return {(injected, right): happened for injected, right, happened in lines if right}


def _section(faults: list[Fault], letter: str) -> list[str]:
    """The lines of a section, in the order of their rows."""
    lines: dict[tuple[int, str], list[str]] = defaultdict(list)
    for fault in faults:
        rows = [row for row in fault.rows if row.startswith(letter)]
        if rows:
            cells = (_as_runs(rows), fault.injected, fault.right, fault.happened)
            lines[_order(rows[0])].append(_line(cells))
    for row, (injected, reason) in NOT_TRIED.items():
        if row.startswith(letter):
            lines[_order(row)].append(_line((row, injected, "", f"not run: {reason}")))
    return [line for key in sorted(lines) for line in lines[key]]


def _as_runs(rows: list[str]) -> str:
    """N3, N4, N5, N9 as `N3-N5, N9`."""
    texts: list[list[str]] = []
    for row in rows:
        number = re.fullmatch(r"[A-Z](\d+)", row)
        last = texts and re.fullmatch(r"[A-Z](\d+)", texts[-1][-1])
        if number and last and int(number[1]) == int(last[1]) + 1:
            texts[-1].append(row)
        else:
            texts.append([row])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(run) for run in texts)


def _order(row: str) -> tuple[int, str]:
    number = re.search(r"\d+", row)
    return (int(number[0]) if number else 0, row)


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _place(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def _run(places: list[str]) -> list[Fault]:
    """Run tests with a fault, all of them if no place is named; what fails is run once more."""
    recorder = Recorder()
    pytest.main([*OPTIONS, *places], [recorder])
    if recorder.failed():
        # a busy computer is late, which tests of signals and of signs of life may take for death
        second = Recorder()
        pytest.main([*OPTIONS, *recorder.failed()], [second])
        recorder.repeat(second)
    return list(recorder.faults.values())


def _run_new() -> list[Fault]:
    """All faults; those that the page has are not run again."""
    earlier = outcomes_of(PAGE.read_text(encoding="utf-8"))
    recorder = Recorder()
    pytest.main([*OPTIONS, "--collect-only", "-q"], [recorder])
    new = []
    kept = []
    for place, fault in recorder.faults.items():
        fault.earlier = earlier.get((_cell(fault.injected), _cell(fault.right)), "")
        if fault.earlier and not fault.earlier.startswith("**failed**"):
            kept.append(fault)
        else:
            new.append(place)
    return [*kept, *(_run(new) if new else [])]


def main() -> int:
    """Run the tests and write the page; 1 if a fault did not end as it should."""
    os.chdir(ROOT)
    # as `python -m pytest` does: processes that a test starts import the test
    sys.path.insert(0, str(ROOT))
    arguments = sys.argv[1:]
    faults = _run_new() if arguments == ["--new"] else _run(arguments)
    PAGE.write_text(page(faults), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return int(any(fault.happened.startswith("**failed**") for fault in faults))


if __name__ == "__main__":
    sys.exit(main())
