"""docs/reference/formats.md names every file and key that a run through all verbs leaves behind."""

import csv
import json
import re
from pathlib import Path

import pytest
import safetensors
import safetensors.numpy
import yaml

import selfvox
from selfvox.data import phantom
from selfvox.settings.options import options

TEXT = (Path(__file__).parent.parent / "docs" / "reference" / "formats.md").read_text(
    encoding="utf-8"
)
SECTIONS = dict(re.findall(r"^## ([\w ]+)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))


def named(section: str) -> set[str]:
    """The words in code quotes in a section; `a,b` counts as both."""
    words = re.findall(r"`([^`\n]+)`", SECTIONS[section])
    return {name for word in words for name in (word, *word.split(","))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a store, two runs, predictions and scores."""
    root = tmp_path_factory.mktemp("folders")
    phantom.write(root / "scans", kind="shapes", count=4)
    selfvox.prepare(root / "scans", out=root / "store", test=1, validation=1)
    small = {"channels": [4, 8], "blocks": 1}
    training = {"steps": 2, "batch": 2, "crop": (16, 16, 16), "device": "cpu"}
    selfvox.pretrain(root / "store", out=root / "pre", task="rotation", network=small, **training)
    selfvox.finetune(root / "store", out=root / "seg", encoder=str(root / "pre"), **training)
    selfvox.predict(
        root / "seg",
        root / "scans",
        out=root / "predictions",
        subset="test",
        probabilities=True,
        device="cpu",
    )
    selfvox.evaluate(root / "predictions", root / "scans" / "labels", out=root / "scores.csv")
    return root


def keys(file: Path) -> set[str]:
    return set(
        json.loads(
            file.read_text(encoding="utf-8").splitlines()[-1]
            if file.suffix == ".jsonl"
            else file.read_text()
        )
    )


def test_every_file_is_named(folders):
    for folder, section in (
        ("store", "Store"),
        ("pre", "Run"),
        ("seg", "Run"),
        ("predictions", "Predictions"),
    ):
        for path in (folders / folder).iterdir():
            name = f"{path.name}/" if path.is_dir() else path.name
            name = (
                name.replace("sub-001", "ID")
                .replace("sub-002", "ID")
                .replace("sub-003", "ID")
                .replace("sub-004", "ID")
            )
            names = named(section)
            assert any(word.startswith(name) for word in names), f"{folder}/{name}"


@pytest.mark.parametrize(
    ("section", "file"),
    [
        ("Store", "store/manifest.json"),
        ("Store", "store/cases/sub-001.json"),
        ("Store", "store/split.json"),
        ("Run", "pre/run.json"),
        ("Run", "pre/metrics.jsonl"),
        ("Run", "seg/run.json"),
        ("Checkpoint", "pre/checkpoints/step-00000002.json"),
        ("Encoder and network", "pre/encoder/encoder.json"),
        ("Encoder and network", "seg/network/network.json"),
        ("Predictions", "predictions/predictions.json"),
        ("Predictions", "predictions/cases.jsonl"),
    ],
)
def test_every_key_is_named(folders, section, file):
    # explained once, for all files
    assert keys(folders / file) - named(section) <= {"checksum"}


def test_every_key_of_recipe_trail_and_state_is_named(folders):
    manifest = json.loads((folders / "store" / "manifest.json").read_text())
    inner = {**manifest["asked"], **manifest["recipe"], **manifest["recipe"]["intensity"][0]}
    case = json.loads((folders / "store" / "cases" / "sub-001.json").read_text())
    inner |= {**manifest["cases"], **case["trail"], **case["sha256"]}
    assert inner.keys() - named("Store") == set()
    card = json.loads((folders / "pre" / "encoder" / "encoder.json").read_text())
    assert card["network"].keys() - named("Encoder and network") == set()
    state = json.loads((folders / "pre" / "checkpoints" / "step-00000002.json").read_text())[
        "state"
    ]
    assert state.keys() - named("Checkpoint") == set()


def test_every_column_of_the_cases_is_named(folders):
    columns = safetensors.numpy.load((folders / "store" / "cases.safetensors").read_bytes())
    names = {name.removesuffix(".text").removesuffix(".starts") for name in columns}
    assert names - named("Store") == set()


def test_tensors_are_called_as_the_page_says(folders):
    def names(file):
        with safetensors.safe_open(folders / file, "pt") as tensors:
            return list(tensors.keys())

    parts = {name.split(".")[0] for name in names("pre/checkpoints/step-00000002.safetensors")}
    assert parts == {"weights", "optimizer"}
    moments = {
        name.split(".")[2]
        for name in names("pre/checkpoints/step-00000002.safetensors")
        if name[0] == "o"
    }
    assert moments <= named("Checkpoint")
    assert all(name.startswith("net.") for name in names("pre/encoder/weights.safetensors"))
    assert all(
        name.startswith(("encoder.net.", "decoder."))
        for name in names("seg/network/weights.safetensors")
    )


def test_settings_yaml_has_every_setting(folders):
    for run, verb in (("pre", selfvox.pretrain), ("seg", selfvox.finetune)):
        written = yaml.safe_load((folders / run / "settings.yaml").read_text())
        assert set(written) == {option.name for option in options(verb.settings)}


def test_every_column_of_the_scores_is_named(folders):
    with (folders / "scores.csv").open(newline="") as table:
        assert set(next(csv.reader(table))) - named("Scores") == set()
