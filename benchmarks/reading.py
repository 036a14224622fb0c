"""What reading costs: a whole `.nii.gz` by nibabel, SimpleITK and us; a stored crop by zarr and us.

CPU time of one thread, warm file cache. Every round times each way once, in a shuffled order; the
table has medians over the rounds, of the times and of each round's ratio to ours. All ways must
return the same values, or nothing is printed. `A/A` is our own way against itself: outside 0.90
to 1.10 the machine was too busy and the row is void.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own documentation calls it so
import zarr
from isal import isal_zlib
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

import selfvox
from selfvox.data.formats.image import read_image
from selfvox.data.preparation.normalise import foreground
from selfvox.data.preparation.store import open_store

EDGE = 128
CROP = 64
GOALS = {"read": {"nibabel": 5.0}, "crop": {"zarr": 4.0}}


def head(rng: np.random.Generator) -> np.ndarray:
    """A 128-cubed int16 scan that compresses like a real one.

    Tissues in an ovoid, a bias field, noise, dark air.
    """
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, EDGE)] * 3, indexing="ij"))
    inside = (grid**2 * np.reshape((1.4, 1.0, 1.2), (3, 1, 1, 1))).sum(0) < 0.9
    folds = gaussian_filter(rng.normal(size=(EDGE,) * 3), 3)
    tissue = np.digitize(folds, np.quantile(folds, [0.2, 0.6])) * 250 + 200
    bias = 1 + 0.2 * grid[0] * grid[1]
    signal = np.where(inside, gaussian_filter(tissue * bias, 0.6), 0)
    # the noise of a magnitude image
    real = signal + rng.normal(0, 8, signal.shape)
    imaginary = rng.normal(0, 8, signal.shape)
    return np.hypot(real, imaginary).astype(np.int16)


def race(
    readers: Mapping[str, Callable[[], np.ndarray]], rounds: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """CPU seconds of each reader, round by round, in shuffled order.

    `ours` runs twice, as `ours` and `again`.
    """
    runners = {**readers, "again": readers["ours"]}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name in rng.permutation(list(runners)):
            start = time.process_time()
            runners[str(name)]()
            times[str(name)].append(time.process_time() - start)
    return times


def report(
    console: Console, title: str, times: Mapping[str, Sequence[float]], goals: Mapping[str, float]
) -> bool:
    """Print a table; whether no goal was missed on a quiet machine."""
    ours = times["ours"]
    control = statistics.median(a / b for a, b in zip(times["again"], ours, strict=True))
    void = not 0.90 <= control <= 1.10
    table = Table(title=f"{title}   A/A {control:.2f}{' void' if void else ''}")
    for column in ("reader", "ms", "times ours", "goal", ""):
        table.add_column(column, justify="left" if column == "reader" else "right")
    fine = not void
    for name, seconds in times.items():
        if name == "again":
            continue
        ratio = statistics.median(a / b for a, b in zip(seconds, ours, strict=True))
        goal = goals.get(name.split(",")[0])
        verdict = ""
        if goal is not None:
            fine &= ratio >= goal
            verdict = "met" if ratio >= goal else "missed"
            if void:
                verdict = "void"
        cells = (
            f"{statistics.median(seconds) * 1e3:.2f}",
            f"{ratio:.2f}",
            "" if goal is None else f">= {goal:g}",
            verdict,
        )
        table.add_row(name, *cells)
    console.print(table)
    return fine


def main() -> int:
    """Measure and print; 1 where a goal is missed or the machine was too restless."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    zarr.config.set({"threading.max_workers": 1})
    console = Console(width=90)
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scans" / "head.nii.gz"
        scan.parent.mkdir()
        values = head(rng)
        nib.save(nib.Nifti1Image(values, np.eye(4)), scan)
        selfvox.prepare(scan.parent, out=Path(folder) / "store")
        fine = reading(console, scan, values, rounds, rng)
        return 0 if cropping(console, scan, Path(folder), values, rounds, rng) and fine else 1


def reading(
    console: Console, scan: Path, values: np.ndarray, rounds: int, rng: np.random.Generator
) -> bool:
    """The whole scan, as stored."""
    readers = {
        "ours": lambda: read_image(scan).data[0],
        "nibabel": lambda: np.asarray(nib.load(scan).dataobj),
        "SimpleITK": lambda: sitk.GetArrayFromImage(sitk.ReadImage(str(scan))).T,
    }
    for name, reader in readers.items():
        assert np.array_equal(reader(), values), name
    # what no reader can go below
    readers["inflate alone (isal)"] = lambda: np.frombuffer(
        isal_zlib.decompress(scan.read_bytes(), wbits=31), np.uint8
    )
    size = f"{scan.stat().st_size / 1e6:.2f} of {values.nbytes / 1e6:.2f} MB"
    title = f"whole scan, {EDGE}^3 int16 .nii.gz ({size}); only ours checks it"
    return report(console, title, race(readers, rounds, rng), GOALS["read"])


def cropping(
    console: Console,
    scan: Path,
    folder: Path,
    values: np.ndarray,
    rounds: int,
    rng: np.random.Generator,
) -> bool:
    """A random crop of the prepared scan; the arrays of the store and of zarr stay open."""
    store = open_store(folder / "store")
    case = store.cases[0]
    prepared = store.crop(case, (0, 0, 0), case.shape).astype(np.float16)
    inside = values[foreground(values)].astype(np.float64)
    mean = float(inside.mean())
    std = float(inside.std())
    arrays = {
        f"zarr, {name}": zarr.create_array(folder / f"{name}.zarr", data=prepared, chunks=chunks)
        for name, chunks in {
            "32^3 chunks": (1, 32, 32, 32),
            "its own chunks": "auto",
            "one chunk": prepared.shape,
        }.items()
    }
    corner = [0, 0, 0]

    def from_nifti() -> np.ndarray:
        starts = [a + b for a, b in zip(case.geometry.start, corner, strict=True)]
        box = tuple(slice(start, start + CROP) for start in starts)
        voxels = np.asarray(nib.load(scan).dataobj[box], dtype=np.float32)
        return (voxels[None] - mean) / std

    def from_zarr(array: zarr.Array) -> np.ndarray:
        box = tuple(slice(start, start + CROP) for start in corner)
        return np.asarray(array[(slice(None), *box)]).astype(np.float32)

    readers = {
        "ours": lambda: store.crop(case, corner, (CROP,) * 3),
        "nibabel": from_nifti,
        **{name: partial(from_zarr, array) for name, array in arrays.items()},
    }
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        corner[:] = [int(rng.integers(extent - CROP + 1)) for extent in case.shape]
        for name in arrays:
            assert np.array_equal(readers["ours"](), readers[name]()), name
        assert np.allclose(readers["ours"](), readers["nibabel"](), rtol=2e-3, atol=2e-3)  # float16
        for name, seconds in race(readers, 1, rng).items():
            times.setdefault(name, []).extend(seconds)
    bytes_stored = (folder / "store" / "images" / f"{case.id}.npy").stat().st_size
    share = bytes_stored / values.nbytes
    title = f"random {CROP}^3 crop of the prepared scan ({share:.2f} of the int16 voxels' size)"
    return report(console, title, times, GOALS["crop"])


if __name__ == "__main__":
    sys.exit(main())
