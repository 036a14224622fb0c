"""A class that is not learnt is reported while there is time, and at the end."""

from dataclasses import replace

import numpy as np
import pytest

import selfvox
from selfvox.commands import finetune
from selfvox.data import phantom
from selfvox.data.preparation.store import open_store
from selfvox.errors import UsageError
from selfvox.runs.run_folder import read_metrics, read_run_record
from selfvox.runs.weights import read_network_card
from selfvox.training import segmentation_objective
from selfvox.training.lost_classes import find_lost, scans_to_look_at
from selfvox.training.segmentation import Segmentation


def test_a_class_is_lost_where_it_is_0_in_every_scan_that_has_it_and_others_are_learnt():
    names = ["a", "b", "c"]
    everywhere = np.ones((2, 3), bool)
    assert find_lost(names, np.array([[0.5, 0, 0.4], [0.6, 0, 0.4]]), everywhere) == ("b",)
    # found in one scan; others hardly learn; nothing is learnt
    assert find_lost(names, np.array([[0.5, 0.1, 0.4], [0.6, 0, 0.4]]), everywhere) == ()
    assert find_lost(names, np.array([[0.3, 0, 0.3], [0.3, 0, 0.3]]), everywhere) == ()
    assert find_lost(names, np.zeros((2, 3)), everywhere) == ()
    # a scan without the class scores 1 for not predicting it
    dice = np.array([[0.5, 0.0, 0.4], [0.5, 1.0, 0.4]])
    assert find_lost(names, dice, np.array([[1, 1, 1], [1, 0, 1]], bool)) == ("b",)
    # no scan has it: nothing is known
    assert find_lost(names, dice[1:], np.array([[1, 0, 1]], bool)) == ()


@pytest.fixture
def finetuned(shapes_store, tmp_path, small, monkeypatch, capsys):
    """Fine-tune with predictions made of the true labels and the number of the validation."""
    monkeypatch.setattr(finetune, "draw_curve", lambda *_: None)

    def run(predict, **settings):
        class_dice = Segmentation._class_dice
        steps = []

        def corrected(self, label, truth):
            steps.append(len(steps))
            label[:] = predict(truth, len(steps) // 2)
            return class_dice(self, label, truth)

        monkeypatch.setattr(Segmentation, "_class_dice", corrected)
        selfvox.finetune(
            shapes_store,
            out=tmp_path / "run",
            encoder="none",
            steps=6,
            validate_every=1,
            **small | settings,
        )
        lines = capsys.readouterr().err.splitlines()
        return [line for line in lines if "warning" in line]

    return run


def without_lesion(truth, validation):
    return np.where(truth == 2, 0, truth)


def test_a_lost_class_is_reported_once_in_time_and_again_at_the_end(finetuned):
    during, end = finetuned(without_lesion, loss="dice")
    # after a third of the six steps
    assert during.startswith("warning: step 3: Dice of bright is 0 in every validation scan")
    assert "--loss log-dice" in during
    assert "saved network has not learnt all: Dice of bright is 0" in end


def test_a_class_that_recovers_is_not_reported_at_the_end(finetuned):
    def recovers(truth, validation):
        return truth if validation > 4 else without_lesion(truth, validation)

    (during,) = finetuned(recovers, loss="log-dice")
    assert during.startswith("warning: step 3: Dice of bright")
    assert "log-dice" not in during


def test_a_lost_region_is_reported_too(finetuned):
    during, end = finetuned(without_lesion, train_on="regions", regions="whole=1,2;core=2")
    assert "Dice of core is 0" in during
    assert "Dice of core is 0" in end


def test_a_class_that_is_late_is_not_reported(finetuned):
    def late(truth, validation):
        return truth if validation > 2 else without_lesion(truth, validation)

    assert finetuned(late) == []


def test_a_class_that_no_loss_teaches_is_reported_with_a_single_labelled_scan(
    tmp_path, small, monkeypatch, capsys
):
    monkeypatch.setattr(finetune, "draw_curve", lambda *_: None)
    phantom.write(tmp_path / "scans", "shapes", count=1)
    run = selfvox.finetune(
        tmp_path / "scans",
        out=tmp_path / "run",
        encoder="none",
        # without weight in the loss, `bright` is never learnt
        class_weights=(1, 1, 0),
        steps=100,
        learning_rate=0.01,
        augment="none",
        workers=1,
        **small | {"network": {"name": "plain", "channels": [8, 16]}},
    )
    during, end = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "Dice of bright is 0 in every segmented training scan" in during
    assert "the saved network has not learnt all: Dice of bright is 0" in end
    assert read_run_record(run)["lost_classes_saved"] == ["bright"]
    # a training scan gives no score
    assert read_network_card(run).score is None
    assert not any("dice" in name for line in read_metrics(run) for name in line)
    assert not (run / "network" / "validation.csv").exists()


def test_training_scans_are_looked_at_late_and_only_where_none_validates(
    shapes_store, tmp_path, small, monkeypatch
):
    monkeypatch.setattr(finetune, "draw_curve", lambda *_: None)
    validate = Segmentation.validate
    looks = []

    def watched(self, network, fabric, store, cases, crop):
        looks.append([case.id for case in cases])
        return validate(self, network, fabric, store, cases, crop)

    monkeypatch.setattr(Segmentation, "validate", watched)
    phantom.write(tmp_path / "scans", "shapes", count=4)
    options = {**small, "encoder": "none", "steps": 6, "validate_every": 1, "workers": 1}
    selfvox.finetune(tmp_path / "scans", out=tmp_path / "alone", **options)
    # of six steps, those after the second; three of four scans
    assert looks == [looks[0]] * 4
    assert len(set(looks[0])) == 3
    looks.clear()
    selfvox.finetune(shapes_store, out=tmp_path / "validated", **options)
    assert looks == [list(open_store(shapes_store).split().validation)] * 6


def test_the_scans_that_are_looked_at_have_all_classes_and_are_small(shapes_store):
    first = open_store(shapes_store).cases[0]

    def case(name, edge, *values):
        return replace(first, id=name, shape=(edge,) * 3, label_values=values)

    large = case("large", 40, 0, 1, 2)
    small = case("small", 20, 0, 1, 2)
    rare = case("rare", 50, 0, 3)
    plain = case("plain", 30, 0, 1)
    empty = case("empty", 10, 0)
    # both classes in the smaller scan, the third class, and of those with nothing new the smallest
    assert scans_to_look_at([large, plain, rare, empty, small]) == [small, rare, empty]
    assert scans_to_look_at([large]) == [large]


@pytest.mark.parametrize("weights", [(1.0, 2.0), (0.0, 0.0, 0.0)])
def test_class_weights_are_one_for_each_class(weights, shapes_store, tmp_path, small):
    with pytest.raises(UsageError, match=r"class_weights: give 3 numbers .*background, dark"):
        selfvox.finetune(
            shapes_store, out=tmp_path / "run", encoder="none", class_weights=weights, **small
        )


def test_class_weights_reach_the_loss(shapes_store, tmp_path, small, monkeypatch):
    monkeypatch.setattr(finetune, "draw_curve", lambda *_: None)
    received = []
    loss = segmentation_objective.LOSSES["log-dice", False]

    def recorded(logits, target, weights, trusted):
        received.append(weights.tolist())
        return loss(logits, target, weights, trusted=trusted)

    monkeypatch.setitem(segmentation_objective.LOSSES, ("log-dice", False), recorded)
    selfvox.finetune(
        shapes_store,
        out=tmp_path / "run",
        encoder="none",
        class_weights=(1, 2, 5),
        steps=1,
        **small,
    )
    assert received == [[1, 2, 5]]


def test_a_class_that_no_training_scan_has_is_named_at_the_start(
    shapes_store, tmp_path, small, monkeypatch, capsys
):
    opened = Segmentation.untaught
    monkeypatch.setattr(finetune, "draw_curve", lambda *_: None)

    def without_bright(self, training):
        cases = [replace(case, label_values=(0, 1)) for case in training]
        return opened(self, cases)

    monkeypatch.setattr(Segmentation, "untaught", without_bright)
    selfvox.finetune(shapes_store, out=tmp_path / "run", encoder="none", steps=1, **small)
    printed = capsys.readouterr().err
    assert "warning: no training scan has the class bright, which cannot be learnt" in printed
    assert "has the class dark" not in printed
