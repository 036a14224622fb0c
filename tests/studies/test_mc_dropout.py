"""Passes of Monte-Carlo dropout over a study's runs; predictions and scores are faked."""

import csv
import dataclasses
import hashlib

import numpy as np
import pytest
from PIL import Image

import selfvox
from selfvox.data.formats import image as images
from selfvox.errors import UsageError
from selfvox.evaluation.calibration import SCORE_NAMES
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.card import SegmenterCard
from selfvox.studies import mc_dropout, mc_dropout_figures
from selfvox.studies.mc_dropout_calibration import calibration_columns
from selfvox.studies.random_effects import error_of_mean

from .test_table import result

CARD = SegmenterCard(
    network={"name": "plain"},
    spatial_dims=3,
    in_channels=1,
    crop=(8, 8, 8),
    slices=None,
    recipe={},
    seen={"subjects": [], "image_hashes": []},
    seed=0,
    encoder="from scratch",
    head="full",
    classes={0: "background", 1: "dark", 2: "bright"},
    regions=None,
    trained_on="classes",
)
GAIN = 0.1
DRAW = mc_dropout_figures.draw


def chance(*parts):
    return hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[0] / 512


def rows(path):
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def predicted_study(write_plan, pretended, tmp_path, monkeypatch):
    """A pretended study and what its runs were asked."""
    out, requests = tmp_path / "out", []
    methods = {"rotation": {"pretrain": {"task": "rotation"}}}
    selfvox.study(str(write_plan(methods=methods, seeds=[0], pretrain_seeds=[0, 1])), out=out)

    def predict(settings):
        requests.append(settings)
        (settings.out / "maps").mkdir(parents=True)
        (settings.out / "a_probabilities.nii.gz").write_text("large")
        if settings.maps:
            Image.linear_gradient("L").save(settings.out / "maps" / "a_maps.png")

    def evaluate(settings):
        run, way = settings.predictions.parent.parent.parent, settings.predictions.parent.name
        scores = []
        for row in rows(run / "scores.csv"):
            case = (row["case"], row["class"], row["name"])
            gain = 0 if way == "without" else GAIN + 0.01 * chance(way)
            scores.append([*case, f"{chance(run.parent.name, run.name, *case) + gain:.9g}"])
        write_csv(settings.out, ["case", "class", "name", "dice"], scores)
        header = ["case", *SCORE_NAMES]
        write_csv(
            settings.out.with_name("scores_calibration.csv"), header, [["a", 0.2, 0.3, 0.4, ""]]
        )

    for name, fake in (
        ("predict", predict),
        ("evaluate", evaluate),
        ("read_network_card", lambda _: CARD),
    ):
        monkeypatch.setattr(mc_dropout, name, fake)
    monkeypatch.setattr(mc_dropout_figures, "draw", lambda *_: [])  # takes seconds
    return out, requests


def test_every_run_is_predicted_once_in_every_variant(predicted_study):
    out, requests = predicted_study
    earlier = {path: path.read_bytes() for path in out.glob("cells/*/*/*.*")}
    selfvox.study("gone.yaml", out=out, passes=5)
    # 2 labels x 2 pre-trainings, in 12 ways; their twin before and after; the maps of a run of each
    ways = {*mc_dropout.PLACES.values(), *mc_dropout.RATES.values(), *mc_dropout.VOTES.values()}
    assert len(ways) == 12
    assert len(requests) == 4 * 12 + 2 * 2 + 2
    assert {request.passes for request in requests} == {1, 5}
    assert {request.subset for request in requests} == {"test"}
    assert {
        (request.vote_weights, request.union_class)
        for request in requests
        if request.vote in ("weighted", "union")
    } == {*(((1, 2, 2), None), (None, "bright"))}
    assert [request.run.name for request in requests if request.maps] == [
        "3-labels-seed-0",
        "3-labels-seed-0-pretrain-0",
    ]
    selfvox.study("gone.yaml", out=out, passes=5)
    assert len(requests) == 54
    with pytest.raises(UsageError, match="made with settings other"):
        selfvox.study("gone.yaml", out=out, passes=6)
    assert earlier == {path: path.read_bytes() for path in earlier}
    assert not list(out.glob("cells/*/*/dropout/*/predictions"))


def test_what_dropout_changes_is_computed_for_the_same_networks_and_scans(predicted_study):
    out, _ = predicted_study
    selfvox.study("gone.yaml", out=out, passes=5)
    summary = rows(out / "dropout.csv")
    assert "way" not in summary[0]  # what it is made of has columns of its own
    for row in summary:
        way = {"encoder": float(row["encoder_dropout"]), "decoder": float(row["decoder_dropout"])}
        way = mc_dropout.Variant(**way, vote=row["vote"] or "majority")
        differences, scores = [], []
        for run in out.glob(f"cells/{row['method']}/{row['labels']}-labels-*"):
            for with_it, without in zip(
                rows(run / way.folder / "scores.csv"),
                rows(run / "dropout/without/scores.csv"),
                strict=True,
            ):
                if row["name"] in (with_it["name"], "mean of classes"):
                    differences.append(float(with_it["dice"]) - float(without["dice"]))
                    scores.append(float(with_it["dice"]))
        assert float(row["mean"]) == pytest.approx(np.mean(scores), abs=1e-5)
        assert float(row["difference"]) == pytest.approx(np.mean(differences), abs=1e-5)
        assert (row["low"], row["high"]) == ("", "")  # of one draw of labels
        assert (row["ece"], row["brier"], row["error_area"]) == ("0.2", "0.3", "")
        assert (row["ece_difference"], row["ece_low"], row["ece_difference_low"]) == ("0", "", "")
    assert len(summary) == 3 * (2 * 12 + 2 * 2)  # classes and their mean


def test_calibration_has_intervals_over_draws_and_subjects_and_a_paired_difference(tmp_path):
    rng = np.random.default_rng(0)
    values = {way: rng.random((3, 4)) for way in ("with", "without")}  # (draw, scan)
    pairs = []
    for seed in range(3):
        runs = []
        for way, of_way in values.items():
            path = tmp_path / way / str(seed)
            path.mkdir(parents=True)
            lines = [
                [case, value, value**2, value, ""]
                for case, value in zip("xyzu", of_way[seed], strict=True)
            ]
            write_csv(path / "scores_calibration.csv", ["case", *SCORE_NAMES], lines)
            runs.append(dataclasses.replace(result("m", 2, seed, {"x": [1, 1]}), paths=(path,)))
        pairs.append(runs)
    columns = calibration_columns(*map(list, zip(*pairs, strict=True)))
    change = values["with"] - values["without"]
    squares = values["with"] ** 2
    for name, array in (("ece", values["with"]), ("brier", squares), ("ece_difference", change)):
        low, high = error_of_mean(array[None]).interval(array.mean())
        numbers = [columns[name + suffix] for suffix in ("", "_low", "_high")]
        assert numbers == pytest.approx([array.mean(), low, high], abs=1e-5)
    assert {value for name, value in columns.items() if name.startswith("error_area")} == {None}
    # paired by scan: no change is certain, however much the scans differ
    same = [run for run, _ in pairs]
    assert calibration_columns(same, same)["ece_difference_high"] == 0


def test_shards_predict_what_one_process_predicts(predicted_study, capsys):
    out, requests = predicted_study
    selfvox.study("gone.yaml", out=out, passes=5, dry_run=True)
    assert requests == []
    assert "54 of 54 predictions of the test subjects are missing" in capsys.readouterr().err
    selfvox.study("gone.yaml", out=out, passes=5, shard="1/2")
    assert len(requests) == 27
    selfvox.study("gone.yaml", out=out, passes=5, dry_run=True)
    assert "27 of 54 predictions" in capsys.readouterr().err
    selfvox.study("gone.yaml", out=out, passes=5, shard="0/2")
    assert len({request.out for request in requests}) == len(requests) == 54
    with pytest.raises(UsageError, match=r"^scheduler: cannot be combined with `passes`"):
        selfvox.study("gone.yaml", out=out, passes=5, scheduler="tcp://head:1")


def test_the_twin_at_equal_compute_is_predicted_as_from_scratch(predicted_study, write_plan):
    out, requests = predicted_study
    methods = {"rotation": {"pretrain": {"task": "rotation"}}}
    plan = write_plan(
        methods=methods, seeds=[0], pretrain_seeds=[0, 1], labels=[1], equal_compute=True
    )
    selfvox.study(str(plan), out=out)
    selfvox.study("gone.yaml", out=out, passes=5)
    of_twin = [
        request.out.parent.name for request in requests if "equal" in request.run.parent.name
    ]
    assert sorted(of_twin) == sorted(
        way.folder.split("/")[1]
        for way in (mc_dropout.WITHOUT, mc_dropout.ENCODER, mc_dropout.MAPS)
    )


@pytest.mark.parametrize(
    ("card", "votes", "decoder", "union"),
    [
        ({"head": "linear"}, set(mc_dropout.VOTES), {0}, "bright"),
        (
            {"trained_on": "regions", "regions": {"all": (1, 2), "core": (2,)}},
            {"majority", "union", "mean"},
            {0, 0.3},
            "core",
        ),
    ],
)
def test_networks_are_predicted_only_in_the_variants_that_they_allow(
    predicted_study, monkeypatch, card, votes, decoder, union
):
    out, requests = predicted_study
    changed = dataclasses.replace(CARD, **card)
    monkeypatch.setattr(mc_dropout, "read_network_card", lambda _: changed)
    selfvox.study("gone.yaml", out=out, passes=2)
    of_one = [
        request for request in requests if request.run == requests[-1].run and request.passes > 1
    ]
    assert {request.vote for request in of_one} == votes
    assert {request.decoder_dropout for request in of_one} == decoder
    assert {request.union_class for request in of_one} == {None, union}
    assert {row["vote"] for row in rows(out / "dropout.csv")} == {"", *votes}


def test_a_study_whose_runs_do_not_segment_is_refused(predicted_study, monkeypatch):
    out, _ = predicted_study
    monkeypatch.setattr(mc_dropout.results, "read_results", lambda *_: [])
    with pytest.raises(UsageError, match=r"passes: .* has no run that segments; remove"):
        selfvox.study("gone.yaml", out=out, passes=2)


def test_runs_without_calibration_are_summarised_all_the_same(predicted_study):
    out, _ = predicted_study
    selfvox.study("gone.yaml", out=out, passes=2)
    for file in out.rglob("scores_calibration.csv"):
        file.unlink()
    selfvox.study("gone.yaml", out=out, table=True)
    assert {row["ece"] for row in rows(out / "dropout.csv")} == {""}


def test_linear_heads_are_in_the_figures_of_rates_and_votes(predicted_study, monkeypatch):
    out, _ = predicted_study
    linear = dataclasses.replace(CARD, head="linear")
    monkeypatch.setattr(mc_dropout, "read_network_card", lambda _: linear)
    selfvox.study("gone.yaml", out=out, passes=2)
    monkeypatch.setattr(mc_dropout_figures, "draw", DRAW)
    selfvox.study("gone.yaml", out=out, table=True)
    names = {path.name for path in (out / "figures").iterdir()}
    assert {"dropout-rates.png", "dropout-votes.png"} <= names


def test_tables_and_figures_follow_from_the_folders_alone(predicted_study, monkeypatch):
    out, requests = predicted_study
    selfvox.study("gone.yaml", out=out, table=True)
    assert not (out / "dropout.csv").exists()
    selfvox.study("gone.yaml", out=out, passes=2)
    earlier, count = (out / "dropout.csv").read_bytes(), len(requests)
    (out / "dropout.csv").unlink()
    monkeypatch.setattr(mc_dropout_figures, "draw", DRAW)
    selfvox.study("gone.yaml", out=out, table=True)
    assert (out / "dropout.csv").read_bytes() == earlier
    assert len(requests) == count
    names = {
        f"dropout{suffix}.png" for suffix in ("", "-places", "-rates", "-votes", "-calibration")
    }
    names |= {"percentiles-rotation.png", "percentiles-scratch.png"}
    sizes = {
        path.name: images.read_image(path).data.shape[1:] for path in (out / "figures").iterdir()
    }
    assert set(sizes) == names
    assert all(min(size) > 300 for name, size in sizes.items() if name.startswith("dropout"))
