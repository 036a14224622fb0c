"""A MONAI bundle, run by MONAI itself: its labels are those of `selfvox predict`."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import selfvox
from selfvox.errors import DataError, UsageError
from selfvox.neighbours.monai_parts import ReadScand, ScanNetwork
from selfvox.runs.seen_scans import write_seen
from selfvox.runs.weights import read_network

from ..conftest import affine, blob, make_run, write_scan

CANARY = "ANNA_KANARIA"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "monai.md"
CLASSES = {"0": "background", "2": "organ", "7": "lesion"}


@pytest.fixture
def bundle(tmp_path, change_json):
    """A run with a canary among its subjects, and its bundle."""
    run = make_run(tmp_path / "run", classes=CLASSES, spacing_mm=(1.5, 1.5, 1.5))
    digest = write_seen(run / "network", {"subjects": [CANARY], "image_hashes": ["c0ffee"]})
    change_json(
        run / "network" / "network.json",
        seen_sha256=digest,
        encoder=f"pre-trained on {CANARY}",
    )
    return run, selfvox.export(run, to="monai", out=tmp_path / "bundle")


def test_the_command_of_the_page_gives_the_labels_of_predict(bundle, tmp_path):
    run, _ = bundle
    write_scan(tmp_path / "scans" / "a.b.nii.gz", blob((20, 17, 12)), affine(turn=0.4))
    axes = affine(axes=(1, 2, 0), signs=(1, -1, 1))
    write_scan(tmp_path / "scans" / "c.nii.gz", blob((18, 14, 15), 1), axes)
    (command,) = re.findall(r"python -m monai.*?[^\\]\n", PAGE.read_text(), re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    subprocess.run(
        [sys.executable, *words[1:]],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        capture_output=True,
    )
    expected = selfvox.predict(run, tmp_path / "scans", out=tmp_path / "expected", device="cpu")
    assert [path.name for path in expected] == ["a.b.nii.gz", "c.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == [
        "a.b.nii.gz",
        "c.nii.gz",
    ]
    for path in expected:
        ours = nib.load(path)
        theirs = nib.load(tmp_path / "labels" / path.name)
        label = np.asarray(ours.dataobj)
        assert set(np.unique(label)) - {0}
        np.testing.assert_array_equal(np.asarray(theirs.dataobj), label)
        np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-5)


def test_a_path_is_read_and_predicted_as_monai_label_asks(bundle, tmp_path):
    run, folder = bundle
    scan = write_scan(tmp_path / "scan.nii.gz", blob((20, 17, 12)), affine(turn=0.4))
    network = ScanNetwork(str(folder / "models"))
    data = ReadScand("image", network)({"image": str(scan)})
    label = network(data["image"][None])[0, 0]
    expected = selfvox.load_segmenter(run, device="cpu").predict(scan).label
    np.testing.assert_array_equal(label.numpy().astype(int), expected)
    with pytest.raises(DataError, match="needs its affine and a batch of 1"):
        network(torch.zeros(1, 1, 20, 17, 12))


def test_a_bundle_has_the_weights_and_what_monai_requires_but_no_people(bundle):
    run, folder = bundle
    tensors, card = read_network(folder / "models")
    expected, own = read_network(run)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert (card.recipe, card.crop) == (own.recipe, own.crop)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == CLASSES
    for path in folder.rglob("*"):
        assert CANARY not in path.name
        if path.is_file():
            content = path.read_bytes()
            assert CANARY.encode() not in content
            assert b"c0ffee" not in content
            assert str(run.parent).encode() not in content


def test_what_has_no_bundle_is_refused(run, tmp_path):
    pictures = make_run(tmp_path / "pictures", spatial_dims=2)
    with pytest.raises(UsageError, match="segments pictures, and the bundle is of volumes"):
        selfvox.export(pictures, to="monai", out=tmp_path / "bundle")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="is not an empty folder"):
        selfvox.export(run, to="monai", out=tmp_path / "full")
    assert not (tmp_path / "bundle").exists()
    assert not list(tmp_path.glob(".*"))
