"""Draw the pictures of the pages: `python docs/pictures.py [tasks|tutorial|copies]`.

All scans are synthetic brains.
"""

from __future__ import annotations

import sys
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
WHITE = 250  # a grey value that is background
LINE_HEIGHT = 40  # pixels; anything higher is an image


def draw_tasks() -> None:
    """Draw docs/images/TASK-2d.png and TASK-3d.png: the question of every task."""
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder) / "scans"
        slices = Path(folder) / "slices"
        slices.mkdir()
        for path in phantom.write(scans, count=2):
            volume = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
            level = volume[:, :, volume.shape[2] // 2].T[::-1]
            picture = Image.fromarray((255 * level / level.max()).astype(np.uint8))
            picture.resize((128, 160), Image.Resampling.BICUBIC).save(
                slices / f"{path.name.split('.')[0]}.png"
            )
        for name in tasks.task_names():
            for spatial_dims, source in ((2, slices), (3, scans / "images")):
                out = IMAGES / f"{name.replace('_', '-')}-{spatial_dims}d.png"
                # exemplar shows another scan too
                count = 2 if spatial_dims == 2 or name == "exemplar" else 1
                selfvox.preview(source, task=name, count=count, out=out)
                _without_title(Image.open(out)).save(out)
                _save_small(out, out, grey=True)


def draw_tutorial() -> None:
    """Draw docs/images/tutorial-*.png: the commands of docs/tutorial.md on few scans."""
    network = {"name": "plain", "channels": [8, 16, 32, 64]}
    crop = (48, 48, 48)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scans = root / "scans"
        store = root / "store"
        run = root / "runs" / "pretrained"
        phantom.write(scans, kind="brains", count=24)
        selfvox.prepare(scans, out=store, test=4, validation=4)
        selfvox.preview(store, task="rotation", crop=crop, count=2, out=root / "preview.png")
        selfvox.pretrain(
            store, out=run, task="rotation", network=network, crop=crop, batch=4, steps=300
        )
        selfvox.finetune(
            store,
            out=root / "runs" / "seg",
            encoder=str(run),
            labels=6,
            crop=crop,
            steps=150,
            augment="light",
            validate_every=30,
        )
        selfvox.predict(
            root / "runs" / "seg",
            scans,
            out=root / "predictions",
            subset="test",
            passes=10,
            maps=("entropy", "mutual-information"),
        )
        pictures = {
            "preview": root / "preview.png",
            "pretrain": run / "curve.png",
            "finetune": root / "runs" / "seg" / "curve.png",
            "maps": sorted((root / "predictions" / "maps").glob("*_maps.png"))[0],
        }
        for name, path in pictures.items():
            _save_small(path, IMAGES / f"tutorial-{name}.png", grey=name == "preview")


def draw_copies() -> None:
    """Draw docs/images/copies.png: copies of one labelled brain on three others."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        phantom.write(root / "scans", kind="brains", count=4, labelled=1)
        selfvox.finetune(
            root / "scans",
            out=root / "seg",
            encoder="none",
            labels=1,
            unlabelled=root / "scans" / "images",
            teacher="atlas",
            registrations=3,
            network={"name": "plain", "channels": [4, 8]},
            crop=(16, 16, 16),
            steps=1,
        )
        _save_small(root / "seg" / "copies" / "copies.png", IMAGES / "copies.png", grey=False)


def _without_title(picture: Image.Image) -> Image.Image:
    """Cut the title off a preview: everything above the captions of the first row of images."""
    filled = (np.asarray(picture.convert("L")) < WHITE).any(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled, [False]]).astype(int)))
    bands = edges.reshape(-1, 2)  # first and one past last row of each line of text or images
    first_images = next(i for i, (top, bottom) in enumerate(bands) if bottom - top > LINE_HEIGHT)
    top_of_captions = int(bands[max(0, first_images - 1)][0])
    return picture.crop((0, max(0, top_of_captions - 4), picture.width, picture.height))


def _save_small(source: Path, target: Path, grey: bool) -> None:
    picture = Image.open(source).convert("L" if grey else "RGB")
    picture.quantize(SHADES).save(target, optimize=True)


if __name__ == "__main__":
    drawings = {"tasks": draw_tasks, "tutorial": draw_tutorial, "copies": draw_copies}
    for name in sys.argv[1:] or drawings:
        drawings[name]()
