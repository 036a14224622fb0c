"""Break the code on purpose and see whether the tests notice: the mutations of docs/mutations.md.

    python experiments/mutations.py --jobs 2
    python experiments/mutations.py --only ops/losses

Each entry of `mutation_list.py` replaces one text of a source file, in a copy, and runs the closest
tests. It is `caught` where one of them fails (or does not end in time), else it `SURVIVED`; it is
`stale` where its text does not occur exactly once, or where its tests cannot be run. `--unchanged`
looks for every text, and runs all these tests on the code as it is, where each has to pass.

Heavy libraries are imported once, and every mutation is tested in a fork of that process; selfvox
itself is imported anew in each fork.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import importlib.util
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mutation_list import EARLIER, NEW, SURVIVED_EARLIER, Mutation

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "mutations.md"
SECONDS = 300  # that the tests of one mutation may take
UNCHANGED_SECONDS = 3600  # that the tests of all of them may take
HEAVY = (
    "matplotlib.figure",
    "monai.inferers",
    "monai.metrics",
    "numba",
    "pydantic",
    "pytest",
    "safetensors.torch",
    "scipy.ndimage",
    "SimpleITK",
    "sklearn.linear_model",
    "sklearn.neighbors",
    "torch",
    "torch.fx",
    "torch.utils.data",
    "lightning_fabric",
    "dynamic_network_architectures.building_blocks.unet_decoder",
)
TESTS_FAILED = 1  # of pytest's exit codes
FORK = multiprocessing.get_context("fork")


class Verdict(NamedTuple):
    """What became of a mutation."""

    result: str  # caught, SURVIVED or stale
    reason: str  # the test that failed, or why it is stale
    seconds: float


class Workshop:
    """A copy of the code and its tests, to be broken."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("docs", "src", "tests"):  # a test reads the plans in the docs
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
            shutil.copy(ROOT / name, folder / name)

    def judge(self, mutation: Mutation) -> Verdict:
        """Apply a mutation, run its tests, and restore the file."""
        reason = self.why_stale(mutation)
        if reason:
            return Verdict("stale", reason, 0.0)
        file = self._file_of(mutation)
        original = file.read_text(encoding="utf-8")
        began = time.monotonic()
        try:
            self._write(file, original.replace(mutation.old, mutation.new))
            exit_code = self.run(["-x", *(f"tests/{test}" for test in mutation.tests.split())])
        finally:
            self._write(file, original)
        seconds = time.monotonic() - began
        if exit_code is None:
            return Verdict("caught", f"no end within {SECONDS} s", seconds)
        if exit_code == 0:
            return Verdict("SURVIVED", "", seconds)
        failure = self._first_failure()  # none where pytest itself broke, also with this exit code
        if exit_code == TESTS_FAILED and failure:
            return Verdict("caught", failure, seconds)
        return Verdict("stale", f"pytest ended with {exit_code}", seconds)

    def why_stale(self, mutation: Mutation) -> str:
        """Why a mutation does not fit the code; empty where it does."""
        file = self._file_of(mutation)
        count = file.read_text(encoding="utf-8").count(mutation.old) if file.exists() else 0
        return "" if count == 1 else f"its text occurs {count} times"

    def run(self, arguments: list[str], seconds: float = SECONDS) -> int | None:
        """Run pytest in a fork; its exit code, None where it did not end in time."""
        process = FORK.Process(target=self._run_pytest, args=(arguments,))
        process.start()
        process.join(seconds)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return None
        return process.exitcode

    def output(self) -> str:
        """What the last tests printed."""
        return (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace")

    def _file_of(self, mutation: Mutation) -> Path:
        return self.folder / "src" / "selfvox" / mutation.file

    def _run_pytest(self, arguments: list[str]) -> None:
        os.setsid()  # so that the tests' own processes can be ended with them
        output = os.open(self.folder / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(self.folder)
        source = str(self.folder / "src")
        caches = {
            "PYTHONPATH": source,
            "PYTHONPYCACHEPREFIX": str(self.folder / "bytecode"),
            "NUMBA_CACHE_DIR": str(self.folder / "numba"),
            "OMP_NUM_THREADS": "1",
        }
        os.environ.update(caches)
        sys.pycache_prefix = caches["PYTHONPYCACHEPREFIX"]
        sys.path.insert(0, source)
        importlib.import_module("numba").config.reload_config()
        selfvox = importlib.import_module("selfvox")
        assert Path(selfvox.__file__).is_relative_to(self.folder), selfvox.__file__
        pytest = importlib.import_module("pytest")
        # packages of HEAVY may have a plugin for pytest, which is then imported before pytest
        options = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
        code = pytest.main(["-q", "-n", "0", "-rfE", *options, *arguments])
        sys.stdout.flush()
        os._exit(int(code))

    def _write(self, file: Path, text: str) -> None:
        """Write a source file and forget what was compiled from it."""
        file.write_text(text, encoding="utf-8")
        sys.pycache_prefix = str(self.folder / "bytecode")
        Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
        if "numba" in text:
            shutil.rmtree(self.folder / "numba", ignore_errors=True)

    def _first_failure(self) -> str:
        for line in self.output().splitlines():
            if line.startswith(("FAILED ", "ERROR ")):
                return line.split(" ")[1].partition("::")[2].partition("[")[0]
        return ""


_workshop: Workshop | None = None  # of this worker process


def _open_workshop(folder: str) -> None:
    global _workshop
    _workshop = Workshop(Path(tempfile.mkdtemp(dir=folder)))


def _judge(mutation: Mutation) -> Verdict:
    assert _workshop is not None
    return _workshop.judge(mutation)


def main() -> None:
    """Test the mutations that were asked for; a run of all of them writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="in the file or description of an entry")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--unchanged", action="store_true", help="run the tests without mutations")
    arguments = parser.parse_args()
    word = arguments.only
    chosen = [entry for entry in (*EARLIER, *NEW) if word in entry.file or word in entry.what]
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.unchanged:
            raise SystemExit(_run_unchanged(Path(folder), chosen))
        verdicts = _judge_all(folder, chosen, arguments.jobs)
    counts = collections.Counter(verdict.result for verdict in verdicts.values())
    print(", ".join(f"{count} {result}" for result, count in counts.items()))
    if not word:
        TABLE.write_text(_table(verdicts), encoding="utf-8")
        print(f"table: {TABLE}")


def _run_unchanged(folder: Path, chosen: list[Mutation]) -> bool:
    """Whether a mutation does not fit the code, or a test fails or does not end without any."""
    workshop = Workshop(folder / "copy")
    reasons = {entry: workshop.why_stale(entry) for entry in chosen}
    for entry, reason in reasons.items():
        if reason:
            print(f"stale    {entry.file}: {entry.what}: {reason}")
    tests = dict.fromkeys(f"tests/{test}" for entry in chosen for test in entry.tests.split())
    exit_code = workshop.run(list(tests), UNCHANGED_SECONDS)
    print(workshop.output()[-3000:])
    return exit_code != 0 or any(reasons.values())


def _judge_all(folder: str, chosen: list[Mutation], jobs: int) -> dict[Mutation, Verdict]:
    verdicts = {}
    with ProcessPoolExecutor(jobs, FORK, _open_workshop, (folder,)) as pool:
        for entry, verdict in zip(chosen, pool.map(_judge, chosen), strict=True):
            verdicts[entry] = verdict
            end = f"{verdict.reason} ({verdict.seconds:.0f} s)"
            print(f"{verdict.result:8} {entry.file}: {entry.what}: {end}", flush=True)
    return verdicts


def _table(verdicts: dict[Mutation, Verdict]) -> str:
    """The page of the results."""
    lines = [
        "# Mutations",
        "",
        "Do the tests notice when the code is wrong? Each line is one mistake made on purpose in",
        "a copy of the source, and the first of the closest tests that fails. `caught` means that",
        "one fails, `SURVIVED` that all pass, `stale` that the code has changed since the mistake",
        "was written down. To repeat it:",
        "",
        "```bash",
        "python experiments/mutations.py --jobs 2",
        "```",
        "",
    ]
    parts = {
        "From the first review": [entry for entry in EARLIER if entry not in SURVIVED_EARLIER],
        "Survivors of the first review": list(SURVIVED_EARLIER),
        "New ones": list(NEW),
    }
    for title, entries in parts.items():
        counts = collections.Counter(verdicts[entry].result for entry in entries)
        listed = ", ".join(f"{count} {result}" for result, count in counts.items())
        lines += [f"## {title}", "", f"{len(entries)}: {listed}.", ""]
        lines += ["| file | mistake | result | test |", "|---|---|---|---|"]
        for entry in entries:
            verdict = verdicts[entry]
            test = verdict.reason
            if test.startswith("test_"):
                test = f"`{test}`"
            lines.append(f"| `{entry.file}` | {entry.what} | {verdict.result} | {test} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
