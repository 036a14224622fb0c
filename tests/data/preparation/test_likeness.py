"""Resampled copies of a scan have nearly the coarse picture of the scan; other scans have not."""

import base64
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import selfvox
from selfvox.data import phantom
from selfvox.data.preparation.leakage import find_leaks, seen_scans
from selfvox.data.preparation.likeness import CoarsePictures, coarse_picture
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import open_store

HEADS = Path(__file__).parents[4] / "shared" / "data" / "ds002748_bids"


def blobs(seed, edge=48):
    """A volume of smooth noise that fades out towards its borders."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(edge,) * 3), 4)
    axes = np.meshgrid(*[np.linspace(-1, 1, edge)] * 3, indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    return ((noise / noise.std() + 3) * (distance < 0.9)).astype(np.float32)


def bits(text):
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8)).astype(bool)


def test_the_bits_are_those_of_loops_over_cells():
    image = np.random.default_rng(0).uniform(size=(40, 30)).astype(np.float32)
    low, high = np.percentile(image, (1, 99))
    image = image.clip(low, high)
    weights = image - image.min()
    edges = []
    for axis, count in enumerate(image.shape):
        profile = weights.sum(1 - axis) / weights.sum()
        middles = np.arange(count) + 0.5
        centre = (profile * middles).sum()
        spread = np.sqrt((profile * (middles - centre) ** 2).sum())
        edges.append(centre + 2 * spread * np.linspace(-1, 1, 33))
    # a hundred points along each edge of a cell
    fine = [
        np.linspace(first, last, 100, endpoint=False) + (last - first) / 200
        for axis in edges
        for first, last in itertools.pairwise(axis)
    ]
    rows, columns = np.concatenate(fine[:32]), np.concatenate(fine[32:])
    padded = np.zeros((42, 32))
    padded[1:-1, 1:-1] = weights
    at = [(np.floor(x).astype(int) + 1).clip(0, n + 1) for x, n in ((rows, 40), (columns, 30))]
    cells = padded[np.ix_(*at)].reshape(32, 100, 32, 100).mean((1, 3))
    contrast = cells - ndimage.gaussian_filter(cells, 1.0, mode="nearest")
    ours = bits(coarse_picture(image[None])).reshape(32, 32)
    assert (ours == (contrast >= np.median(contrast))).mean() > 0.98


@pytest.mark.parametrize("zoom", [2 / 3, 1.5])
def test_a_resampled_scan_with_another_margin_and_scale_is_found_among_others(zoom):
    pictures = CoarsePictures(coarse_picture(blobs(seed)[None]) for seed in range(8))
    copy = np.pad(ndimage.zoom(blobs(5), zoom, order=1), 5) * 40 + 7
    assert pictures.find(coarse_picture(copy[None])) == 5
    assert pictures.find(coarse_picture(blobs(8)[None])) is None


def test_scans_of_other_dimensions_and_constant_scans_are_like_none():
    pictures = CoarsePictures(
        [coarse_picture(blobs(0)[None]), "", coarse_picture(blobs(0)[:, 20:25])]
    )
    assert coarse_picture(np.ones((1, 8, 8, 8), np.float32)) == ""
    assert pictures.find("") is None
    assert pictures.find(coarse_picture(blobs(0)[None, 24])) is None
    assert CoarsePictures([]).find(coarse_picture(blobs(0)[None])) is None


def test_a_resampled_copy_under_another_name_is_a_leak(tmp_path):
    for name, zoom in (("first", 1.0), ("second", 0.75)):
        (tmp_path / name).mkdir()
        voxels = ndimage.zoom(blobs(1), zoom, order=1)
        scan = nib.Nifti1Image(voxels, np.diag([1 / zoom] * 3 + [1]))
        scan.to_filename(tmp_path / name / f"{name}.nii.gz")
        selfvox.prepare(tmp_path / name, out=tmp_path / f"{name}_store")
    training, test = (open_store(tmp_path / f"{name}_store") for name in ("first", "second"))
    split = Split(train=(), validation=(), test=("second",), seed=0)
    assert find_leaks(test, split, seen_scans(training.cases)) == (["second"], [], 1)


@pytest.mark.skipif(not HEADS.is_dir(), reason=f"{HEADS} is absent")
def test_real_heads_are_unlike_and_their_copies_are_alike():
    files = sorted(HEADS.glob("sub-*/anat/*_T1w.nii.gz"))[:12]
    heads = [np.asarray(nib.load(file).dataobj, np.float32) for file in files]
    pictures = CoarsePictures(coarse_picture(head[None]) for head in heads[:6])
    assert [pictures.find(coarse_picture(head[None])) for head in heads[6:]] == [None] * 6
    for number, head in enumerate(heads[:3]):
        copy = ndimage.zoom(head, 0.7, order=1)
        assert pictures.find(coarse_picture(copy[None])) == number


def test_synthetic_scans_are_not_taken_for_copies():
    images = [phantom.draw_shapes(np.random.default_rng(seed)).image for seed in range(40)]
    texts = [coarse_picture(image) for image in images]
    for number, text in enumerate(texts):
        assert CoarsePictures(texts[:number] + texts[number + 1 :]).find(text) is None
