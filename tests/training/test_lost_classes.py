"""A class that is not learnt is reported while there is time, and at the end."""

import numpy as np
import pytest

import selfvox
from selfvox.commands import finetune
from selfvox.errors import UsageError
from selfvox.training import segmentation_objective
from selfvox.training.lost_classes import find_lost
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
