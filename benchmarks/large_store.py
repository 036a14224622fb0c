"""What a store of many scans costs: growth with the number of cases, which have no arrays.

For several numbers of cases, in a process of its own each: CPU time to write and to open the
manifest, memory of the opened store, bytes that a loader's worker receives, CPU time to write and
read the JSON of all cases, and to leave out those of test subjects. Prints the growth exponents,
fitted to the logarithms: 1 means that twice as many cases cost twice as much.

    python benchmarks/large_store.py --most 100000
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MEASURES = ("write_s", "open_s", "open_mb", "worker_mb", "entries_s", "split_s")


def cases_of(count: int):
    """Cases as a preparation records them, of one scan each."""
    from selfvox.data.preparation.geometry import Geometry
    from selfvox.data.preparation.stored_case import StoredCase

    shape = (240, 240, 155)
    geometry = Geometry(
        shape=shape,
        orientation=((0, 1), (1, 1), (2, 1)),
        start=(0, 0, 0),
        stop=shape,
        step=(1.0, 1.0, 1.0),
        prepared_shape=shape,
    )
    case = StoredCase(
        id="",
        subject="",
        shape=shape,
        spacing_mm=(1.0, 1.0, 1.0),
        affine=tuple(map(tuple, np.eye(4).tolist())),
        geometry=geometry,
        has_label=False,
        label_values=(),
        grade=None,
        recipe_hash="0" * 64,
        source_hash="1" * 64,
        image_hash="2" * 64,
        sources=((17_900_000, 1_700_000_000_000_000_000),),
        sha256={"images": "3" * 64},
        coarse_picture="x" * 88,
    )
    return [
        dataclasses.replace(case, id=f"sub-{number:06d}", subject=f"sub-{number // 2:06d}")
        for number in range(count)
    ]


def resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(count: int, entries: int) -> dict[str, float]:
    """The costs of a store of so many cases, in this process; so many `entries` become files."""
    from selfvox.data.preparation import store
    from selfvox.data.preparation.normalise import Intensity
    from selfvox.data.preparation.recipe import Recipe

    recipe = Recipe(
        spatial_dims=3,
        channel_names=("T1",),
        intensity=(Intensity(kind="mri"),),
        size=None,
        spacing_mm=(1.0, 1.0, 1.0),
    )
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cases").mkdir()
        cases = cases_of(count)
        began = time.process_time()
        store.write_manifest(folder, recipe, None, cases, {})
        results["write_s"] = time.process_time() - began
        began = time.process_time()
        for case in cases[:entries]:
            store.write_entry(folder, case)
        for case in cases[:entries]:
            store.read_entry(folder, case.id)
        results["entries_s"] = (time.process_time() - began) * count / entries
        del cases
        gc.collect()
        before = resident_mb()
        began = time.process_time()
        opened = store.open_store(folder)
        results["open_s"] = time.process_time() - began
        gc.collect()
        results["open_mb"] = resident_mb() - before
        began = time.process_time()
        opened.without_test_subjects()
        results["split_s"] = time.process_time() - began
        results["worker_mb"] = len(pickle.dumps(opened)) / 2**20
    return results


def main() -> None:
    """Measure each number of cases in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=100_000)
    parser.add_argument("--one", type=int, help="measure this number in this process")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, entries=min(500, options.one))))
        return
    counts = [options.most // 2**power for power in range(5, -1, -1)]
    rows = []
    for count in counts:
        command = [sys.executable, __file__, "--one", str(count)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        print(count, " ".join(f"{name} {rows[-1][name]:.3g}" for name in MEASURES))
    for name in MEASURES:
        values = np.array([row[name] for row in rows])
        exponent = np.polyfit(np.log(counts), np.log(np.maximum(values, 1e-6)), 1)[0]
        print(f"{name}: exponent {exponent:.2f}")


if __name__ == "__main__":
    main()
