"""A trained model is loaded from a fine-tuning run; any other folder is refused with what it is."""

import json

import pytest
from PIL import Image as Pillow

import selfvox
from selfvox.errors import WeightsError
from selfvox.prediction.load_model import load_classifier, load_model, load_segmenter
from selfvox.prediction.trained_model import TrainedClassifier, TrainedSegmenter
from selfvox.runs.typed_json import write_checked

from ..conftest import SMALL, make_run


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A fine-tuning run that classifies pictures of two grades."""
    folder = tmp_path_factory.mktemp("classifier")
    lines = ["image,grade"]
    for number in range(6):
        picture = Pillow.linear_gradient("L").resize((16, 16)).rotate(90 * (number % 2))
        picture.save(folder / f"eye_{number}.png")
        lines.append(f"eye_{number}.png,{number % 2}")
    (folder / "grades.csv").write_text("\n".join(lines) + "\n")
    how = {**SMALL, "crop": 16, "encoder": "none", "steps": 1, "batch": 2}
    return selfvox.finetune(folder / "grades.csv", out=folder / "run", workers=1, **how)


def test_the_card_says_whether_a_run_segments_or_classifies(classifier, tmp_path):
    segmenter = make_run(tmp_path / "segmenter")
    assert isinstance(load_model(segmenter), TrainedSegmenter)
    assert isinstance(load_model(segmenter / "network"), TrainedSegmenter)
    assert isinstance(load_model(classifier), TrainedClassifier)
    assert load_classifier(classifier).classes == ("0", "1")
    with pytest.raises(WeightsError, match="load it with load_classifier"):
        load_segmenter(classifier)
    with pytest.raises(WeightsError, match="load it with load_segmenter"):
        load_classifier(segmenter)


def test_a_pre_training_run_is_refused_with_the_verb_that_comes_next(shapes_store, tmp_path):
    run = tmp_path / "pretrained"
    selfvox.pretrain(shapes_store, out=run, task="rotation", steps=1, batch=2, **SMALL)
    for path in (run, run / "encoder"):
        with pytest.raises(
            WeightsError, match=r"pre-training run.* fine-tune it first: `selfvox finetune"
        ):
            load_model(path)


def test_an_unfinished_pre_training_run_is_called_one_too(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"verb": "pretrain"}))
    with pytest.raises(WeightsError, match="is a pre-training run"):
        load_model(tmp_path)


def test_a_store_or_scans_in_place_of_a_run_are_called_what_they_are(shapes_store):
    with pytest.raises(WeightsError, match="is a store of prepared scans, not a run"):
        load_model(shapes_store)
    scans = shapes_store.parent / "scans"
    with pytest.raises(WeightsError, match=r"contains scans, such as .*\.nii\.gz, and is no run"):
        load_model(scans)
    scan = next(scans.rglob("*.nii.gz"))
    with pytest.raises(WeightsError, match="name a fine-tuning run first, then the scans"):
        load_model(scan)


@pytest.mark.parametrize("content", ["", "[]", '{"verb": 1}', "not json"])
def test_a_run_without_a_network_is_not_taken_for_scans_by_its_pictures(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    Pillow.new("L", (4, 4)).save(tmp_path / "curve.png")
    with pytest.raises(WeightsError, match=r"has no network\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("crop", None), ("classes", []), ("network", {}), ("recipe", 3)]
)
def test_a_damaged_card_is_refused(tmp_path, key, value):
    run = make_run(tmp_path / "run")
    card = run / "network" / "network.json"
    write_checked(card, {**json.loads(card.read_text()), key: value})
    with pytest.raises(WeightsError, match="damaged"):
        load_model(run)
