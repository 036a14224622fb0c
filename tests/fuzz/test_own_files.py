"""Leaves of selfvox's own files, replaced or dropped: refused in one line, or without effect."""

import contextlib
import copy
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import selfvox
from selfvox.data.preparation.store import open_store
from selfvox.errors import SelfvoxError
from selfvox.models.build import load_encoder
from selfvox.prediction.case_files import CaseFiles
from selfvox.prediction.load_model import load_model
from selfvox.prediction.output_folder import OutputFolder
from selfvox.prediction.read_predictions import (
    has_region_probabilities,
    read_class_names,
    read_reviews,
    read_trust,
    warn_of_trained_scans,
)
from selfvox.runs.checkpoints import read_last_checkpoint
from selfvox.runs.run_folder import read_metrics, read_run_record
from selfvox.runs.typed_json import CHECKSUM, with_checksum
from selfvox.uncertainty.calibration import Calibration
from selfvox.uncertainty.calibration_file import read_calibration

VALUES = (None, True, -1, 0, 1, 2.5, 1e300, 2**70, "", "x", "../../x", [], [[]], {}, {"a": None})
PASSES = {"passes": 2, "encoder_dropout": 0.3}
SMALL = {"network": {"name": "plain", "channels": [4, 8]}, "crop": (16, 16, 16), "device": "cpu"}


@pytest.fixture(scope="module")
def folders(shapes_store, tmp_path_factory):
    """A store, two runs, and predictions with passes."""
    root = tmp_path_factory.mktemp("own")
    shutil.copytree(shapes_store, root / "store")
    selfvox.pretrain(root / "store", out=root / "pre", task="rotation", steps=2, batch=2, **SMALL)
    selfvox.finetune(
        root / "store",
        out=root / "seg",
        encoder=str(root / "pre"),
        steps=2,
        device="cpu",
    )
    (root / "scans").mkdir()
    scans = sorted((shapes_store.parent / "scans").rglob("*.nii.gz"))
    shutil.copy(next(file for file in scans if "label" not in str(file)), root / "scans")
    selfvox.predict(root / "seg", root / "scans", out=root / "out", device="cpu", **PASSES)
    return root


def use_store(root):
    store = open_store(root / "store")
    for case in store.cases[:2]:
        store.crop(case, (0, 0, 0), (4, 4, 4))
        store.label_crop(case, (0, 0, 0), (4, 4, 4))
    store.split()


def use_encoder(root):
    load_encoder(root / "pre")


def use_network(root):
    model = load_model(root / "seg")
    assert model.network is not None


def use_run(root):
    read_run_record(root / "seg")
    read_metrics(root / "seg")
    load_model(root / "seg")


def use_checkpoint(root):
    read_last_checkpoint(root / "pre" / "checkpoints")


def use_predictions(root):
    read_class_names(root / "out")
    read_trust(root / "out")
    read_reviews(root / "out")
    with contextlib.suppress(FileNotFoundError):
        read_calibration(root / "seg", Calibration)


def use_ledger(root):
    folder = OutputFolder(CaseFiles(root / "out"))
    folder.reviews()
    folder.answers()
    has_region_probabilities(root / "out")
    warn_of_trained_scans(root / "out", ["a"])


FILES = {
    "store/manifest.json": use_store,
    "store/split.json": use_store,
    "pre/encoder/encoder.json": use_encoder,
    "seg/network/network.json": use_network,
    "seg/run.json": use_run,
    "seg/metrics.jsonl": use_run,
    "pre/checkpoints/step-00000002.json": use_checkpoint,
    "out/classes.json": use_predictions,
    "out/predictions.json": use_ledger,
    "out/cases.jsonl": use_ledger,
}


def leaves(value, path=()):
    """The paths of all leaves, and of all lists and mappings."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        # all are alike
        for number, item in enumerate(value[:3]):
            yield from leaves(item, (*path, number))


def replaced(content, path, value, *, drop):
    """The content with the leaf at the path replaced or dropped."""
    if not path:
        return value
    content = copy.deepcopy(content)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    if drop:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return content


@contextlib.contextmanager
def changed(file: Path, text: str):
    """The file has this text within."""
    before = file.read_bytes()
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        yield
    finally:
        file.write_bytes(before)


def outcome(use, root):
    """`accepted` or `refused`; any other error fails the test."""
    try:
        use(root)
    except SelfvoxError as error:
        message = str(error)
    else:
        return "accepted"
    assert "\n" not in message
    return "refused"


@pytest.mark.fault(
    "K5 K7 K-enc K-net K-man K-case F27m",
    "any leaf of a card, manifest or record replaced or dropped",
    "refused with the file, or without effect",
)
@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_a_changed_leaf_is_refused_or_harmless(folders, count, name, data):
    file = folders / name
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    content = json.loads(lines[-1])
    path = data.draw(st.sampled_from(list(leaves(content))), "path")
    new = replaced(
        content,
        path,
        data.draw(st.sampled_from(VALUES), "value"),
        drop=data.draw(st.booleans(), "drop"),
    )
    # by accident, and by somebody who renews the checksum
    is_renewed = data.draw(st.booleans(), "renewed")
    if is_renewed and isinstance(new, dict) and CHECKSUM in content:
        new = with_checksum(new)
    with changed(file, "\n".join([*lines[:-1], json.dumps(new)]) + "\n"):
        result = outcome(FILES[name], folders)
    count(name, f"{result}{', checksum renewed' if is_renewed else ''}")
    # a ledger and the record of a run go on without what is damaged
    goes_on = file.suffix == ".jsonl" or name == "seg/run.json"
    has_old_checksum = isinstance(new, dict) and CHECKSUM in new and not is_renewed
    if has_old_checksum and new != content and not goes_on:
        assert result == "refused"


@pytest.mark.fault("F11-card", "any bit of a card, manifest or record flipped", "noticed")
@pytest.mark.parametrize("name", FILES)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_is_noticed_or_harmless(folders, count, name, place, bit):
    file = folders / name
    before = file.read_bytes()
    damaged = bytearray(before)
    damaged[int(place * len(damaged))] ^= 1 << bit
    file.write_bytes(damaged)
    try:
        count(name, f"{outcome(FILES[name], folders)}, one bit")
    finally:
        file.write_bytes(before)


@pytest.mark.fault(
    "F-run F-met K-ledger",
    "other text in place of run.json, metrics and ledgers",
    "refused, or taken as missing",
)
@given(text=st.text(max_size=40) | st.sampled_from(["", "[" * 10_000, '{"a":' * 10_000, "NaN"]))
@pytest.mark.parametrize("name", FILES)
def test_any_other_text_is_refused_or_taken_as_missing(folders, count, name, text):
    with changed(folders / name, text):
        count(name, f"{outcome(FILES[name], folders)}, any text")


def test_the_values_are_those_of_json():
    assert all(json.loads(json.dumps(value)) == value for value in VALUES)
