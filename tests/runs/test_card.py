"""Cards are read strictly, and written as they were read."""

import dataclasses
import json
from pathlib import Path

import pytest

from selfvox.errors import WeightsError
from selfvox.runs.card import (
    ClassifierCard,
    EncoderCard,
    SegmenterCard,
    parse_network_card,
)

FILE = Path("run/network/network.json")
NETWORK = {"name": "plain", "channels": [4, 8], "plugin": "package 1.0"}
RECIPE = {"spatial_dims": 3, "channel_names": ["MRI"], "size": None}
SEEN = {"subjects": ["sub-001"], "image_hashes": ["03648f"]}
ENCODER = {
    "format": 1,
    "network": NETWORK,
    "spatial_dims": 3,
    "in_channels": 2,
    "crop": [16, 24, 32],
    "slices": None,
    "spacing_mm": [1, 1.5, 2.0],
    "recipe": RECIPE,
    "task": {"name": "rotation+simclr", "rotation.versions": 1},
    "weights": [1, 0.5],
    "source": {"title": "weights from elsewhere", "licence": "MIT"},
    "seen": SEEN,
    "scans": {"count": 3},
    "steps": 500,
    "seed": 7,
    "sha256": "3bd1f2fe",
}
SEGMENTER = {
    "format": 1,
    "network": NETWORK,
    "spatial_dims": 2,
    "in_channels": 1,
    "recipe": RECIPE,
    "encoder": "from scratch",
    "seed": 0,
    "crop": [16, 24],
    "slices": "axial",
    "head": "linear",
    "classes": {"0": "background", "10": "core", "2": "oedema"},
    "regions": {"whole": [2, 10], "core": [10]},
    "trained_on": "regions",
    "seen": SEEN,
    "scans": {"count": 3},
    "step": 40,
    "validation_dice": 0.25,
    "dropout": {"encoder": 0.3, "decoder": 0, "kind": "channel"},
    "mirror": ["left-right", "up-down"],
    "sha256": "0c1b2879",
}
CLASSIFIER = {
    **{name: SEGMENTER[name] for name in list(SEGMENTER)[:7]},
    "crop": [16, 24],
    "slices": None,
    "head": "full",
    "classes": ["0", "1", "3"],
    "ordinal": True,
    "names": ["none", "mild", "severe"],
    "seen": SEEN,
    "scans": {"count": 3},
    "step": 40,
    "validation_kappa": 1.0,
    "dropout": {"encoder": 0.5, "decoder": 0.25, "kind": "element"},
    "mirror": ["left-right", "up-down"],
    "sha256": "b81ab85c",
}


UNORDERED = {
    **{name: CLASSIFIER[name] for name in list(CLASSIFIER)[:-4]},
    "ordinal": False,
    "validation_balanced_accuracy": 1.0,
    "dropout": {"encoder": 0.5, "decoder": 0.25, "kind": "element"},
    "mirror": ["left-right", "up-down"],
    "sha256": "b81ab85c",
}
CARDS = [
    (EncoderCard, ENCODER),
    (
        EncoderCard,
        {**ENCODER, "weights": None, "slices": "coronal", "spatial_dims": 2, "crop": [16, 24]},
    ),
    (SegmenterCard, SEGMENTER),
    (
        SegmenterCard,
        {**SEGMENTER, "regions": None, "trained_on": "classes", "validation_dice": None},
    ),
    (ClassifierCard, CLASSIFIER),
    (ClassifierCard, UNORDERED),
]
VALUES = ("?", 1.5, -1, [], [[]], ["?"], {}, {"?": 1}, None)
# those of them that a key may have; no other key may have any


def without(entries, key):
    return {name: value for name, value in entries.items() if name != key}


ACCEPTED = {
    "slices": [None],
    "recipe": [{}, {"?": 1}],
    "spacing_mm": [[]],
    "weights": [[], None],
    "encoder": ["?"],
    "sha256": ["?"],
    "validation_dice": [1.5, -1, None],
    "validation_kappa": [1.5, -1, None],
    "validation_balanced_accuracy": [1.5, -1, None],
    "regions": [None],
    (ClassifierCard, "classes"): [["?"]],
}
KEYS = [
    (card, entries, key)
    for card, entries in [
        (EncoderCard, ENCODER),
        (SegmenterCard, {**SEGMENTER, "trained_on": "classes"}),
        # names are optional, and have to be as many as the classes
        (ClassifierCard, without(CLASSIFIER, "names")),
        (ClassifierCard, without(UNORDERED, "names")),
    ]
    for key in entries
    if key
    not in (
        "format",
        "dropout",
        "mirror",
        "scans",
        "source",
    )  # checked where the file is read; optional
]


def refusal(card, entries):
    """The message that the entries are refused with; None if they are accepted."""
    try:
        card.from_json(entries, FILE)
    except WeightsError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("card", "entries"), CARDS)
def test_a_card_is_written_as_it_was_read(card, entries):
    parsed = card.from_json(json.loads(json.dumps(entries)), FILE)
    assert json.loads(json.dumps(parsed.to_json())) == entries


@pytest.mark.parametrize(("card", "entries"), CARDS[2:])
def test_what_a_network_was_trained_without_its_card_does_not_mention(card, entries):
    optional = ("dropout", "mirror", "scans")
    without = {key: value for key, value in entries.items() if key not in optional}
    parsed = card.from_json(without, FILE)
    assert (parsed.dropout, parsed.mirror, parsed.scans) == (None, None, None)
    assert json.loads(json.dumps(parsed.to_json())) == without


@pytest.mark.parametrize(
    "dropout",
    [
        0.3,
        {"encoder": 0.3},
        {**SEGMENTER["dropout"], "kind": "voxel"},
        {**SEGMENTER["dropout"], "encoder": 1},
    ],
)
def test_a_damaged_dropout_is_refused(dropout):
    message = refusal(SegmenterCard, {**SEGMENTER, "dropout": dropout})
    assert message.startswith(f"{FILE}: damaged (")
    assert "dropout" in message


@pytest.mark.parametrize(("card", "entries"), CARDS)
def test_every_field_of_a_card_has_one_key_of_the_file(card, entries):
    assert len(entries) == len(dataclasses.fields(card)) + 1  # the format


@pytest.mark.fault("K5 K7", "each key of a card missing", "refused with file and key")
@pytest.mark.parametrize(("card", "entries", "key"), KEYS)
def test_a_missing_key_is_refused_with_file_key_and_remedy(card, entries, key):
    message = refusal(card, {name: value for name, value in entries.items() if name != key})
    assert message == f"{FILE}: damaged (has no '{key}'); copy it again"


@pytest.mark.fault("K5 K7", "each value of a card of another type", "refused with file and key")
@pytest.mark.parametrize(("card", "entries", "key"), KEYS)
def test_a_value_of_another_type_is_refused_with_file_key_and_remedy(card, entries, key):
    accepted = []
    for value in VALUES:
        message = refusal(card, {**entries, key: value})
        if message is None:
            accepted.append(value)
            continue
        # the key of the score depends on the order of the classes
        named = {key}
        if key == "ordinal":
            named |= {"validation_kappa", "validation_balanced_accuracy"}
        assert any(f"damaged ('{name}" in message or f"no '{name}" in message for name in named)
        assert message.endswith("; copy it again")
    assert accepted == ACCEPTED.get((card, key), ACCEPTED.get(key, []))


@pytest.mark.fault("K5 K7", "values that no card has", "refused")
@pytest.mark.parametrize(
    ("card", "entries", "key", "wrong"),
    [
        (EncoderCard, ENCODER, "seed", True),
        (SegmenterCard, SEGMENTER, "validation_dice", True),
        (ClassifierCard, CLASSIFIER, "ordinal", 1),
        (EncoderCard, ENCODER, "network", {"name": 1}),
        (EncoderCard, ENCODER, "task", {"versions": 1}),
        (EncoderCard, ENCODER, "seen", {"subjects": []}),
        (EncoderCard, ENCODER, "seen", {"subjects": [], "image_hashes": [1]}),
        (EncoderCard, ENCODER, "spatial_dims", 4),
        (EncoderCard, ENCODER, "crop", [16, 16.0, 16]),
        (EncoderCard, ENCODER, "crop", [16, True, 16]),
        (EncoderCard, ENCODER, "weights", [1, None]),
        (SegmenterCard, SEGMENTER, "slices", "oblique"),
        (SegmenterCard, SEGMENTER, "head", "deep"),
        (SegmenterCard, SEGMENTER, "trained_on", "scans"),
        (SegmenterCard, SEGMENTER, "classes", {"one": "core"}),
        (SegmenterCard, SEGMENTER, "classes", {"1": 1}),
        (SegmenterCard, SEGMENTER, "regions", {"core": ["4"]}),
        (SegmenterCard, SEGMENTER, "regions", {"core": []}),
        (SegmenterCard, SEGMENTER, "regions", {"core": [0]}),
        (SegmenterCard, SEGMENTER, "classes", {"65536": "core"}),
        (SegmenterCard, SEGMENTER, "crop", [16, 24, 32]),
        (EncoderCard, ENCODER, "slices", "axial"),
        (EncoderCard, ENCODER, "in_channels", 10**30),
        (ClassifierCard, CLASSIFIER, "classes", [0, 1]),
    ],
)
def test_a_value_that_no_card_has_is_refused(card, entries, key, wrong):
    with pytest.raises(WeightsError, match=rf"damaged \('{key}.*\); copy it again"):
        card.from_json({**entries, key: wrong}, FILE)


@pytest.mark.parametrize(("card", "entries"), CARDS)
def test_keys_of_a_newer_version_are_ignored(card, entries):
    assert card.from_json({**entries, "licence": "MIT"}, FILE) == card.from_json(entries, FILE)


def test_a_network_card_is_that_of_a_classifier_if_it_says_whether_classes_have_an_order():
    assert isinstance(parse_network_card(SEGMENTER, FILE), SegmenterCard)
    assert isinstance(parse_network_card(CLASSIFIER, FILE), ClassifierCard)
    assert isinstance(parse_network_card(UNORDERED, FILE), ClassifierCard)


def test_values_are_read_as_python_has_them():
    encoder = EncoderCard.from_json(ENCODER, FILE)
    assert (encoder.crop, encoder.weights, encoder.task["name"]) == (
        (16, 24, 32),
        (1, 0.5),
        "rotation+simclr",
    )
    segmenter = SegmenterCard.from_json(SEGMENTER, FILE)
    assert segmenter.classes == {0: "background", 10: "core", 2: "oedema"}
    assert segmenter.regions == {"whole": (2, 10), "core": (10,)}
    assert segmenter.is_linear
    assert segmenter.score == 0.25
    classifier = ClassifierCard.from_json(UNORDERED, FILE)
    assert (classifier.classes, classifier.is_linear, classifier.score) == (
        ("0", "1", "3"),
        False,
        1.0,
    )


def test_outputs_are_regions_as_declared_or_classes_by_number():
    card = SegmenterCard.from_json(SEGMENTER, FILE)
    assert card.output_names == ["whole", "core"]
    card = dataclasses.replace(card, trained_on="classes")
    assert card.output_names == ["background", "oedema", "core"]


def test_names_of_other_classes_are_refused():
    message = refusal(ClassifierCard, {**CLASSIFIER, "names": ["none", "mild"]})
    assert "'names' are 2, of 3 classes" in message
