"""The probe finds what is there and nothing else, and leaves training as it is."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import selfvox
from selfvox.data import phantom
from selfvox.data.preparation.split import read_split
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.encoder import Encoder
from selfvox.runs.atomic_files import sha256
from selfvox.runs.run_folder import read_metrics
from selfvox.training import pretext_objective
from selfvox.training.probe import (
    balanced_accuracy,
    classify,
    frozen_encoder,
    probe,
    probe_run,
    sample_maps,
    split_probe_cases,
)

CROP = (16, 16, 16)


class Sees(Encoder):
    """An encoder with one map, the image itself."""

    spatial_dims = 3
    in_channels = 1
    channels = (1,)
    strides = ((1, 1, 1),)

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return [x]


@pytest.fixture(scope="module")
def intensity_store(tmp_path_factory):
    """Volumes with the label as intensity: 0, 1 and 2 in blocks."""
    folder = tmp_path_factory.mktemp("intensity")
    phantom.write(folder / "scans", "shapes", count=6)
    selfvox.prepare(folder / "scans", out=folder / "store", workers=1)
    store = open_store(folder / "store")
    rng = np.random.default_rng(0)
    truth = {
        case.id: np.kron(rng.integers(3, size=(6, 6, 6)), np.ones((4, 4, 4), int))
        for case in store.cases
    }
    for case in store.cases:
        for kind, values in (
            ("images", truth[case.id][None].astype(np.float16)),
            ("labels", truth[case.id].astype(np.uint8)),
            ("foreground", np.argwhere(truth[case.id])[:, [0, 0, 1, 2]]),
        ):
            store._open[store.path, kind, case.id] = SimpleNamespace(values=values)
    return store


def test_separable_features_score_1_and_the_encoder_is_left_as_it_was(
    intensity_store,
):
    training, scored = split_probe_cases(intensity_store, (), seed=0)
    assert {case.subject for case in training}.isdisjoint(case.subject for case in scored)
    encoder = Sees().train()
    state = torch.random.get_rng_state()
    scores = probe(encoder, intensity_store, training, scored, CROP, 0)
    assert scores == {"linear": 1.0, "knn": 1.0, "chance": pytest.approx(1 / 3)}
    assert encoder.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_score_is_that_of_the_test_cases(intensity_store, monkeypatch):
    training, test = split_probe_cases(intensity_store, (), seed=0)
    for case in test:
        # every voxel looks like the class before its own: all predictions are wrong
        labels = (intensity_store.path, "labels", case.id)
        wrong = SimpleNamespace(values=(intensity_store._open[labels].values + 1) % 3)
        monkeypatch.setitem(intensity_store._open, labels, wrong)
    scores = probe(Sees(), intensity_store, training, test, CROP, 0)
    assert (scores["linear"], scores["knn"]) == (0.0, 0.0)
    assert probe(Sees(), intensity_store, training, training, CROP, 0)["linear"] == 1.0


class SeesFinely(Sees):
    """An encoder with a coarsest map that must not be read."""

    channels = (1, 1)
    strides = ((1, 1, 1), (2, 2, 2))

    def forward(self, x):
        return [x, F.avg_pool3d(x, 2) * torch.nan]


def test_the_coarsest_map_is_not_read(intensity_store):
    scores = probe(
        SeesFinely(), intensity_store, *split_probe_cases(intensity_store, (), seed=0), CROP, 0
    )
    assert scores["linear"] == scores["knn"] == 1.0


def test_labels_that_have_nothing_to_do_with_the_features_stay_near_chance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 20))
    y = rng.integers(4, size=2000)
    scores = classify(x[:1000], y[:1000], x[1000:], y[1000:])
    assert scores["chance"] == 0.25
    assert scores["linear"] == pytest.approx(0.25, abs=0.06)
    assert scores["knn"] == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize(("learnt", "scored"), [(3, 5), (5, 3)])
def test_chance_is_what_a_guess_scores_also_of_classes_that_were_not_learnt(learnt, scored):
    rng = np.random.default_rng(0)
    y = rng.integers(learnt, size=3000)
    y_new = rng.integers(scored, size=30000)
    scores = classify(rng.normal(size=(3000, 5)), y, rng.normal(size=(30000, 5)), y_new)
    guess = balanced_accuracy(rng.integers(learnt, size=30000), y_new)
    assert scores["chance"] == pytest.approx(0.2) == pytest.approx(guess, abs=0.01)


def test_balanced_accuracy_counts_every_class_alike():
    truth = np.array([0] * 9 + [1])
    answer = np.zeros(10, int)
    assert balanced_accuracy(answer, truth) == 0.5


@pytest.mark.parametrize("crop", [(8, 12), (8, 8, 12)])
def test_sampled_maps_equal_interpolated_maps(crop):
    maps = [torch.randn(3, *crop), torch.randn(2, *(edge // 4 for edge in crop))]
    places = np.stack(
        [np.random.default_rng(axis).integers(edge, size=20) for axis, edge in enumerate(crop)], 1
    )
    # corners
    places[0] = 0
    places[1] = [edge - 1 for edge in crop]
    mode = "trilinear" if len(crop) == 3 else "bilinear"
    interpolated = torch.cat(
        [F.interpolate(level[None], size=crop, mode=mode)[0] for level in maps]
    )
    expected = torch.stack([interpolated[(slice(None), *place)] for place in places.tolist()])
    torch.testing.assert_close(sample_maps(maps, places, crop), expected)


def test_test_subjects_are_neither_learnt_from_nor_scored(shapes_store):
    store = open_store(shapes_store)
    split = read_split(shapes_store / "split.json")
    training, scored = split_probe_cases(store, (), seed=0)
    assert {case.subject for case in training} == set(split.train)
    assert {case.subject for case in scored} == set(split.validation)
    # nor those that are for testing in another store, under whatever name
    aside = [case for case in store.cases if case.subject == split.train[0]]
    assert {case.subject for case in split_probe_cases(store, aside, 0)[0]} == set(split.train[1:])


def test_fewer_than_two_labelled_subjects_are_refused(shapes_store):
    store = open_store(shapes_store)
    split = read_split(shapes_store / "split.json")
    aside = [case for case in store.cases if case.subject != split.train[0]]
    with pytest.raises(DataError, match=r"has labels of 1 subjects .* takes at least two"):
        split_probe_cases(store, aside, 0)
    with pytest.raises(DataError, match=r"^labelled: has labels of 1"):
        split_probe_cases(store, aside, 0, scans=Path("labelled"))


def test_whole_scans_are_classified_by_their_grade(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = ["image,grade"]
    for number in range(12):
        picture = rng.integers(0, 60, size=(32, 32))
        if number % 2:
            picture[8:24, 8:24] += 180
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / f"p{number}.png")
        rows.append(f"p{number}.png,{number % 2}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    selfvox.prepare(tmp_path / "table.csv", out=tmp_path / "store", workers=1)
    store = open_store(tmp_path / "store")
    assert probe(Sees(), store, *split_probe_cases(store, (), 0), (32, 32), 0) == {
        "linear": 1.0,
        "knn": 1.0,
        "chance": 0.5,
    }


def test_a_frozen_encoder_keeps_its_statistics_and_its_mode():
    encoder = build_encoder(
        plan_encoder({"channels": (4, 8), "norm": "batch"}, CROP, (1, 1, 1)), 3, 1
    )
    initial = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    with frozen_encoder(encoder):
        assert not encoder.embed(torch.randn(2, 1, *CROP)).requires_grad
    assert encoder.training
    assert all(torch.equal(buffer, initial[name]) for name, buffer in encoder.named_buffers())


@pytest.fixture
def few_voxels(monkeypatch):
    monkeypatch.setattr("selfvox.training.probe.VOXELS", 500)


def test_measuring_changes_no_weight_and_reports_the_untrained_encoder_too(
    shapes_store, tmp_path, small, few_voxels
):
    # a batch norm has statistics too, which measuring must leave alone
    settings = {
        **small,
        "network": {"channels": [4, 8], "norm": "batch"},
        "task": "rotation",
        "steps": 10,
        "batch": 2,
    }
    with_probe = selfvox.pretrain(
        shapes_store, out=tmp_path / "with", probe=shapes_store, **settings
    )
    without = selfvox.pretrain(shapes_store, out=tmp_path / "without", **settings)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "selfvox.training.monitor.TrainingMonitor._is_measured", lambda self, step: False
        )
        unmeasured = selfvox.pretrain(shapes_store, out=tmp_path / "unmeasured", **settings)
    digests = {
        sha256(run / "encoder" / "weights.safetensors") for run in (with_probe, without, unmeasured)
    }
    assert len(digests) == 1
    probed = [line for line in read_metrics(with_probe) if "probe/linear" in line]
    assert [line["step"] for line in probed] == [2, 4, 6, 8, 10]
    assert len({line["probe/untrained_linear"] for line in probed}) == 1
    assert not any("probe/linear" in line for line in read_metrics(without))
    # the finished run, asked again, says the same
    scores = probe_run(with_probe, open_store(shapes_store), labels=4, seed=0)
    assert scores["linear"] == pytest.approx(probed[-1]["probe/linear"], abs=0.02)


def test_a_resumed_run_measures_the_same(shapes_store, tmp_path, small, few_voxels, monkeypatch):
    settings = {
        **small,
        "task": "rotation",
        "steps": 10,
        "batch": 2,
        "save_every": 6,
        "probe": shapes_store,
    }
    selfvox.pretrain(shapes_store, out=tmp_path / "alone", **settings)
    forward = pretext_objective.PretextObjective.forward

    def crashing(self, batch, step, rng):
        if step == 7:
            raise KeyboardInterrupt
        return forward(self, batch, step, rng)

    with monkeypatch.context() as patched:
        patched.setattr(pretext_objective.PretextObjective, "forward", crashing)
        with pytest.raises(KeyboardInterrupt):
            selfvox.pretrain(shapes_store, out=tmp_path / "resumed", **settings)
    selfvox.pretrain(shapes_store, out=tmp_path / "resumed", resume=True, **settings)
    alone, resumed = (
        [
            {key: value for key, value in line.items() if "/" in key}
            for line in read_metrics(tmp_path / name)
        ]
        for name in ("alone", "resumed")
    )
    assert alone == resumed


def test_scans_of_another_folder_are_prepared_by_the_encoders_recipe(
    shapes_store, tmp_path, small, few_voxels
):
    phantom.write(tmp_path / "labelled", "shapes", count=3, seed=5)
    run = selfvox.pretrain(
        shapes_store,
        out=tmp_path / "run",
        task="rotation",
        steps=1,
        batch=2,
        probe=tmp_path / "labelled",
        workers=1,
        **small,
    )
    recipes = [
        json.loads((store / "manifest.json").read_text())["recipe"]
        for store in (shapes_store, run / "probe")
    ]
    assert recipes[0] == recipes[1]


def test_scans_without_labels_are_no_probe(shapes_store, tmp_path, small):
    phantom.write(tmp_path / "bare", "shapes", count=3, labelled=0)
    with pytest.raises(DataError, match="has neither labels nor grades"):
        selfvox.pretrain(
            shapes_store,
            out=tmp_path / "run",
            task="rotation",
            probe=tmp_path / "bare",
            workers=1,
            **small,
        )
