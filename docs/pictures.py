"""Draws docs/images/TASK-2d.png and TASK-3d.png, what each task asks of synthetic brains: `python docs/pictures.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

import selfvox
from selfvox import tasks
from selfvox.data import phantom

IMAGES = Path(__file__).resolve().parent / "images"
SHADES = 96  # small files


def main() -> None:
    """Draw every task, in 2D and 3D."""
    with tempfile.TemporaryDirectory() as folder:
        scans, slices = Path(folder) / "scans", Path(folder) / "slices"
        slices.mkdir()
        for path in phantom.write(scans, count=2):
            volume = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
            level = volume[:, :, volume.shape[2] // 2].T[::-1]
            picture = Image.fromarray((255 * level / level.max()).astype(np.uint8))
            picture.resize((128, 160), Image.Resampling.BICUBIC).save(
                slices / f"{path.name.split('.')[0]}.png"
            )
        for name in tasks.task_names():
            for d, source in ((2, slices), (3, scans / "images")):
                out = IMAGES / f"{name.replace('_', '-')}-{d}d.png"
                # exemplar shows another scan too
                count = 2 if d == 2 or name == "exemplar" else 1
                selfvox.preview(source, task=name, count=count, out=out)
                Image.open(out).convert("L").quantize(SHADES).save(out, optimize=True)


if __name__ == "__main__":
    main()
