import dataclasses
import math
from types import SimpleNamespace

import pytest

from selfvox.registration.transfer import CHECKS, _pairs, class_dice

CLASSES = {1: "organ", 2: "lesion"}


def scan(name, *values):
    return SimpleNamespace(id=name, subject=name, label_values=(0, *values))


@dataclasses.dataclass
class Registered:
    dice: tuple[float, ...]
    volumes: tuple[int, ...] = (100, 100)


def test_a_class_that_a_scan_lacks_does_not_count():
    ann, bob, cyd = scan("ann", 1, 2), scan("bob", 1), scan("cyd", 1)
    pairs = [(bob, cyd), (ann, bob), (bob, ann)]
    # absent from both scans, the Dice of the lesion is 1
    registered = [Registered((0.8, 1.0)), Registered((0.6, 0.0)), Registered((0.7, 0.0))]
    scores = class_dice(registered, pairs, CLASSES)
    assert scores["organ"] == pytest.approx(0.7)
    assert math.isnan(scores["lesion"])


def test_lesions_in_different_places_and_failed_registrations_count_as_0():
    ann, bob = scan("ann", 1, 2), scan("bob", 1, 2)
    registered = [Registered((0.8, 0.1)), Registered((), ())]
    scores = class_dice(registered, [(ann, bob), (bob, ann)], CLASSES)
    assert scores == pytest.approx({"organ": 0.4, "lesion": 0.05})


def test_a_class_that_resampling_removed_does_not_count():
    ann, bob = scan("ann", 1, 2), scan("bob", 1, 2)
    scores = class_dice([Registered((0.8, 1.0), (100, 0))], [(ann, bob)], CLASSES)
    assert math.isnan(scores["lesion"])


def test_two_scans_of_one_person_are_checked_on_the_validation_scans():
    visits = [dataclasses.make_dataclass("Visit", ["id", "subject"])(n, "ann") for n in "12"]
    pairs = _pairs(visits, [scan("bob"), visits[0]])
    assert [(moving.id, fixed.id) for moving, fixed in pairs] == [("1", "bob"), ("2", "bob")]


def test_the_pairs_are_taken_evenly():
    scans = [scan(str(number)) for number in range(20)]
    pairs = _pairs(scans, [])
    shifts = {(int(fixed.id) - int(moving.id)) % 20 for moving, fixed in pairs}
    assert len(pairs) == CHECKS
    # the first and the last of all shifts, and four in between
    assert shifts == {1, 4, 8, 12, 16, 19}
