"""What an encoder has seen is in a file next to its card, and is what was written, or refused."""

import base64
import json

import numpy as np
import pytest
import torch

from selfvox.errors import WeightsError
from selfvox.runs.atomic_files import sha256
from selfvox.runs.mapped_columns import Texts, write_columns
from selfvox.runs.seen_scans import FILE
from selfvox.runs.typed_json import read_checked, write_checked
from selfvox.runs.weights import read_encoder, save_part

CARD = {
    "network": {"name": "plain"},
    "spatial_dims": 2,
    "in_channels": 1,
    "crop": [16, 16],
    "slices": None,
    "spacing_mm": [1.0, 1.0],
    "recipe": {},
    "task": {"name": "rotation"},
    "weights": None,
    "steps": 1,
    "seed": 0,
}
SEEN = {
    "subjects": ["Åsa", "", "sub-2"],
    "image_hashes": ["00ff", "a1"],
    "coarse_pictures": [base64.b64encode(bytes(range(6))).decode()],
}


def save(folder, seen):
    save_part(folder, "encoder", torch.nn.Linear(1, 1), {**CARD, "seen": seen})
    return folder / "encoder.json"


@pytest.mark.parametrize("seen", [SEEN, {"subjects": [], "image_hashes": []}])
def test_what_was_seen_is_read_as_it_was_written(tmp_path, seen):
    entries = read_checked(save(tmp_path, seen))
    _, card = read_encoder(tmp_path)
    assert dict(card.seen) == {"coarse_pictures": [], **seen}
    assert entries["seen_sha256"] == sha256(tmp_path / FILE)
    # a network that continues it saves it again
    save_part(tmp_path / "next", "encoder", torch.nn.Linear(1, 1), card.to_json())
    assert read_encoder(tmp_path / "next")[1].seen == card.seen
    assert json.loads(json.dumps(card.without_people().to_json()))["seen"]["subjects"] == []


def test_a_card_of_an_earlier_version_lists_them_itself(tmp_path):
    file = save(tmp_path, SEEN)
    (tmp_path / FILE).unlink()
    entries = read_checked(file)
    del entries["seen_sha256"]
    write_checked(file, {**entries, "seen": SEEN})
    assert read_encoder(tmp_path)[1].seen == SEEN


def test_a_card_is_of_the_same_size_however_many_scans_were_seen(tmp_path):
    few = save(tmp_path / "few", SEEN).stat().st_size
    many = {name: [f"{number:08d}" for number in range(1000)] for name in SEEN}
    assert save(tmp_path / "many", many).stat().st_size == few


@pytest.mark.fault("K6", "the list of scans seen is missing, cut or of another encoder", "refused")
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_another_list_than_the_one_of_the_card_is_refused(tmp_path, damage):
    save(tmp_path, SEEN)
    file = tmp_path / FILE
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        save(tmp_path / "other", {**SEEN, "subjects": []})
        (tmp_path / "other" / FILE).replace(file)
    with pytest.raises(WeightsError, match=rf"{FILE}: .*; copy it"):
        read_encoder(tmp_path)


FORGED = {
    "no text": Texts(np.array([0, 1]), np.array([255], np.uint8)),
    "no base64": Texts.of(["????"]),
    "outside": Texts(np.array([0, 9]), np.array([65], np.uint8)),
    "no starts": Texts(np.array(0), np.array([65], np.uint8)),
    "not mapped": Texts(np.array([0, 1], np.float32), np.array([65], np.uint8)),
}


@pytest.mark.fault("K6", "a list of scans seen that was forged with its checksum", "refused")
@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_list_is_refused(tmp_path, forged):
    columns = {name: Texts.of(texts) for name, texts in SEEN.items()}
    file = save(tmp_path, SEEN)
    digest = write_columns(tmp_path / FILE, {}, {**columns, "coarse_pictures": FORGED[forged]})
    write_checked(file, {**read_checked(file), "seen_sha256": digest})
    with pytest.raises(WeightsError, match=rf"{FILE}: damaged .*; copy it again"):
        dict(read_encoder(tmp_path)[1].seen)


def test_a_column_that_is_missing_is_named(tmp_path):
    file = save(tmp_path, SEEN)
    digest = write_columns(tmp_path / FILE, {}, {"subjects": Texts.of(["a"])})
    write_checked(file, {**read_checked(file), "seen_sha256": digest})
    with pytest.raises(WeightsError, match=r"has no 'image_hashes.starts'"):
        read_encoder(tmp_path)
