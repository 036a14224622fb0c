"""What a registration costs: CPU seconds a pair, by the size of the scans, and what it reaches.

One thread. The scans are synthetic heads: tissues in an ovoid, and the same moved by a known smooth
deformation, with other noise. Dice is that of the carried tissues, before and after registration.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter, zoom

from selfvox.ops.metrics import dice_per_class
from selfvox.registration.register import register, warp_image, warp_label

EDGES = (64, 128, 192)
LARGEST_SHIFT = 0.05  # of the edge
NOISE = 0.1  # of a tissue's contrast
KNOTS = 6  # of the deformation, along each axis


def head(edge: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (1, edge, edge, edge) of three tissues in an ovoid, and their label."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, edge)] * 3, indexing="ij"))
    inside = (grid**2 * np.reshape((1.4, 1.0, 1.2), (3, 1, 1, 1))).sum(0) < 0.8
    folds = gaussian_filter(rng.normal(size=(edge,) * 3), edge / 32)
    tissue = np.digitize(folds, np.quantile(folds, [0.3, 0.65])) + 1
    label = np.where(inside, tissue, 0).astype(np.uint8)
    return gaussian_filter(label.astype(np.float32), 0.6)[None], label


def deformation(edge: int, rng: np.random.Generator) -> np.ndarray:
    """Positions (3, edge, edge, edge) in voxels that differ smoothly from those of the grid."""
    coarse = rng.uniform(-1, 1, (3, KNOTS, KNOTS, KNOTS))
    field = np.stack([zoom(component, edge / KNOTS, order=3) for component in coarse])
    return np.indices((edge,) * 3) + field / abs(field).max() * LARGEST_SHIFT * edge


def main() -> None:
    """Register one pair of each size, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edges", type=int, nargs="+", default=EDGES)
    table = Table("edge", "CPU seconds", "s per million voxels", "Dice before", "Dice after")
    for edge in parser.parse_args().edges:
        rng = np.random.default_rng(0)
        image, label = head(edge, rng)
        positions = deformation(edge, rng)
        fixed = warp_image(image, positions)
        fixed_label = warp_label(label, positions)
        scans = [scan + rng.normal(0, NOISE, scan.shape) for scan in (image, fixed)]
        start = time.process_time()
        registration = register(scans[0], scans[1], (1.0,) * 3, (1.0,) * 3)
        seconds = time.process_time() - start
        carried = warp_label(label, registration.positions())
        before = np.mean(dice_per_class(label, fixed_label, 4))
        after = np.mean(dice_per_class(carried, fixed_label, 4))
        table.add_row(
            str(edge),
            f"{seconds:.1f}",
            f"{seconds / edge**3 * 1e6:.1f}",
            f"{before:.2f}",
            f"{after:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
