"""Pages of runs and of a study say what their files say, and name no folder of a person."""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import pytest

import selfvox
from selfvox.commands import report as command
from selfvox.errors import UsageError
from selfvox.reports.charts import COLOURS
from selfvox.reports.page import number, shortened
from selfvox.reports.study_page import findings
from selfvox.runs.folder_lock import folder_lock
from selfvox.runs.typed_json import write_checked
from selfvox.settings.options import to_yaml
from selfvox.settings.verbs import Finetune, Pretrain

from ..conftest import make_run
from .conftest import Elements

STUDY = Path(__file__).parents[2] / "docs" / "studies" / "hippocampus"


def write_run(folder, verb, lines, **record):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "settings.yaml").write_text("scans: /home/CANARY/scans\nbatch: 4\nseed: 7\n")
    entries = {
        "format": 1,
        "verb": verb,
        "status": "finished",
        "steps": 100,
        "network": {"name": "plain", "channels": [8, 16]},
        "crop": [32, 32, 32],
        "data": {"subjects": ["CANARY-1", "b"], "image_hashes": [], "coarse_pictures": []},
    }
    write_checked(folder / "run.json", entries | record)
    return folder


def pretrain_lines(steps=100):
    return [
        {
            "step": step,
            "loss": 3 - step / 50,
            "loss_chance": 2.5,
            "accuracy": step / 200,
            "chance": 0.1,
            "skipped": 2.0,
            "health/spread": 0.25,
            "probe/linear": 0.4,
            "probe/untrained_linear": 0.5,
            "probe/chance": 0.33,
        }
        for step in range(10, steps + 1, 10)
    ]


def page_of(folder, tmp_path):
    index = selfvox.report(folder, out=tmp_path / "report")
    return index, Elements(index.read_text(encoding="utf-8"))


def test_a_pretraining_is_described_by_its_metrics(tmp_path):
    warnings = {"chance accuracy": "step 50: accuracy is 0.1, still at chance <b>"}
    run = write_run(tmp_path / "run", "pretrain", pretrain_lines(), warnings=warnings)
    index, page = page_of(run, tmp_path)
    items = " ".join(page.text_of("li") + page.text_of("li", class_="warning"))
    assert "Finished after 100 steps." in items
    assert "Accuracy is 0.40 at the end; random guesses reach 0.10." in items
    assert "Warning: step 50: accuracy is 0.1, still at chance <b>" in items
    assert "Warning: 2 steps had no finite loss" in items
    # worse than the untrained encoder
    assert "Warning: A linear probe of the frozen encoder scores 0.40" in items
    assert "The loss still fell in the last fifth of the steps" in items
    (points,) = page.text_of("script", id="points")
    curves = json.loads(points)
    for line, text in zip(pretrain_lines(), curves["loss-0"], strict=True):
        assert text == f"loss: {line['loss']:.4g} at step {line['step']}"
    uses = [element for tag, element in page.elements if tag == "use"]
    assert len(uses) >= sum(map(len, curves.values()))
    for chart in page.of("div"):
        if chart.get("class") == "chart":
            assert chart["aria-label"]
    content = index.read_bytes()
    assert b"CANARY" not in content
    assert len(content) < 1e6


def test_a_score_at_chance_is_a_warning_and_the_task_is_named_in_words(tmp_path):
    lines = [line | {"accuracy": 0.11} for line in pretrain_lines()]
    task = {"name": "rotation", "versions": 1, "planes": "all"}
    times = {"started": "2026-11-29T17:51:16+0000"}
    run = write_run(tmp_path / "run", "pretrain", lines, task=task, **times)
    _, page = page_of(run, tmp_path)
    assert (
        "Warning: Accuracy is 0.11 at the end; random guesses reach 0.10, so the task is not "
        "learnt yet."
    ) in page.text_of("li", class_="warning")
    assert {"rotation (versions 1, planes all)", "2026-11-29 17:51 UTC"} <= set(page.text_of("dd"))


def test_a_long_run_makes_a_small_page_that_has_its_last_step(tmp_path):
    run = write_run(tmp_path / "run", "pretrain", pretrain_lines(20000), steps=20000)
    index, page = page_of(run, tmp_path)
    assert index.stat().st_size < 1e6
    curves = json.loads(page.text_of("script", id="points")[0])
    assert all(len(texts) <= 150 for texts in curves.values())
    assert curves["loss-0"][-1].endswith("at step 20000")


@pytest.mark.parametrize(
    ("verb", "settings"),
    [
        (
            Pretrain(
                scans=Path("/home/CANARY/scans"),
                out=Path("/home/CANARY/run"),
                network="/home/CANARY/pretrained",
                probe=Path("/home/CANARY/probe"),
                scheduler="tcp://CANARY:8786",
            ),
            {"network": "pretrained", "seed": "0"},
        ),
        (
            Finetune(
                labelled=Path("/home/CANARY/labelled"),
                out=Path("/home/CANARY/run"),
                encoder="/home/CANARY/pretrained",
                network={"name": "/home/CANARY/nnUNetPlans.json:2d", "width": 8},
                unlabelled=Path("/home/CANARY/more"),
            ),
            {"encoder": "pretrained", "network": "{name: 'nnUNetPlans.json:2d', width: 8}"},
        ),
    ],
    ids=["pretrain", "finetune"],
)
def test_the_settings_of_a_run_are_shown_without_any_path(verb, settings, tmp_path):
    name = type(verb).__name__.lower()
    run = write_run(tmp_path / "run", name, pretrain_lines())
    (run / "settings.yaml").write_text(to_yaml(verb))
    index, page = page_of(run, tmp_path)
    for file in index.parent.rglob("*"):
        assert not file.is_file() or b"CANARY" not in file.read_bytes(), file
    texts = dict(zip(page.text_of("dt"), page.text_of("dd"), strict=True))
    assert settings.items() <= texts.items()


def test_a_run_that_trains_is_loaded_again_every_minute(tmp_path):
    run = write_run(tmp_path / "run", "pretrain", pretrain_lines(50), status="running")
    index, page = page_of(run, tmp_path)
    assert {"http-equiv": "refresh", "content": "60"} in page.of("meta")
    assert "At step 50 of 100" in " ".join(page.text_of("li"))
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match="has no metrics yet"):
        selfvox.report(run, out=tmp_path / "report")
    assert index.exists()


def finish_in_the_second_minute(run, tmp_path, monkeypatch):
    """Let a run be finished after two waits; returns the seconds of all waits."""
    waits = []

    def next_minute(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            finished = write_run(tmp_path / "finished", "pretrain", pretrain_lines())
            shutil.copytree(finished, run, dirs_exist_ok=True)

    monkeypatch.setattr(command.time, "sleep", next_minute)
    return waits


def test_a_run_is_watched_until_its_process_ends(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", "pretrain", pretrain_lines(50), status="running")
    waits = finish_in_the_second_minute(run, tmp_path, monkeypatch)
    with folder_lock(run):
        index = selfvox.report(run, out=tmp_path / "report", watch=True)
    assert waits == [60, 60]
    assert "Finished after 100 steps." in index.read_text()


def test_a_run_without_metrics_is_waited_for(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", "pretrain", [], status="running")
    waits = finish_in_the_second_minute(run, tmp_path, monkeypatch)
    with folder_lock(run):
        index = selfvox.report(run, out=tmp_path / "report", watch=True)
    assert waits == [60, 60]
    assert capsys.readouterr().err.count("has no metrics yet") == 1
    assert "Finished after 100 steps." in index.read_text()


def test_the_last_page_of_a_watched_run_is_not_loaded_again(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", "pretrain", pretrain_lines(50), status="running")
    finished = write_run(tmp_path / "finished", "pretrain", pretrain_lines())
    make = command._make

    def run_ends_after_the_page(*args):
        index = make(*args)
        shutil.copytree(finished, run, dirs_exist_ok=True)
        return index

    monkeypatch.setattr(command, "_make", run_ends_after_the_page)
    monkeypatch.setattr(command.time, "sleep", lambda seconds: None)
    with folder_lock(run):
        index = selfvox.report(run, out=tmp_path / "report", watch=True)
    page = Elements(index.read_text(encoding="utf-8"))
    assert all(meta.get("http-equiv") != "refresh" for meta in page.of("meta"))


def test_a_killed_run_is_not_watched(tmp_path):
    run = write_run(tmp_path / "run", "pretrain", pretrain_lines(50), status="running")
    selfvox.report(run, out=tmp_path / "report", watch=True)


def test_a_finetuning_shows_validation_split_and_lost_classes(tmp_path):
    lines = [
        {"step": step, "loss": 1.0, "dice_mean": step / 100, "dice_organ": 0.5, "skipped": 0.0}
        for step in range(20, 101, 20)
    ]
    run = write_run(
        tmp_path / "run",
        "finetune",
        lines,
        lost_problem="Dice of lesion is 0 in every validation scan",
    )
    split = {"train": ["a", "b", "c"], "validation": ["d"], "test": [], "seed": 0}
    (run / "split.json").write_text(json.dumps(split))
    _, page = page_of(run, tmp_path)
    items = " ".join(page.text_of("li") + page.text_of("li", class_="warning"))
    assert "The validation score still rose by 0.200" in items
    assert "Dice of lesion is 0 in every validation scan" in items
    facts = page.text_of("dd")
    assert [
        facts[page.text_of("dt").index(name)]
        for name in (
            "training",
            "validation",
            "test",
        )
    ] == ["3", "1", "0"]
    assert page.text_of("figcaption") == ["Loss", "Dice of the validation scans"]


def test_a_finetuning_without_validation_says_that_it_has_no_score(tmp_path):
    run = write_run(tmp_path / "run", "finetune", [{"step": 10, "loss": 1.0}])
    make_run(run)
    card = json.loads((run / "network" / "network.json").read_text())
    write_checked(run / "network" / "network.json", {**card, "validation_dice": None})
    for validation, words in (([], "no subject validates"), (["c"], "is not defined")):
        split = {"train": ["a", "b"], "validation": validation, "test": [], "seed": 0}
        (run / "split.json").write_text(json.dumps(split))
        _, page = page_of(run, tmp_path / words.replace(" ", "-"))
        assert words in " ".join(page.text_of("li"))


def test_a_classifier_that_always_answers_the_same_is_a_warning(tmp_path):
    lines = [{"step": 100, "loss": 1.0, "kappa": 0.0}]
    run = write_run(
        tmp_path / "run",
        "finetune",
        lines,
        lost_problem="every validation scan gets the same class, none 0 or 2",
    )
    _, page = page_of(run, tmp_path)
    assert "Warning: Every validation scan gets the same class, none 0 or 2." in page.text_of(
        "li", class_="warning"
    )


@pytest.mark.parametrize(
    ("table", "words", "order"),
    [
        (
            "step,case,dice_organ,dice_lesion\n0,old,0,0\n1,CASE-a,0.9,0.7\n1,CASE-b,0.5,0.6\n",
            "The mean Dice of a validation scan is between 0.55 (CASE-b) and 0.80 (CASE-a).",
            ["CASE-b", "0.5", "0.6", "CASE-a", "0.9", "0.7"],
        ),
        (
            "step,case,dice_organ,dice_lesion\n1,CASE-a,0.9,0.7\n",
            "The mean Dice of the validation scan is 0.80.",
            ["CASE-a", "0.9", "0.7"],
        ),
        (
            "step,case,true class,class,probability\n1,CASE-a,0,0,0.6\n1,CASE-b,0,2,0.9\n",
            "1 of 2 validation scans are right.",
            ["CASE-b", "0", "2", "0.9", "CASE-a", "0", "0", "0.6"],
        ),
    ],
    ids=["segmented", "one", "classified"],
)
def test_validation_scans_of_the_kept_weights_are_listed(tmp_path, table, words, order):
    run = write_run(tmp_path / "run", "finetune", [{"step": 1, "loss": 1.0}])
    make_run(run)
    (run / "network" / "validation.csv").write_text(table)
    _, page = page_of(run, tmp_path)
    assert words in page.text_of("li")
    assert "Encoder: from scratch." in page.text_of("li")
    assert page.text_of("td") == order
    # no viewer, so no licence of one
    assert "NiiVue" not in " ".join(page.text_of("summary"))


def test_a_study_begins_with_a_count_of_all_differences(tmp_path):
    index, page = page_of(STUDY, tmp_path)
    with (STUDY / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    overall = [row for row in rows if row["name"] == "mean of classes" and row["low"]]
    better = sum(float(row["low"]) > 0 for row in overall)
    worse = sum(float(row["high"]) < 0 for row in overall)
    first = page.text_of("li")[0]
    assert first.startswith(
        f"Of {len(overall)} differences to from-scratch baselines with an interval, {better} are "
        f"above 0 and {worse} below 0"
    )
    cells = page.text_of("td")
    assert cells.count("2D-rotation") >= sum(row["method"] == "2D-rotation" for row in rows)
    assert index.stat().st_size < 1e6
    curves = json.loads(page.text_of("script", id="points")[0])
    masked = next(texts for texts in curves.values() if texts[0].startswith("masked: "))
    wanted = [row for row in overall if row["method"] == "masked"]
    assert len(masked) == len(wanted)


def test_the_page_of_a_study_names_no_folder_of_its_plan(tmp_path):
    folder = tmp_path / "CANARY" / "study"
    shutil.copytree(STUDY, folder)
    plan = folder / "plan.yaml"
    text, count = re.subn(r"(?m)^(data:).*", r"\1 /home/CANARY", plan.read_text())
    assert count
    plan.write_text(text)
    index = selfvox.report(folder, out=tmp_path / "report")
    for file in index.parent.rglob("*"):
        assert not file.is_file() or b"CANARY" not in file.read_bytes(), file


def test_intervals_that_hold_at_all_labels_count_before_others():
    row = {
        "method": "rotation",
        "labels": "5",
        "name": "organ",
        "score": "dice",
        "runs": "3",
        "twin": "scratch",
        "difference": "0.02",
        "low": "0.01",
        "high": "0.03",
        "low_simultaneous": "-0.01",
        "high_simultaneous": "0.05",
        "rising": "2",
    }
    texts = [finding.text for finding in findings([row])]
    assert texts[0].startswith("Of 1 differences to from-scratch baselines with an interval, 0 are")
    assert texts[-1].startswith("2 of 3 runs still improved")
    assert (
        "1 differences have no interval"
        in findings(
            [row | {"low": "", "high": "", "low_simultaneous": "", "high_simultaneous": ""}]
        )[1].text
    )


def test_a_method_has_one_colour_in_all_charts_of_a_study(tmp_path):
    page = selfvox.report(STUDY, out=tmp_path / "report").read_text()
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    with (STUDY / "summary.csv").open(newline="") as file:
        methods = list(dict.fromkeys(row["method"] for row in csv.DictReader(file)))
    compared = [method for method in methods if not method.endswith("scratch")]
    for identity, chart_methods in (("score-0", methods), ("difference-0", compared)):
        (chart,) = [text for text in charts if f'id="{identity}-0"' in text]
        for place, method in enumerate(chart_methods):
            marks = chart[chart.index(f'id="{identity}-{place}"') :]
            colour = COLOURS[methods.index(method) % len(COLOURS)]
            assert re.search(r"fill: (#[0-9a-f]{6})", marks)[1] == colour


def test_a_study_without_rows_is_refused(tmp_path):
    shutil.copytree(STUDY, tmp_path / "study", ignore=shutil.ignore_patterns("*.png"))
    (tmp_path / "study" / "summary.csv").write_text("method,labels\n")
    with pytest.raises(UsageError, match="has no finished cells yet"):
        selfvox.report(tmp_path / "study", out=tmp_path / "report")


def test_large_numbers_have_no_exponent():
    values = (6847.0, 999.7, 12.345, 0.00012345, -1234.5, math.nan, None)
    assert [number(value) for value in values] == [
        "6847", "1000", "12.3", "0.000123", "-1234", "–", "–",
    ]  # fmt: skip


def test_fractions_of_tables_are_short_and_names_stay():
    cells = ("0.00889138", "-12.345678", "140", "0.25", "20260131", "scan_0.12345", "", "1e-05")
    short = ("0.00889", "-12.3", "140", "0.25", "20260131", "scan_0.12345", "", "1e-05")
    assert tuple(map(shortened, cells)) == short
