import dataclasses
import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

import selfvox
from selfvox.data import phantom
from selfvox.data.preparation.store import open_store
from selfvox.ops.metrics import dice_per_class
from selfvox.registration import copies, picture, registered_pairs
from selfvox.registration.copies import CopyRequest, check_volumes, make_copies
from selfvox.registration.pairs import choose_pairs
from selfvox.registration.register import centred_positions, warp_label
from selfvox.registration.registered_pairs import RegisteredPair, read_label, read_scan
from selfvox.registration.transfer import carries_labels


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabelled")
    # of this seed, class 1 is on the same side as in the labelled scan
    phantom.write(folder / "scans", "shapes", count=3, seed=9)
    selfvox.prepare(folder / "scans", out=folder / "store", workers=1)
    return open_store(folder / "store")


@pytest.fixture
def request_of(shapes_store, unlabelled):
    """Copies of one labelled scan, the first, on three other people."""
    labelled = open_store(shapes_store)
    training = list(labelled.cases[:1])
    others = tuple(
        dataclasses.replace(case, subject=f"other {case.subject}") for case in unlabelled.cases
    )

    def make(**changes):
        request = CopyRequest(
            store=labelled,
            training=training,
            unlabelled=dataclasses.replace(unlabelled, cases=others),
            registrations=3,
            seed=0,
            workers=1,
        )
        return dataclasses.replace(request, **changes)

    return make


def files(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.npy"))
    }


@pytest.fixture(scope="module")
def registrations():
    """How often a pair was registered in this process."""
    return SimpleNamespace(count=0)


@pytest.fixture(autouse=True)
def counted(monkeypatch, registrations):
    original = registered_pairs.register_pair

    def register_pair(job):
        registrations.count += 1
        return original(job)

    monkeypatch.setattr(registered_pairs, "register_pair", register_pair)


def test_copies_have_the_anatomy_of_the_unlabelled_scan_and_are_kept(
    request_of, tmp_path, registrations, unlabelled
):
    made = make_copies(tmp_path, request_of())
    assert len(made.cases) == 3 * len(copies.STRENGTHS)
    assert len(made.anatomies) == 3
    before = files(tmp_path)
    labelled = request_of().training[0]
    moving = read_label(request_of().store, labelled)
    full_strength = made.cases[len(copies.STRENGTHS) - 1 :: len(copies.STRENGTHS)]
    request = request_of()
    pairs = choose_pairs(request.training, request.unlabelled.cases, 3, request.seed)
    for (_, anatomy), copy in zip(pairs, full_strength, strict=True):
        truth = read_label(unlabelled, anatomy)
        assert copy.subject == labelled.subject  # whose label it is
        spacings = (labelled.spacing_mm, anatomy.spacing_mm)
        centred = centred_positions(moving.shape, truth.shape, *spacings)
        unregistered = dice_per_class(warp_label(moving, centred), truth, 3)
        carried = dice_per_class(read_label(made.store, copy), truth, 3)
        assert np.mean(carried) > np.mean(unregistered) + 0.1
        # an exact pair: in every phantom class 1 is dark and class 2 bright
        image = read_scan(made.store, copy)[0]
        assert image[read_label(made.store, copy) == 1].mean() < 0
        assert image[read_label(made.store, copy) == 2].mean() > 0
    registrations.count = 0
    again = make_copies(tmp_path, request_of())
    assert registrations.count == 0
    assert again.cases == made.cases
    assert files(tmp_path) == before
    assert (tmp_path / "copies.png").exists()


def test_a_run_killed_between_two_pairs_goes_on_to_the_same_files(
    request_of, tmp_path, registrations, monkeypatch
):
    counting = registered_pairs.register_pair

    def killed_at_the_second(job):
        if registrations.count == 1:
            raise KeyboardInterrupt
        return counting(job)

    registrations.count = 0
    with monkeypatch.context() as patch:
        patch.setattr(registered_pairs, "register_pair", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            make_copies(tmp_path / "killed", request_of(registrations=2))
    registrations.count = 0
    resumed = make_copies(tmp_path / "killed", request_of(registrations=2))
    assert registrations.count == 1
    whole = make_copies(tmp_path / "whole", request_of(registrations=2))
    assert resumed.cases == whole.cases
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_damaged_unlabelled_scan_is_named_and_left_out(request_of, tmp_path, unlabelled, capsys):
    damaged = unlabelled.cases[1]
    cases = list(request_of().unlabelled.cases)
    cases[1] = dataclasses.replace(
        cases[1], sha256={**damaged.sha256, "images": "0" * 64}, stamps={}
    )
    scans = dataclasses.replace(unlabelled, cases=tuple(cases))
    made = make_copies(tmp_path, request_of(unlabelled=scans))
    assert len(made.anatomies) == 2
    printed = capsys.readouterr().err
    assert f"onto {damaged.id}: " in printed
    assert "damaged" in printed
    assert damaged.id in (tmp_path / "registrations.csv").read_text()


def test_registration_that_does_not_carry_labels_is_reported(
    request_of, tmp_path, monkeypatch, capsys
):
    store = request_of().store
    monkeypatch.setattr("selfvox.registration.transfer.LEAST_DICE", 1.01)
    assert not carries_labels(tmp_path, store, store.cases[:2], [], 1)
    printed = capsys.readouterr().err
    assert "2 pairs of labelled scans" in printed
    assert "copies would mislead" in printed


def pair(*warped, failure=""):
    return RegisteredPair(
        labelled="l",
        unlabelled="u",
        similarity_before=0.5,
        similarity=0.9,
        folded=0.0,
        volumes=(100, 100),
        warped_volumes=warped,
        dice=(),
        copies=(),
        seconds=0.0,
        failure=failure,
    )


def test_a_volume_unlike_those_of_the_other_pairs_is_implausible():
    pairs = [pair(100, 300), pair(90, 310), pair(110, 40), pair(1, 1, failure="folds")]
    checked = check_volumes(pairs, ["organ", "lesion"])
    assert [bool(item.failure) for item in checked] == [False, False, True, True]
    assert checked[2].failure.startswith("lesion has 0.40 times")
    # all alike: a labelled person with small ventricles is no failure
    alike = [pair(100, 900), pair(90, 950), pair(110, 880)]
    assert not any(item.failure for item in check_volumes(alike, ["organ", "lesion"]))


def test_the_slices_of_pairs_have_the_directions_of_their_edges():
    axes = Figure().subplots()
    picture._draw(axes, np.zeros((6, 5, 4)), np.zeros((6, 5, 4), dtype=int))
    assert [text.get_text() for text in axes.texts] == ["L", "A"]
