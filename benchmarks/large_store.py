"""What a store of many scans costs: growth with the number of cases, which share nine arrays.

For several numbers of cases, in a process of its own each: CPU time to write the table of the
cases, to write the JSON of each, to open the store, to plan a pre-training on it, and to find out
that nothing changed; and of the whole command `pretrain` of one small step, and of the same again
with `--resume`; memory of a process that opened the store, of one that planned a pre-training, and
of a loader's worker. Memory is what a process has for itself; pages of the mapped table that
processes share are a column of their own. Prints the growth exponents, fitted to the logarithms: 1
means that twice as many cases cost twice as much.

    python benchmarks/large_store.py --most 100000
"""

from __future__ import annotations

import argparse
import base64
import gc
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MEASURES = (
    "json_s",
    "table_s",
    "table_mb",
    "open_s",
    "open_mb",
    "plan_s",
    "plan_mb",
    "shared_mb",
    "worker_mb",
    "case_us",
    "unchanged_s",
    "pretrain_s",
    "resume_s",
)


def cases_of(count: int, source: Path):
    """Cases as a preparation records them, of one scan of a head each."""
    from selfvox.data.preparation.geometry import Geometry
    from selfvox.data.preparation.prepare_case import file_states
    from selfvox.data.preparation.scan_profile import ChannelProfile, ScanProfile
    from selfvox.data.preparation.stored_case import StoredCase
    from selfvox.data.sources import Case

    rng = np.random.default_rng(0)
    channel = ChannelProfile(
        before=(0.0, 12.345, 345.67, 890.12, 2345.6),
        after=(-0.91234, -0.51234, -0.01234, 0.41234, 0.91234, 1.5123),
        share=0.61234,
        detail=(0.12345, 0.12345, 0.23456),
    )
    states = file_states(Case(id="a", subject="a", images=(source,), label=None))
    assert states is not None
    for number in range(count):
        shape = (160 + number % 9, 192, 150)
        geometry = Geometry(
            shape=(176, 256, 256),
            orientation=((0, 1), (1, 1), (2, 1)),
            start=(0, 0, 0),
            stop=(176, 256, 256),
            step=(1.0, 1.1 + number % 7 / 100, 1.2),
            prepared_shape=shape,
        )
        digest = f"{number:064x}"
        yield StoredCase(
            id=f"sub-{number:06d}",
            subject=f"sub-{number // 2:06d}",
            shape=shape,
            spacing_mm=(1.0, 1.0, 1.0),
            affine=tuple(map(tuple, rng.normal(size=(4, 4)).tolist())),
            geometry=geometry,
            has_label=False,
            label_values=(),
            grade=None,
            recipe_hash="0" * 64,
            source_hash=digest,
            image_hash=digest[::-1],
            sources=states,
            sha256={"images": digest},
            coarse_picture=base64.b64encode(rng.bytes(512)).decode(),
            profile=ScanProfile(
                spacing_mm=(1.0, 1.0, 1.0), extent=(160.0, 192.0, 150.0), channels=(channel,)
            ),
        )


def memory_mb() -> dict[str, float]:
    """Memory of this process now: of its own (`RssAnon`), and pages of files (`RssFile`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split(":") for line in lines if line.startswith("Rss"))
    return {name: int(value.split()[0]) / 2**10 for name, value in pairs}


class Meter:
    """CPU time, and memory that a process has gained."""

    def __init__(self) -> None:
        gc.collect()
        self.memory = memory_mb()
        self.began = time.process_time()

    def seconds(self) -> float:
        """CPU time since the start."""
        return time.process_time() - self.began

    def gained(self, name: str) -> float:
        """Memory of this kind since the start, in MiB."""
        gc.collect()
        return memory_mb()[name] - self.memory[name]


def write_store(folder: Path, count: int, entries: int) -> dict[str, float]:
    """Write a store of so many cases; so many `entries` get a JSON, the others an empty file."""
    from selfvox.data.preparation import store
    from selfvox.data.preparation.manifest import write_manifest
    from selfvox.data.preparation.normalise import Intensity
    from selfvox.data.preparation.recipe import Recipe

    for name in ("cases", "images"):
        (folder / name).mkdir()
    source = folder.with_suffix(".scan")
    source.touch()
    cases = []
    for case in cases_of(count, source):
        # one array for each shape
        array = folder / f"{case.shape[0]}.npy"
        if not array.exists():
            np.save(array, np.zeros((1, *case.shape), np.float16))
        (folder / "images" / f"{case.id}.npy").hardlink_to(array)
        cases.append(store.with_stamps(folder, case))
    meter = Meter()
    for case in cases[:entries]:
        store.write_entry(folder, case)
    json_s = meter.seconds() * count / entries
    for case in cases[entries:]:
        (folder / "cases" / f"{case.id}.json").touch()
    recipe = Recipe(
        spatial_dims=3,
        channel_names=("T1",),
        intensity=(Intensity(kind="mri"),),
        size=None,
        spacing_mm=(1.0, 1.0, 1.0),
    )
    meter = Meter()
    write_manifest(folder, recipe, None, cases, {})
    size = (folder / "cases.safetensors").stat().st_size
    return {"json_s": json_s, "table_s": meter.seconds(), "table_mb": size / 2**20}


def measure_start(folder: Path) -> dict[str, float]:
    """Open a store, plan a pre-training on it, and draw the first cases."""
    from selfvox.data.preparation.split import Split, write_split
    from selfvox.data.preparation.store import open_store
    from selfvox.data.sampling.crops import Crops
    from selfvox.data.sampling.sample_order import case_index
    from selfvox.settings.options import resolve
    from selfvox.settings.verbs import Pretrain
    from selfvox.training.pretrain_plan import pretrain_plan

    meter = Meter()
    opened = open_store(folder)
    results = {"open_s": meter.seconds(), "open_mb": meter.gained("RssAnon")}
    test = tuple(sorted({case.subject for case in opened.cases[:20]}))
    write_split(
        Split(train=("sub-000100",), validation=(), test=test, seed=0), folder / "split.json"
    )
    settings = resolve(Pretrain, {"scans": folder, "out": folder / "run", "task": "rotation"})
    meter = Meter()
    plan = pretrain_plan(settings, opened)
    plan.check_distinct_scans()
    record = plan.store.record(plan.cases)
    assert record["cases"] == len(opened.cases) - len(test) * 2
    data = Crops(opened, plan.cases, plan.crop, seed=0)
    drawn = [data.cases[case_index(0, sample, len(data.cases))] for sample in range(100)]
    results |= {"plan_s": meter.seconds(), "plan_mb": meter.gained("RssAnon")}
    results["shared_mb"] = meter.gained("RssFile")
    # with the memory that the first 100 cases take from the allocator
    assert len(drawn) == 100
    (folder / "worker").write_bytes(pickle.dumps(data))
    return results


def measure_worker(folder: Path) -> dict[str, float]:
    """A loader's worker as a new process: what the data set takes, and how long a case."""
    from selfvox.data.sampling.crops import Crops
    from selfvox.data.sampling.sample_order import case_index

    meter = Meter()
    data: Crops = pickle.loads((folder / "worker").read_bytes())
    count = len(data.cases)
    places = [case_index(0, sample, count) for sample in range(1000)]
    gained = meter.gained("RssAnon")
    meter = Meter()
    for place in places:
        data.cases[place]
    return {"worker_mb": gained, "case_us": 1e6 * meter.seconds() / len(places)}


def measure_unchanged(folder: Path) -> dict[str, float]:
    """What `prepare`, or `pretrain SCANS --resume`, does to see that no case changed."""
    from selfvox.data.preparation import unchanged_cases
    from selfvox.data.preparation.manifest import read_manifest
    from selfvox.data.sources import Case

    source = folder.with_suffix(".scan")
    unchanged_cases.request_hash = lambda case, recipe_hash: recipe_hash
    names = [file.stem for file in (folder / "cases").glob("*.json")]
    cases = [
        Case(id=name, subject=f"sub-{int(name[4:]) // 2:06d}", images=(source,), label=None)
        for name in names
    ]
    meter = Meter()
    manifest = read_manifest(folder)
    entries = unchanged_cases.read_entries(folder, names, manifest)
    intact = unchanged_cases.find_unchanged_cases(cases, folder, entries.by_id, "0" * 64, False)
    assert entries.is_listed
    assert all(intact[name] is entries.by_id[name] for name in names)
    return {"unchanged_s": meter.seconds()}


def measure_command(folder: Path) -> dict[str, float]:
    """The whole command of one small step, and the same again with `--resume`."""
    options = [
        "--task",
        "rotation",
        "--steps",
        "1",
        "--crop",
        "16",
        "--batch",
        "2",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    command = [sys.executable, "-m", "selfvox", "pretrain", str(folder), *options]
    command += ["--out", str(folder / "run")]
    results = {}
    for name, resume in (("pretrain_s", []), ("resume_s", ["--resume"])):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, *resume], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        results[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return results


STEPS = {
    "start": measure_start,
    "worker": measure_worker,
    "unchanged": measure_unchanged,
    "command": measure_command,
}


def measure(count: int) -> dict[str, float]:
    """All costs of so many cases; each step in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        folder.mkdir()
        results = write_store(folder, count, entries=min(500, count))
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
            finished = subprocess.run(command, check=True, capture_output=True, text=True)
            results |= json.loads(finished.stdout.splitlines()[-1])
    return results


def main() -> None:
    """Measure each number of cases in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=100_000)
    parser.add_argument("--one", type=int, help="measure this number in this process")
    parser.add_argument("--step", choices=STEPS, help="measure one step of the store in --folder")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.step is not None:
        print(json.dumps(STEPS[options.step](options.folder)))
        return
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return
    counts = [options.most // 2**power for power in range(4, -1, -1)]
    rows = []
    for count in counts:
        command = [sys.executable, __file__, "--one", str(count)]
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(finished.stdout.splitlines()[-1]))
        print(count, " ".join(f"{name} {rows[-1][name]:.3g}" for name in MEASURES), flush=True)
    for name in MEASURES:
        values = np.array([row[name] for row in rows])
        exponent = np.polyfit(np.log(counts), np.log(np.maximum(values, 1e-6)), 1)[0]
        print(f"{name}: exponent {exponent:.2f}")


if __name__ == "__main__":
    main()
