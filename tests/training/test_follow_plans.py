"""Trainings by nnU-Net's plans: what was not given follows from them, what was given is kept."""

import json

import pytest

import selfvox
from selfvox.errors import UsageError
from selfvox.models.build import load_encoder
from selfvox.runs.card import EncoderCard
from selfvox.settings.verbs import Finetune, Pretrain
from selfvox.training.follow_plans import follow_plans

from ..conftest import blob, write_scan


def settings(tmp_path, file, **options):
    return Pretrain(scans=tmp_path, out=tmp_path / "run", network=str(file), **options)


def test_plans_decide_about_what_is_not_given(write_plans, tmp_path):
    followed, recipe = follow_plans(settings(tmp_path, write_plans()), tmp_path)
    assert followed.crop == (10, 16, 12)
    assert followed.spacing == (3.0, 0.5, 1.0)
    assert (followed.intensity, followed.slices, recipe) == ("mri", None, None)


def test_an_option_overrides_the_plans(write_plans, tmp_path):
    given = settings(tmp_path, write_plans(), crop=(8, 16, 8), size=(16, 16, 16))
    followed, recipe = follow_plans(given, tmp_path)
    assert followed == given
    assert recipe is None


def test_a_store_keeps_its_own_spacing(write_plans, tmp_path, shapes_store):
    followed, _ = follow_plans(settings(tmp_path, write_plans()), shapes_store)
    assert followed.crop == (10, 16, 12)
    assert followed.spacing is None


def test_the_numbers_of_a_ct_are_taken_over(write_plans, tmp_path):
    file = write_plans(normalization_schemes=["CTNormalization"])
    followed, recipe = follow_plans(settings(tmp_path, file), tmp_path)
    assert followed.intensity == "ct"
    window = recipe.intensity[0]
    assert (window.lower, window.upper, window.mean, window.std) == (-90, 210, 40, 20)
    assert recipe.spacing_mm == (3.0, 0.5, 1.0)
    assert recipe.keep_within == 0
    # as the resumed run has them
    assert follow_plans(followed, tmp_path) == (followed, recipe)


def test_2d_plans_choose_the_slices(write_plans, tmp_path):
    name = f"{write_plans(d=2)}:2d"
    labelled = Finetune(labelled=tmp_path, out=tmp_path / "run", encoder="none", network=name)
    followed, _ = follow_plans(labelled, tmp_path)
    assert followed.slices == "sagittal"
    assert followed.spacing is None
    with pytest.raises(UsageError, match="works on sagittal slices; leave --slices out"):
        follow_plans(settings(tmp_path, name, slices="axial"), tmp_path)


def test_other_networks_change_nothing(tmp_path):
    given = settings(tmp_path, "plain")
    assert follow_plans(given, tmp_path) == (given, None)


def test_a_pretraining_and_a_finetuning_have_the_network_of_the_plans(write_plans, tmp_path):
    file = write_plans(forward=(0, 1, 2), spacing=[2.0, 1.2, 1.0])
    for number in range(4):
        scan = tmp_path / "scans" / f"scan_{number}.nii.gz"
        write_scan(scan, blob((20, 17, 12), number))
        label = (blob((20, 17, 12), number) > 0).astype("u1")
        write_scan(tmp_path / "labelled" / f"scan_{number}_seg.nii.gz", label)
        write_scan(tmp_path / "labelled" / scan.name, blob((20, 17, 12), number))
    run = selfvox.pretrain(
        tmp_path / "scans",
        out=tmp_path / "run",
        network=str(file),
        steps=1,
        batch=1,
        workers=1,
        device="cpu",
    )
    _, card = load_encoder(run)
    assert isinstance(card, EncoderCard)
    assert card.network["decoder_blocks"] == [2, 1]
    assert card.crop == (16, 12, 10)
    assert list(card.recipe["spacing_mm"]) == [1.0, 1.2, 2.0]
    record = json.loads((run / "encoder" / "encoder.json").read_text())
    # what is recorded needs the file of plans no more
    file.unlink()
    segmenter = selfvox.finetune(
        tmp_path / "labelled",
        out=tmp_path / "segmenter",
        encoder="none",
        network=str(run),
        crop=(16, 16, 8),
        steps=1,
        workers=1,
        device="cpu",
    )
    network = json.loads((segmenter / "network" / "network.json").read_text())["network"]
    assert network == record["network"]
