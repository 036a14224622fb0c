"""How often the fuzz tests try, and what they count.

`make test` tries each reader a few times, always in the same way; `make fuzz` for as long as one
likes, with another seed each time. What was read and what was refused is counted at the end.
"""

import collections
import os
import signal

import hypothesis
import pytest

COUNTS = collections.Counter()  # by reader and result

COMMON = {
    "deadline": None,  # no timed tests
    "database": None,  # a failure is repeated by its seed, which pytest prints
    "suppress_health_check": list(hypothesis.HealthCheck),
}
hypothesis.settings.register_profile("short", max_examples=25, derandomize=True, **COMMON)
hypothesis.settings.register_profile(
    "long", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "1000")), **COMMON
)
hypothesis.settings.load_profile("long" if "FUZZ_EXAMPLES" in os.environ else "short")


if "FUZZ_EXAMPLES" in os.environ:
    # to end a long run early, with its counts; a shell lets jobs in the background ignore SIGINT
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


@pytest.fixture(scope="session")
def count():
    """A function that counts a result of a reader."""

    def add(reader, result):
        COUNTS[f"{reader}: {result}"] += 1

    return add


def pytest_terminal_summary(terminalreporter):
    """Print what was read and what was refused, for `make fuzz`."""
    if "FUZZ_EXAMPLES" in os.environ:
        terminalreporter.section(f"{sum(COUNTS.values())} damaged files")
        for name, number in sorted(COUNTS.items()):
            terminalreporter.line(f"{number:6d} {name}")
