import math
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch

import selfvox
from selfvox.data import phantom
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import Store, open_store
from selfvox.errors import DataError, UsageError
from selfvox.runs.atomic_files import sha256
from selfvox.runs.run_folder import Run, read_metrics, read_run_record
from selfvox.runs.weights import read_network, state_tensors
from selfvox.settings.verbs import Finetune
from selfvox.training import network_teacher, pseudo_labels, segmentation, unlabelled
from selfvox.training.downstream import Validation
from selfvox.training.unlabelled import Teaching


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabelled") / "scans"
    phantom.write(folder, "shapes", count=2, labelled=0, seed=9)
    for path in (folder / "images").iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    (folder / "dataset.json").unlink()
    return folder / "images"


def test_copies_on_unlabelled_anatomies_train_too(shapes_store, tmp_path, small, scans, capsys):
    out = tmp_path / "run"
    options = dict(encoder="none", out=out, labels=1, steps=4, unlabelled=scans, workers=1)
    selfvox.finetune(shapes_store, **options, **small)
    printed = capsys.readouterr().err
    assert "2 registrations of 1 labelled to 2 of 2 unlabelled scans" in printed
    assert "2 pairs of labelled scans" in printed  # the two validation scans check it
    assert (out / "copies" / "copies.png").exists()
    _, card = read_network(out / "network")
    names = {"other-sub-001", "other-sub-002"}
    assert names <= set(card.seen["subjects"])
    assert "the teacher of the unlabelled scans: atlas" in printed
    score = read_network(out / "network")[1].score
    # rich breaks long lines
    assert f"trainwithout--unlabelledandcompareitsvalidationdicewith{score:.3f}" in "".join(
        printed.split()
    )


def trust_all(monkeypatch):
    """Let a network teach that has hardly learnt."""
    monkeypatch.setattr(network_teacher, "LEAST_DICE", -math.inf)
    monkeypatch.setattr(pseudo_labels, "LEAST_TRUST", 0.0)


def weights(run):
    return sha256(run / "network" / "weights.safetensors")


OPTIONS = {"encoder": "none", "labels": 2, "steps": 6, "workers": 1, "validate_every": 2}


def test_the_network_teaches_after_a_training_on_the_labels_alone(
    shapes_store, tmp_path, small, scans, monkeypatch, capsys
):
    trust_all(monkeypatch)
    scores = count(0, -1)
    monkeypatch.setattr(
        segmentation.Segmentation, "validate", lambda *_: Validation(next(scores), {})
    )
    label_scan = pseudo_labels.label_scan
    labelling = []

    def watched(teacher, image):
        labelling.append(state_tensors(teacher.network))
        return label_scan(teacher, image)

    monkeypatch.setattr(pseudo_labels, "label_scan", watched)
    out = tmp_path / "run"
    options = {**small, **OPTIONS, "keep": "best"}
    selfvox.finetune(shapes_store, out=tmp_path / "plain", **options)
    selfvox.finetune(shapes_store, out=out, unlabelled=scans, teacher="network", **options)
    printed = capsys.readouterr().err
    assert "the network teaches: 2 trainings" in printed
    assert "8 passes over 2 scans" in printed
    assert weights(out / "teacher-1") == weights(tmp_path / "plain") != weights(out)
    # the validations of the plain run, of the teacher, and of the last network, best first
    said = " ".join(printed.split())
    assert "validation dice of 2 scans: -3.000 before the network taught itself, -6.000" in said
    assert "teacher-1` is better" in said
    _, card = read_network(out / "network")
    assert {"other-sub-001", "other-sub-002"} <= set(card.seen["subjects"])
    assert not (out / "copies").exists()
    # the best weights of the teacher label, not its last ones
    saved, card = read_network(out / "teacher-1" / "network")
    assert card.step == 2
    for tensors in labelling:
        assert all(torch.equal(tensors[name], saved[name]) for name in saved)
    assert len(labelling) == 2


@pytest.mark.parametrize(("teacher", "kept"), [("network", "none"), ("both", "atlas")])
def test_a_network_that_has_not_learnt_does_not_teach_and_is_kept(
    teacher, kept, shapes_store, tmp_path, small, scans, monkeypatch, capsys
):
    monkeypatch.setattr(unlabelled, "check_installed", lambda: None)
    monkeypatch.setattr(unlabelled, "carries_labels", lambda *_: True)
    monkeypatch.setattr(unlabelled, "make_copies", lambda *_: None)
    monkeypatch.setattr(
        segmentation.Segmentation, "validate", lambda *_: Validation(0.29, {"dice_mean": 0.29})
    )

    def label_scan(*_):
        raise AssertionError("a scan was labelled")

    monkeypatch.setattr(pseudo_labels, "label_scan", label_scan)
    out = tmp_path / "run"
    options = {**small, **OPTIONS, "unlabelled": scans, "teacher": teacher}
    selfvox.finetune(shapes_store, out=out, **options)
    printed = " ".join(capsys.readouterr().err.split())
    assert "the network does not teach: its validation Dice of 0.29 is below 0.3" in printed
    assert "before the network taught itself" not in printed
    assert weights(out) == weights(out / "teacher-1")
    assert read_metrics(out) == read_metrics(out / "teacher-1")
    record = read_run_record(out)
    assert (record["teacher"], record["status"]) == (kept, "finished")
    selfvox.finetune(shapes_store, out=out, resume=True, **options)
    assert weights(out) == weights(out / "teacher-1")


def test_without_validation_scans_nothing_is_said_to_help(tmp_path, monkeypatch, capsys):
    card = SimpleNamespace(score=None, score_name="dice")
    monkeypatch.setattr(unlabelled, "read_network_card", lambda _: card)
    unlabelled.report_gain(tmp_path, Teaching(), 0)
    assert capsys.readouterr().err == ""
    unlabelled.report_gain(tmp_path, Teaching(copies=object()), 0)
    printed = " ".join(capsys.readouterr().err.split())
    assert "nothing shows whether --unlabelled helps here" in printed
    # of a network that taught with success, no other is recommended
    scores = {tmp_path: 0.8, tmp_path / "teacher-1": 0.7}
    monkeypatch.setattr(
        unlabelled,
        "read_network_card",
        lambda run: SimpleNamespace(score=scores[run], score_name="dice"),
    )
    unlabelled.report_gain(tmp_path, Teaching(scans=object()), 5)
    printed = " ".join(capsys.readouterr().err.split())
    assert "validation dice of 5 scans: 0.700 before the network taught itself, 0.800" in printed
    assert "is better" not in printed


def test_a_scan_of_an_earlier_round_counts_as_seen(
    shapes_store, tmp_path, small, scans, monkeypatch
):
    monkeypatch.setattr(network_teacher, "LEAST_DICE", -math.inf)
    monkeypatch.setattr(pseudo_labels, "PASSES", 2)
    trusted = count()

    def check_trust(entry):
        # in the first round both scans, in the second one alone
        return entry if next(trusted) < 3 else replace(entry, failure="not trusted")

    monkeypatch.setattr(pseudo_labels, "check_trust", check_trust)
    options = {**small, **OPTIONS, "steps": 1, "teacher": "network", "rounds": 2}
    out = selfvox.finetune(shapes_store, out=tmp_path / "run", unlabelled=scans, **options)
    _, card = read_network(out / "network")
    assert {"other-sub-001", "other-sub-002"} <= set(card.seen["subjects"])


def test_the_network_teaches_where_registration_does_not_carry_labels(
    shapes_store, tmp_path, small, scans, monkeypatch, capsys
):
    trust_all(monkeypatch)
    monkeypatch.setattr("selfvox.registration.transfer.LEAST_DICE", 1.01)
    options = {**small, **OPTIONS, "steps": 2, "labels": 1, "unlabelled": scans}
    selfvox.finetune(shapes_store, out=tmp_path / "run", **options)
    printed = capsys.readouterr().err
    assert "copies would mislead" in printed
    assert "the teacher of the unlabelled scans: network" in printed
    assert (tmp_path / "run" / "teacher-1" / "network").exists()


def test_scans_prepared_in_another_way_are_refused(shapes_store, tmp_path, small, scans):
    store = tmp_path / "store"
    selfvox.prepare(scans, out=store, size=(16, 16, 16), workers=1)
    with pytest.raises(DataError, match="prepared in another way than the labelled"):
        selfvox.finetune(
            shapes_store, encoder="none", out=tmp_path / "run", unlabelled=store, **small
        )


def test_a_store_keeps_its_own_test_and_validation_subjects_out(
    shapes_store, tmp_path, monkeypatch, capsys
):
    store = open_store(shapes_store)
    # the same scans under other names, some of them held out, and no subject of the labelled ones
    cases = tuple(replace(case, subject=f"other-{case.subject}") for case in store.cases)
    own = Split(
        train=tuple(case.subject for case in cases[3:]),
        validation=(cases[0].subject,),
        test=(cases[1].subject, cases[2].subject),
        seed=0,
    )
    monkeypatch.setattr(unlabelled, "open_store", lambda _: replace(store, cases=cases))
    monkeypatch.setattr(Store, "split", lambda _: own)
    settings = Finetune(labelled=shapes_store, encoder="none", out=tmp_path)
    kept = unlabelled._prepare(shapes_store, tmp_path / "out", settings, store)
    assert [case.subject for case in kept.cases] == list(own.train)
    assert "3 test or validation scans of" in capsys.readouterr().err


def test_unlabelled_scans_are_prepared_once_for_all_folds(
    shapes_store, tmp_path, small, scans, monkeypatch
):
    trust_all(monkeypatch)
    monkeypatch.setattr(pseudo_labels, "PASSES", 2)
    options = {**small, **OPTIONS, "labels": 4, "steps": 1, "teacher": "network", "folds": 2}
    out = selfvox.finetune(shapes_store, out=tmp_path / "run", unlabelled=scans, **options)
    assert len(open_store(out / "unlabelled").cases) == 2
    assert not list(out.glob("fold_*/unlabelled"))


@pytest.fixture
def taught(shapes_store, tmp_path, monkeypatch):
    """Calls `teach` for a run; who can register and the scans are replaced."""
    store = open_store(shapes_store)
    monkeypatch.setattr(unlabelled, "_prepare", lambda *_: store)
    monkeypatch.setattr(unlabelled, "keep_usable", lambda scans, *_: scans)
    monkeypatch.setattr(unlabelled, "make_copies", lambda *_: None)
    monkeypatch.setattr(unlabelled, "check_installed", lambda: None)
    monkeypatch.setattr(unlabelled, "carries_labels", lambda *_: True)
    settings = Finetune(
        labelled=shapes_store, encoder="none", out=tmp_path, unlabelled=shapes_store
    )

    def teach(run, subjects=2):
        training = store.cases[:subjects]
        return unlabelled.teach(run, settings, store, None, training, [], tmp_path)

    return teach


def no_greedy():
    raise UsageError("greedy is not installed")


def test_a_resumed_run_keeps_its_teacher(taught, tmp_path, monkeypatch):
    run = Run(tmp_path, {})
    assert taught(run).scans is None
    assert run.record["teacher"] == "atlas"
    monkeypatch.setattr(unlabelled, "carries_labels", lambda *_: False)
    assert taught(Run(tmp_path, run.record)).scans is None
    monkeypatch.setattr(unlabelled, "check_installed", no_greedy)
    with pytest.raises(UsageError, match="greedy is not installed"):
        taught(Run(tmp_path, run.record))


def test_the_teacher_of_a_single_labelled_subject_is_not_chosen(taught, tmp_path):
    with pytest.raises(UsageError, match="with one labelled subject nothing shows who should"):
        taught(Run(tmp_path, {}), subjects=1)


def test_a_teacher_of_another_run_is_not_used_again(taught, tmp_path):
    earlier = tmp_path / "teacher-1"
    earlier.mkdir()
    taught(Run(tmp_path, {"teacher": "network"}))
    assert earlier.exists()  # of this run, which continues
    taught(Run(tmp_path, {}))
    assert not earlier.exists()


def test_the_layout_of_the_labelled_scans_is_not_forced_on_others(
    shapes_store, tmp_path, monkeypatch
):
    store = open_store(shapes_store)
    sources = []

    def find_scans(_scans, _out, preparation):
        sources.append(preparation.source)
        raise DataError("seen")

    monkeypatch.setattr(unlabelled, "find_scans", find_scans)
    settings = Finetune(
        labelled=tmp_path / "labelled", encoder="none", out=tmp_path / "run", source="decathlon"
    )
    for scans in (tmp_path / "others", tmp_path / "labelled"):
        with pytest.raises(DataError, match="seen"):
            unlabelled._prepare(scans, tmp_path / "out", settings, store)
    assert sources == ["auto", "decathlon"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"registrations": 3}, "registrations: is about unlabelled"),
        ({"teacher": "network"}, "teacher: is about unlabelled"),
        ({"unlabelled": "scans", "teacher": "network", "registrations": 3}, "registrations: "),
        ({"unlabelled": "scans", "teacher": "atlas", "rounds": 2}, "rounds: "),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        selfvox.finetune("scans", encoder="none", out="run", **options)
