"""Folders for Hugging Face: the same weights, and nothing of the people."""

import json

import pytest
import torch

import selfvox
from selfvox.errors import UsageError
from selfvox.runs.seen_scans import write_seen
from selfvox.runs.weights import read_network

from ..conftest import make_run


def test_a_folder_has_the_weights_and_is_a_network_again(tmp_path):
    run = make_run(tmp_path / "run")
    file = run / "network" / "network.json"
    entries = json.loads(file.read_text())
    seen = {"subjects": ["ANNA_KANARIA"], "image_hashes": ["c0ffee"]}
    entries["seen_sha256"] = write_seen(file.parent, seen)
    entries["encoder"] = "pre-trained by the labels of KANARIA"
    del entries["checksum"]
    file.write_text(json.dumps(entries))
    out = selfvox.export(run, to="huggingface", out=tmp_path / "model")
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    for path in out.iterdir():
        content = path.read_bytes()
        assert b"KANARIA" not in content
        assert b"c0ffee" not in content
    assert "pipeline_tag: image-segmentation" in (out / "README.md").read_text()
    # as its page says
    (tmp_path / "again" / "network").mkdir(parents=True)
    for source, target in (
        ("model.safetensors", "weights.safetensors"),
        ("config.json", "network.json"),
    ):
        (out / source).rename(tmp_path / "again" / "network" / target)
    tensors, card = read_network(tmp_path / "again")
    expected, own = read_network(run)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert card.recipe == own.recipe
    with pytest.raises(UsageError, match="not an empty folder"):
        selfvox.export(run, to="huggingface", out=tmp_path / "again")
    assert not list(tmp_path.glob(".*"))
