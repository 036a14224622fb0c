"""Scans seen in training are found among the test scans by subject or contents."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

import selfvox
from selfvox.data.preparation.leakage import content_hashes, find_leaks, seen_scans
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import open_store


def case(name, subject, contents):
    voxels = {"images": contents.upper()}
    return SimpleNamespace(
        id=name, subject=subject, image_hash=contents, sha256=voxels, coarse_picture=""
    )


CASES = [case("a1", "a", "x"), case("a2", "a", "y"), case("b1", "b", "z"), case("c1", "c", "x")]


def test_seen_scans_are_sorted_and_joined_with_those_seen_earlier():
    assert seen_scans(CASES[1:]) == {
        "subjects": ["a", "b", "c"],
        "image_hashes": ["X", "Y", "Z", "x", "y", "z"],
    }
    earlier = {"subjects": ["d", "a"], "image_hashes": ["w"]}
    joined = {"subjects": ["a", "d"], "image_hashes": ["X", "w", "x"]}
    assert seen_scans(CASES[:1], earlier) == joined
    # a card of an older version
    assert seen_scans(CASES[:1], {}) == {"subjects": ["a"], "image_hashes": ["X", "x"]}


@pytest.mark.fault("C3", "a test scan that was trained on, under another name", "recognised")
@pytest.mark.parametrize(
    ("subjects", "contents", "by_contents", "by_subject"),
    [
        ((), (), [], []),
        (("a",), (), [], ["a1", "a2"]),
        ((), ("x",), ["a1"], []),
        ((), ("Y",), ["a2"], []),  # of the voxels alone
        (("b", "c"), ("y",), ["a2"], []),
        (("a",), ("y",), ["a2"], ["a1"]),
    ],
)
def test_leaks_are_test_scans_with_a_subject_or_contents_seen_in_training(
    subjects, contents, by_contents, by_subject
):
    split = Split(train=("b", "c"), validation=(), test=("a",), seed=0)
    training = {"subjects": subjects, "image_hashes": contents}
    assert find_leaks(SimpleNamespace(cases=CASES), split, training) == (
        by_contents,
        by_subject,
        2,
    )


def test_a_scan_that_is_compressed_again_and_turned_is_recognised(tmp_path):
    voxels = np.random.default_rng(0).normal(100, 20, (12, 10, 8)).astype(np.float32)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    scan = nib.Nifti1Image(voxels, np.eye(4))
    scan.to_filename(tmp_path / "first" / "a.nii.gz")
    # the same scan from right to left, in a file that is not compressed and has another name
    turned = scan.as_reoriented([[0, -1], [1, 1], [2, 1]])
    turned.to_filename(tmp_path / "second" / "b.nii")
    selfvox.prepare(tmp_path / "first", out=tmp_path / "one")
    selfvox.prepare(tmp_path / "second", out=tmp_path / "other")
    (case,), (copy,) = open_store(tmp_path / "one").cases, open_store(tmp_path / "other").cases
    assert case.image_hash != copy.image_hash
    assert content_hashes(case) & content_hashes(copy)
