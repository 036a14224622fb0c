"""A preview shows what pre-training would ask, and refuses what that would refuse."""

import nibabel as nib
import numpy as np
import pytest
import torch

import selfvox
from selfvox.data import phantom
from selfvox.errors import UsageError


@pytest.fixture
def preview(tmp_path, monkeypatch):
    """Preview as asked; the rows that would be drawn."""

    def rows(scans, **settings):
        shown = []
        monkeypatch.setattr(
            "selfvox.commands.preview.draw_preview", lambda rows, *_, **__: shown.extend(rows)
        )
        selfvox.preview(scans, out=tmp_path / "p.png", **settings)
        return shown

    return rows


@pytest.fixture
def mixed(tmp_path):
    """Two large scans of one spacing, then two small ones of another."""
    (tmp_path / "scans").mkdir()
    settings = {
        "a": (24, (1.0, 1.0, 1.15)),
        "b": (24, (1.0, 1.0, 1.15)),
        "c": (16, (1.15, 1.0, 1.0)),
        "d": (16, (1.15, 1.0, 1.0)),
    }
    for name, (edge, spacing) in settings.items():
        voxels = np.random.default_rng(ord(name)).normal(size=(edge,) * 3).astype(np.float32)
        nib.save(
            nib.Nifti1Image(voxels, np.diag([*spacing, 1])), tmp_path / "scans" / f"{name}.nii"
        )
    return tmp_path / "scans"


@pytest.mark.parametrize(
    "task", ["exemplar", {"name": "rotation+simclr", "simclr.mask_same_scan": True}]
)
def test_one_scan_alone_is_refused_in_the_words_of_pretrain(task, tmp_path, small, preview):
    phantom.write(tmp_path / "scans", "shapes", count=1)
    with pytest.raises(UsageError, match="compares scans of different people") as by_pretrain:
        selfvox.pretrain(
            tmp_path / "scans",
            out=tmp_path / "run",
            task=task,
            steps=1,
            batch=2,
            workers=1,
            **small,
        )
    with pytest.raises(UsageError) as by_preview:
        preview(tmp_path / "scans", task=task, crop=small["crop"], workers=1)
    assert str(by_preview.value) == str(by_pretrain.value)


def test_the_other_scan_is_another_one_also_where_one_is_shown(shapes_store, preview):
    ((scan, _, far),) = preview(shapes_store, task="exemplar", count=1, crop=(16,))
    assert far.caption == "far: another scan"
    assert not torch.equal(scan.image, far.image)


@pytest.mark.parametrize("task", ["simclr", "rotation"])
def test_one_scan_alone_is_shown_where_that_is_a_question(task, tmp_path, preview):
    phantom.write(tmp_path / "scans", "shapes", count=1)
    assert len(preview(tmp_path / "scans", task=task, crop=(16,), workers=1)) == 1


def test_the_other_scan_is_another_persons(tmp_path, preview):
    (tmp_path / "scans").mkdir()
    for number, name in enumerate(["ann_visit1", "ann_visit2", "ann_visit3", "bob"]):
        voxels = np.random.default_rng(number).normal(size=(16, 16, 16)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scans" / f"{name}.nii")
    store = selfvox.prepare(tmp_path / "scans", out=tmp_path / "store", workers=1)
    for seed in range(4):
        rows = preview(store, task="exemplar", count=4, crop=(16,), seed=seed)
        # whole scans are shown: all of Ann's have Bob's next to them, and his has one of hers
        shared = [
            sum(torch.equal(far.image, panel.image) for _, _, panel in rows) for _, _, far in rows
        ]
        assert sorted(shared) == [1, 3, 3, 3]


def test_making_voxels_equal_does_not_hide_that_they_were_not(tmp_path, preview):
    (tmp_path / "scans").mkdir()
    for name in "ab":
        voxels = np.random.default_rng(ord(name)).normal(size=(20, 20, 4)).astype(np.float32)
        nib.save(
            nib.Nifti1Image(voxels, np.diag([1.0, 1, 5, 1])), tmp_path / "scans" / f"{name}.nii"
        )
    with pytest.raises(UsageError, match=r"1\.00 x 1\.00 x 5\.00 mm, as scanned"):
        preview(tmp_path / "scans", spacing=(1, 1, 1), task="rotation", crop=(16,), workers=1)


def test_test_scans_are_not_shown(shapes_store, preview):
    assert len(preview(shapes_store, task="rotation", count=8, crop=(16,))) == 6


def test_all_scans_of_a_store_decide(mixed, tmp_path, preview, capsys):
    store = selfvox.prepare(mixed, out=tmp_path / "store", workers=1)
    capsys.readouterr()
    rows = preview(store, task="masked", count=2)
    assert [row[0].image.shape for row in rows] == [(1, 16, 16, 16)] * 2
    with pytest.raises(UsageError, match=r"1\.15 x 1\.00 x 1\.00 mm"):
        preview(store, task={"name": "rotation", "planes": "in-plane"}, count=2)
    assert "only the first" not in capsys.readouterr().err


def test_a_plan_from_only_some_scans_is_reported(mixed, preview, capsys):
    rows = preview(mixed, task={"name": "rotation", "planes": "in-plane"}, count=2, workers=1)
    assert [row[0].image.shape for row in rows] == [(1, 24, 24, 24)] * 2
    assert "only the first 2 scans were looked at" in capsys.readouterr().err
