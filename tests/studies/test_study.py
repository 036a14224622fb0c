"""A study: made once and resumed, by one process or several; refused where it would be biased."""

import base64
import contextlib
import csv
import dataclasses
import json
import os
import shutil
import threading
import time
import types
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import yaml

import selfvox
from selfvox.data import phantom
from selfvox.data.formats import image as images
from selfvox.data.preparation import split as splits
from selfvox.data.preparation.manifest import write_manifest
from selfvox.data.preparation.store import open_store
from selfvox.errors import BusyError, DataError, NumericalError, ResourceError, Stopped, UsageError
from selfvox.runs.atomic_files import write_csv, write_text
from selfvox.runs.progress import format_seconds
from selfvox.runs.seen_scans import write_seen
from selfvox.runs.typed_json import write_checked
from selfvox.runs.weights import read_encoder
from selfvox.studies import (
    check_stores,
    figure_parts,
    figures,
    measure_facts,
    results,
    run_cell,
    run_once,
    run_study,
    score_run,
    stores,
)
from selfvox.studies.read_plan import read_plan
from selfvox.studies.saved_plan import load_plan

from .conftest import PLAN, rotation


def tables(out):
    """The rows of both tables without what they cost, which differs where a run was stopped."""
    contents = []
    for name in ("table.csv", "summary.csv"):
        with (out / name).open(newline="", encoding="utf-8") as lines:
            contents.append(
                [
                    {key: value for key, value in row.items() if "cost" not in key}
                    for row in csv.DictReader(lines)
                ]
            )
    return contents


@pytest.fixture
def finished(write_plan, pretended, tmp_path):
    """A pretended study, its plan and what was made."""
    plan, out = write_plan(), tmp_path / "out"
    selfvox.study(str(plan), out=out)
    return plan, out, pretended


def test_everything_is_made_once(finished):
    plan, out, work = finished
    assert len(work) == len(set(work)) == 2 + 2 * 2 * 3  # pre-trainings; labels, seeds, arms
    earlier = tables(out)
    selfvox.study(str(plan), out=out)
    assert len(work) == 14
    assert tables(out) == earlier


@pytest.mark.parametrize(("keep", "expected"), [("best", "2"), ("last", "0")])
def test_labels_that_choose_are_counted(write_plan, pretended, tmp_path, keep, expected):
    plan = write_plan(labels=[3], seeds=[0], methods=rotation(), finetune={"keep": keep})
    selfvox.study(str(plan), out=tmp_path / "out")
    for name in ("table.csv", "summary.csv"):
        with (tmp_path / "out" / name).open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        assert {(row["labels"], row["validation_labels"]) for row in rows} == {("3", expected)}


def test_subsets_are_nested_and_all_else_is_the_same(finished):
    _, out, _ = finished
    loaded = {
        path.parent.name: splits.read_split(path)
        for path in out.glob("cells/rotation/*/split.json")
    }
    for seed in (0, 1):
        small, large = (set(loaded[f"{n}-labels-seed-{seed}-pretrain-0"].train) for n in (1, 3))
        assert (len(small), len(large)) == (1, 3)
        assert small < large
    assert len({(entry.validation, entry.test) for entry in loaded.values()}) == 1
    assert not [entry for entry in loaded.values() if set(entry.train) & set(entry.test)]
    for name, split in loaded.items():
        twin = splits.read_split(
            out / "cells" / "scratch" / name.removesuffix("-pretrain-0") / "split.json"
        )
        assert twin.train == split.train


@pytest.mark.fault("F32", "a study killed half way", "only missing cells are made")
def test_a_study_that_was_killed_goes_on_and_makes_nothing_twice(finished, tmp_path, monkeypatch):
    plan, reference, work = finished
    work.clear()
    run_once, count = run_cell.score_network, iter(range(100))

    def dies_at_the_fifth(plan, run, store):
        if next(count) == 4:
            raise KeyboardInterrupt
        run_once(plan, run, store)

    monkeypatch.setattr(run_cell, "score_network", dies_at_the_fifth)
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        selfvox.study(str(plan), out=out)
    assert len(list(out.glob("cells/*/*/done.json"))) == 4
    selfvox.study(str(plan), out=out)
    assert len(work) == 15  # the cell it died in was begun again
    assert len(set(work)) == 14
    assert tables(out) == tables(reference)


def test_shards_make_what_one_process_makes(finished, tmp_path, prepared_out):
    plan, reference, work = finished
    work.clear()
    out = prepared_out("sharded", like=reference)
    selfvox.study(str(plan), out=out, shard="0/2")
    assert len(list(out.glob("cells/*/*/done.json"))) == 6
    selfvox.study(str(plan), out=out, shard="1/2")
    assert len(work) == len(set(work)) == 14
    assert tables(out) == tables(reference)


def test_processes_at_the_same_cells_share_them(finished, prepared_out, monkeypatch):
    plan, reference, work = finished
    work.clear()
    monkeypatch.setattr(run_study, "PATIENCE_S", 0.05)
    monkeypatch.setattr(
        run_once, "redirect_output", lambda log: contextlib.nullcontext()
    )  # stdout is one for all threads
    out = prepared_out("together", like=reference)
    threads = [
        threading.Thread(target=selfvox.study, args=(str(plan),), kwargs={"out": out})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(work) == len(set(work)) == 14
    assert tables(out) == tables(reference)


def test_a_cell_that_another_process_makes_is_left_to_it(finished, prepared_out, monkeypatch):
    plan, reference, work = finished
    work.clear()
    out = prepared_out("busy", like=reference)
    cell = "cells/scratch/1-labels-seed-0"
    monkeypatch.setattr(
        run_study.time, "sleep", lambda seconds: (_ for _ in ()).throw(TimeoutError)
    )
    with run_once.study_lock(out, cell), pytest.raises(TimeoutError):
        selfvox.study(str(plan), out=out)
    assert len(work) == 13
    assert "scratch 1-labels-seed-0" not in work


def test_tables_follow_from_the_folders_alone(finished):
    plan, out, work = finished
    earlier, count = tables(out), len(work)
    for name in ("table.csv", "summary.csv"):
        (out / name).unlink()
    plan.unlink()
    selfvox.study("gone.yaml", out=out, table=True)
    assert tables(out) == earlier
    assert len(work) == count


def test_a_partial_study_says_what_is_missing(finished, capsys):
    _, out, _ = finished
    (out / "cells" / "simclr" / "3-labels-seed-1-pretrain-0" / "done.json").unlink()
    selfvox.study("any", out=out, table=True)
    assert "1 of 12 cells are missing (simclr, 3 labels, seed 1 first)" in capsys.readouterr().err


def test_what_is_done_counts_as_done_before_anything_is_made(finished, capsys):
    plan, out, _ = finished
    (out / "cells" / "scratch" / "1-labels-seed-0" / "done.json").unlink()
    capsys.readouterr()
    selfvox.study(str(plan), out=out)
    assert "11/12 done  now scratch, 1 label, seed 0  25:10 min left" in capsys.readouterr().err


def test_a_step_is_timed_by_the_runs_own_clock_however_long_the_rest_takes(tmp_path):
    rest_s = iter((0.2, 0.0))  # the second run's is shorter by more than its steps take

    def run(how):
        time.sleep(next(rest_s) + 0.01 * how["steps"])
        how["out"].mkdir()
        line = {"step": how["steps"], "images_per_s": 400.0}
        write_text(how["out"] / "metrics.jsonl", json.dumps(line) + "\n")

    step_s, rest, flop = measure_facts._ShortRuns(tmp_path, count_flop=False).measure(run, 4)
    assert (step_s, flop) == (0.01, 0)
    assert 0 <= rest < 0.1


def test_the_table_holds_every_score_of_every_cell(finished):
    _, out, _ = finished
    with (out / "table.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 12 * 2 * 2  # cells, cases, classes
    for row in rows:
        twice = f"-pretrain-{row['pretrain_seed']}" if row["pretrain_seed"] else ""
        cell = out / "cells" / row["method"] / f"{row['labels']}-labels-seed-{row['seed']}{twice}"
        with (cell / "scores.csv").open(newline="") as lines:
            assert {name: row[name] for name in ("case", "class", "name", "dice")} in list(
                csv.DictReader(lines)
            )


def test_a_plan_may_grow_but_not_change(finished, write_plan):
    _, out, work = finished
    selfvox.study(str(write_plan(seeds=[0, 1, 2])), out=out)
    assert len(work) == 14 + 6
    with pytest.raises(UsageError, match=r"another plan \(test: 2, not 1\)"):
        selfvox.study(str(write_plan(test=1)), out=out)
    changed = {"rotation": {"pretrain": {"task": "rotation", "steps": 9}}}
    with pytest.raises(UsageError, match="another method rotation"):
        selfvox.study(str(write_plan(methods=changed)), out=out)


def refuses(monkeypatch, wrong):
    """Let measuring refuse the methods that `wrong` picks; lists the methods that are measured."""
    tried, measure = [], measure_facts._measure_method

    def refuse(plan, out, method):
        tried.append(method.name)
        if wrong(method):
            raise UsageError(f"crop: does not fit {method.name}")
        return measure(plan, out, method)

    monkeypatch.setattr(measure_facts, "_measure_method", refuse)
    return tried


@pytest.mark.parametrize(
    "wrong",
    [
        {"pretrain": {"crop": [8, 8, 8]}},
        {"test": 3},
        {"methods": {"rotation": {"pretrain": {"task": "rotation", "crop": [8, 8, 8]}}}},
        {"prepare": {"spacing": [2, 2, 2]}},
    ],
)
def test_a_plan_that_was_refused_is_corrected_where_it_lies(
    finished, wrong, write_plan, tmp_path, monkeypatch
):
    _, reference, work = finished
    out, count = tmp_path / "refused", len(work)
    with monkeypatch.context() as patched:
        refuses(patched, lambda method: True)
        with pytest.raises(UsageError, match="does not fit rotation"):
            selfvox.study(str(write_plan(**wrong)), out=out)
    selfvox.study(str(write_plan()), out=out)
    assert sorted(work[count:]) == sorted(work[:count])
    assert tables(out) == tables(reference)
    manifests = [(entry / "store" / "manifest.json").read_text() for entry in (out, reference)]
    assert manifests[0] == manifests[1]


def test_scans_that_were_the_wrong_ones_are_put_right_before_anything_is_trained(
    finished, write_plan, tmp_path
):
    _, reference, _ = finished
    phantom.write(tmp_path / "others", "shapes", count=9, seed=5)
    out = tmp_path / "wrong"
    selfvox.study(str(write_plan(data="others")), out=out, dry_run=True)
    selfvox.study(str(write_plan()), out=out)
    assert tables(out) == tables(reference)


def test_a_method_that_was_refused_is_corrected_and_others_stay(
    finished, write_plan, monkeypatch, tmp_path
):
    _, out, work = finished
    count = len(work)
    for name, scans in (("wrong", 3), ("right", 4)):
        for path in phantom.write(tmp_path / "drawn", "shapes", count=scans, seed=scans):
            (tmp_path / name).mkdir(exist_ok=True)
            path.rename(tmp_path / name / f"other-{path.name}")
    new = {"task": "masked", "crop": [8, 8, 8], "scans": "wrong"}
    tried = refuses(monkeypatch, lambda method: "crop" in (method.pretrain or {}))
    with pytest.raises(UsageError, match="does not fit masked"):
        selfvox.study(
            str(write_plan(methods={**PLAN["methods"], "masked": {"pretrain": new}})), out=out
        )
    own = ("labelled/masked", "labelled/masked-folds/0", "scans/masked-tissues", "tissues/masked")
    for folder in own:
        (out / folder).mkdir(parents=True)
    new = {"task": "masked", "scans": "right"}
    selfvox.study(
        str(write_plan(methods={**PLAN["methods"], "masked": {"pretrain": new}})), out=out
    )
    assert tried == ["masked", "masked"]
    assert {entry.split()[0] for entry in work[count:]} == {"pretrain", "masked"}
    assert len(open_store(out / "scans" / "masked").cases) == 4
    assert not any((out / folder).exists() for folder in own)


SLOWER = {**PLAN["methods"], "rotation": {"pretrain": {"task": "rotation", "steps": 7}}}


def test_a_dry_run_is_corrected_and_timed_again(write_plan, pretended, monkeypatch, tmp_path):
    out, tried = tmp_path / "out", refuses(monkeypatch, lambda method: False)

    def dry_run(**plan):
        tried.clear()
        selfvox.study(str(write_plan(**plan)), out=out, dry_run=True)
        return tried

    assert dry_run() == ["rotation", "simclr"]
    assert dry_run(seeds=[3]) == []
    with run_once.study_lock(out, "trial"), pytest.raises(BusyError):
        dry_run(methods=SLOWER)
    for folder in ("store-folds/0", "scans/rotation", "labelled/rotation"):
        (out / folder).mkdir(parents=True)
    assert dry_run(methods=SLOWER) == ["rotation", "simclr"]
    assert not any((out / folder).exists() for folder in ("store-folds", "scans", "labelled"))
    # facts of a method that was removed are not those of a new one with its name
    assert dry_run(methods={"rotation": SLOWER["rotation"]}, pretrain={"batch": 2}) == ["rotation"]
    assert dry_run(methods=SLOWER, pretrain={"batch": 2}) == ["simclr"]
    assert dry_run(methods={"simclr": SLOWER["simclr"]}, pretrain={"batch": 2}) == []
    assert "rotation" in dry_run(methods=PLAN["methods"], pretrain={"batch": 2})


@pytest.mark.parametrize(
    "begun", ["pretrain/simclr-seed-0", "cells/simclr/1-labels-seed-0", "cells/scratch/1"]
)
def test_where_something_is_begun_only_what_was_never_tried_may_change(
    begun, write_plan, pretended, monkeypatch, tmp_path
):
    out, tried = tmp_path / "out", refuses(monkeypatch, lambda method: False)
    selfvox.study(str(write_plan()), out=out, dry_run=True)
    (out / begun).mkdir(parents=True)
    saved = load_plan(out / "plan.yaml")
    # its twin, its pre-training and its stores may serve what was begun
    with pytest.raises(UsageError, match="another method rotation"):
        selfvox.study(str(write_plan(methods=SLOWER)), out=out)
    with pytest.raises(UsageError, match=r"another plan \(pretrain: "):
        selfvox.study(str(write_plan(pretrain={"batch": 2})), out=out)
    assert load_plan(out / "plan.yaml") == saved
    # a method that was removed and comes back as another is timed again
    selfvox.study(
        str(write_plan(methods={"simclr": PLAN["methods"]["simclr"]})), out=out, dry_run=True
    )
    selfvox.study(str(write_plan(methods=SLOWER)), out=out, dry_run=True)
    assert tried == ["rotation", "simclr", "rotation"]


def test_a_study_goes_on_from_elsewhere_and_with_a_new_method_in_front(
    finished, write_plan, monkeypatch
):
    plan, out, work = finished
    saved = yaml.safe_load((out / "plan.yaml").read_text())
    (out / "plan.yaml").write_text(
        yaml.safe_dump({**saved, "data": "scans"}, sort_keys=False)
    )  # as it was once kept
    monkeypatch.chdir(plan.parent)
    frozen = {"pretrain": {"task": "rotation"}, "finetune": {"steps": 9}}
    write_plan(methods={"other": frozen, **saved["methods"]})
    selfvox.study("plan.yaml", out="out")
    # the pre-training of rotation serves it; its twin is called by it
    assert {entry.split()[0] for entry in work[14:]} == {"other", "scratch-for-other"}
    assert yaml.safe_load((out / "plan.yaml").read_text())["data"] == str(plan.parent / "scans")
    monkeypatch.chdir(plan.parent.parent)
    count = len(work)
    selfvox.study(f"{plan.parent.name}/plan.yaml", out=f"{plan.parent.name}/out")
    assert len(work) == count


def test_a_folder_that_another_process_starts_in_is_a_study(write_plan, pretended, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".123.part.plan.yaml").write_text("data:")
    selfvox.study(str(write_plan()), out=tmp_path / "out", dry_run=True)
    assert (tmp_path / "out" / "plan.yaml").exists()


def test_a_run_goes_on_under_the_paths_that_it_was_begun_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    paths = {"labelled": tmp_path / "store", "encoder": str(tmp_path / "encoder")}
    assert run_cell._run_settings(tmp_path / "run", paths) == {
        **paths,
        "out": tmp_path / "run",
        "resume": False,
    }
    (tmp_path / "run" / "settings.yaml").write_text(
        "labelled: store  # where\nencoder: other\nlabels: null\n"
    )
    printed = {
        "labelled": "store",
        "encoder": paths["encoder"],
        "out": tmp_path / "run",
        "resume": True,
    }
    assert run_cell._run_settings(tmp_path / "run", paths) == printed


def test_a_run_that_was_replaced_is_not_mixed_with_what_it_was(tmp_path):
    work = []

    def do(settings):
        run_once.run_once(tmp_path, Path("cell"), settings, lambda: work.append(1) or {})

    do({"pretrain": "runs/x", "encoder_sha256": 1})
    do({"pretrain": "runs/x", "encoder_sha256": 1})
    assert len(work) == 1
    with pytest.raises(UsageError, match="was made with settings other"):
        do({"pretrain": "runs/x", "encoder_sha256": 2})


def test_a_ready_store_may_be_pre_trained_on(finished, write_plan, tmp_path):
    _, out, _ = finished
    shutil.copytree(out / "store", tmp_path / "ready")
    ready = open_store(out / "store")
    cases = list(ready.without_test_subjects())
    write_manifest(tmp_path / "ready", ready.recipe, ready.classes, cases, {})
    methods = {"stored": {"pretrain": {"task": "rotation", "scans": "ready"}}}
    shutil.copytree(out / "store", tmp_path / "second/store")
    shutil.copy(out / "plan.yaml", tmp_path / "second/plan.yaml")
    rows = selfvox.study(
        str(write_plan(methods=methods, labels=[1], seeds=[0])), out=tmp_path / "second"
    )
    assert {row["method"] for row in rows} == {"scratch", "stored"}
    assert (tmp_path / "second/scans/stored/cases").resolve() == tmp_path / "ready/cases"
    _, card = read_encoder(tmp_path / "second/pretrain/stored-seed-0")
    assert card.seen["subjects"] == sorted({case.subject for case in cases})


@pytest.fixture
def own_scans(tmp_path, study_scans):
    """Scans of a study of its own, to be changed; in plain folders, so that every file counts."""
    shutil.copytree(study_scans, tmp_path / "mine", ignore=shutil.ignore_patterns("dataset.json"))
    return tmp_path / "mine"


def changed(scans, out):
    name = splits.read_split(out / "store/split.json").train[0]
    file = scans / "labels" / f"{name}.nii.gz"
    loaded = nib.load(file)
    label = np.asarray(loaded.dataobj).copy()
    label[label == 1] = 2
    nib.save(nib.Nifti1Image(label, loaded.affine), file)
    return f"{name} has changed"


def added(scans, out):
    for name in ("images", "labels"):
        shutil.copy(scans / name / "sub-001.nii.gz", scans / name / "sub-999.nii.gz")
    return "sub-999 is new"


def removed(scans, out):
    name = splits.read_split(out / "store/split.json").train[0]
    for folder in ("images", "labels"):
        (scans / folder / f"{name}.nii.gz").unlink()
    return f"{name} is gone"


def test_a_study_does_not_go_on_with_other_scans(write_plan, pretended, own_scans, tmp_path):
    plan, out, work = write_plan(data="mine", labels=[1], seeds=[0]), tmp_path / "out", pretended
    selfvox.study(str(plan), out=out)
    saved = (out / "data.json").read_bytes()
    shutil.copytree(own_scans, tmp_path / "whole")
    for change in (changed, added, removed):
        printed = change(own_scans, out)
        with pytest.raises(
            DataError, match=rf"store: these are not the scans .* 1 differ \({printed}\); restore"
        ):
            selfvox.study(str(plan), out=out)
        shutil.rmtree(own_scans)
        shutil.copytree(tmp_path / "whole", own_scans)
    selfvox.study(str(plan), out=out)
    # stores exist, but their fingerprint is not recorded yet
    (out / "data.json").unlink()
    selfvox.study(str(plan), out=out)
    assert (out / "data.json").read_bytes() == saved
    (out / "data.json").unlink()
    changed(own_scans, out)
    with pytest.raises(DataError, match="these are not the scans"):
        selfvox.study(str(plan), out=out)
    assert len(work) == 5


def test_scans_may_change_while_nothing_is_done(write_plan, pretended, own_scans, tmp_path):
    plan, out = write_plan(data="mine", labels=[1], seeds=[0]), tmp_path / "out"
    selfvox.study(str(plan), out=out, dry_run=True)
    changed(own_scans, out)
    selfvox.study(str(plan), out=out)
    assert len(pretended) == 5


def test_folds_that_were_drawn_differently_are_refused(
    write_plan, pretended, tmp_path, monkeypatch
):
    plan = write_plan(test=None, folds=4, validation=1, labels=None, fractions=[1.0], seeds=[0])
    selfvox.study(str(plan), out=tmp_path / "out")
    deal = splits.make_folds
    monkeypatch.setattr(
        splits, "make_folds", lambda classes, count, seed: deal(classes, count, seed)[::-1]
    )
    with pytest.raises(
        DataError, match=r"store-folds/.: the split is not the one that the study began with"
    ):
        selfvox.study(str(plan), out=tmp_path / "out")


def test_the_plan_s_source_says_how_the_truth_is_read_too(write_plan, tmp_path, monkeypatch):
    requests = []
    for name in ("predict", "evaluate"):
        monkeypatch.setattr(score_run, name, requests.append)
    write_text(tmp_path / "settings.yaml", "precision: fp32\ndevice: auto\n")
    score_run.score_network(read_plan(str(write_plan(prepare={"source": "table"}))), tmp_path, None)
    assert [entry.source for entry in requests] == ["table", "table"]
    # as the run was trained, also where a method of the plan has settings of its own
    assert (requests[0].precision, requests[0].device) == ("fp32", "auto")


def test_cases_without_a_grade_have_no_answer(write_plan, tmp_path, monkeypatch):
    for name in ("predict", "evaluate"):
        monkeypatch.setattr(score_run, name, lambda settings: None)
    header = ["id", "class", "probability_0", "probability_2"]
    (tmp_path / "predictions").mkdir()
    write_text(tmp_path / "settings.yaml", "device: auto\n")
    rows = [["a", "2", 0, 1], ["b", "0", 1, 0], ["c", "0", 1, 0]]
    write_csv(tmp_path / "predictions" / "predictions.csv", header, rows)
    cases = [
        types.SimpleNamespace(id=name, grade=grade)
        for name, grade in (("a", 2), ("b", None), ("c", 2))
    ]
    score_run.score_network(
        read_plan(str(write_plan())), tmp_path, types.SimpleNamespace(cases=cases)
    )
    assert (tmp_path / "answers.csv").read_text() == "case,true,predicted\na,1,1\nc,1,0\n"


def test_a_folder_with_other_things_is_left_alone(write_plan, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("hello")
    with pytest.raises(UsageError, match="is not empty and contains no study"):
        selfvox.study(str(write_plan()), out=tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["letter.txt"]


def test_more_labels_than_there_are_is_refused_before_anything_is_trained(
    write_plan, pretended, tmp_path
):
    with pytest.raises(
        UsageError, match="labels: 5 are more than the 4 labelled subjects to train on"
    ):
        selfvox.study(str(write_plan(labels=[5])), out=tmp_path / "out")
    assert pretended == []


def test_targets_are_refused_before_anything_is_trained(
    write_plan, pretended, study_scans, tmp_path
):
    scans = sorted((study_scans / "images").iterdir())
    lines = [f"{scan},{20 + number}" for number, scan in enumerate(scans)]
    (tmp_path / "ages.csv").write_text("\n".join(["image,target", *lines]) + "\n")
    with pytest.raises(UsageError, match="has targets, and a study compares segmentations"):
        selfvox.study(str(write_plan(data="ages.csv")), out=tmp_path / "out")
    assert pretended == []


def test_shares_that_are_the_same_number_of_labels_are_refused(write_plan, pretended, tmp_path):
    with pytest.raises(
        UsageError,
        match="fractions: 50 % and 60 % of 4 subjects to train on are both 2; remove one",
    ):
        selfvox.study(
            str(write_plan(labels=None, fractions=[0.25, 0.5, 0.6])), out=tmp_path / "out"
        )
    assert pretended == []


def test_a_dry_run_trains_nothing(write_plan, pretended, tmp_path, capsys):
    selfvox.study(str(write_plan()), out=tmp_path / "out", dry_run=True)
    assert pretended == []
    printed = capsys.readouterr().out
    assert "Estimated times" in printed
    # cells: steps, five regular and four early validations, a test; pre-trainings; a second each
    seconds = 12 * (1500 + 9 + 1) + 2 * 10
    assert f"{seconds // 3600}:{seconds % 3600 // 60:02} h" in printed


@pytest.mark.fault("F22", "a cell that diverges", "the others are made")
def test_one_cell_that_diverges_does_not_stop_the_others(
    write_plan, pretended, tmp_path, monkeypatch
):
    run_once = run_cell.finetune

    def diverges(settings, is_alone=False):
        if settings.encoder != "none" and "simclr" in settings.encoder and settings.seed == 1:
            raise NumericalError("no finite loss")
        run_once(settings)

    monkeypatch.setattr(run_cell, "finetune", diverges)
    with pytest.raises(
        NumericalError, match="2 of 12 cells failed; the first, simclr, 1 label, seed 1: no finite"
    ):
        selfvox.study(str(write_plan()), out=tmp_path / "out")
    assert len(list(tmp_path.glob("out/cells/*/*/done.json"))) == 10
    assert (tmp_path / "out" / "summary.csv").exists()
    failed = "simclr, {}, seed 1: failed (no finite loss)"
    expected = [failed.format("1 label"), failed.format("3 labels")]
    assert results.missing_cells(load_plan(tmp_path / "out" / "plan.yaml"), tmp_path / "out") == (
        expected,
        12,
    )
    monkeypatch.setattr(run_cell, "finetune", run_once)
    selfvox.study(str(write_plan()), out=tmp_path / "out")
    assert not list(tmp_path.glob("out/cells/*/*/failed.json"))


def test_cells_of_a_pre_training_that_failed_are_not_made(
    write_plan, pretended, tmp_path, monkeypatch, capsys
):
    pretrain = run_cell.pretrain

    def fails(settings, is_alone=False):
        if "rotation" in settings.out.name:
            pretended.append("failed")
            raise ResourceError("the device's memory is full")
        pretrain(settings)

    monkeypatch.setattr(run_cell, "pretrain", fails)
    with pytest.raises(ResourceError, match=r"4 of 12 cells failed; the first, rotation, .* full"):
        selfvox.study(str(write_plan()), out=tmp_path / "out")
    assert pretended.count("failed") == 1
    assert len(list(tmp_path.glob("out/cells/*/*/done.json"))) == 8
    assert (
        "failed: rotation, 3 labels, seed 1: the device's memory is full" in capsys.readouterr().err
    )


def test_a_stopped_study_says_how_to_continue(write_plan, pretended, tmp_path, monkeypatch):
    def stops(settings, is_alone=False):
        raise Stopped(
            f"{settings.out}: stopped by SIGTERM after step 3, saved; go on with --resume", 15
        )

    monkeypatch.setattr(run_cell, "finetune", stops)
    with pytest.raises(
        Stopped, match=r"out: stopped; run the same command again to continue$"
    ) as stopped:
        selfvox.study(str(write_plan(seeds=[0])), out=tmp_path / "out")
    assert stopped.value.exit_code == 143


def test_where_every_cell_diverges_that_is_the_error(write_plan, pretended, tmp_path, monkeypatch):
    def diverges(settings, is_alone=False):
        raise NumericalError("no finite loss")

    monkeypatch.setattr(run_cell, "finetune", diverges)
    with pytest.raises(
        NumericalError, match="6 of 6 cells failed; the first, scratch, 1 label, seed 0: no finite"
    ):
        selfvox.study(str(write_plan(seeds=[0])), out=tmp_path / "out")


def test_folds_score_every_subject_once_without_having_trained_on_it(
    write_plan, pretended, tmp_path
):
    plan = write_plan(test=None, folds=4, validation=1, labels=None, fractions=[1.0], seeds=[0])
    rows = selfvox.study(str(plan), out=tmp_path / "out")
    assert len([entry for entry in pretended if entry.startswith("pretrain ")]) == 2 * 4
    tested = []
    for number in range(4):
        split = splits.read_split(
            tmp_path / f"out/cells/rotation/100-percent-seed-0-pretrain-0-fold-{number}/split.json"
        )
        _, card = read_encoder(tmp_path / f"out/pretrain/rotation-seed-0-fold-{number}")
        assert not set(split.test) & {*split.train, *split.validation, *card.seen["subjects"]}
        tested += split.test
    assert len(tested) == len(set(tested)) == 8
    assert {(row["method"], row["runs"]) for row in rows} == {
        ("scratch", 1),
        ("rotation", 1),
        ("simclr", 1),
    }
    with (tmp_path / "out/table.csv").open(newline="") as lines:
        cases = [(row["method"], row["name"], row["case"]) for row in csv.DictReader(lines)]
    assert len(cases) == len(set(cases)) == 3 * 2 * 8


# leaks


def planted(tmp_path, study_scans, out):
    """A folder of other scans, one of which is the first test scan under another name."""
    test = splits.read_split(out / "store" / "split.json").test[0]
    strangers = tmp_path / "other"
    strangers.mkdir()
    for number, name in enumerate(
        [test, *splits.read_split(out / "store" / "split.json").train[:2]]
    ):
        (strangers / f"stranger{number}.nii.gz").write_bytes(
            (study_scans / "images" / f"{name}.nii.gz").read_bytes()
        )
    return test


def test_a_test_scan_seen_in_pre_training_is_refused(finished, tmp_path, study_scans, write_plan):
    _, reference, work = finished
    test = planted(tmp_path, study_scans, reference)
    work.clear()
    plan = write_plan(methods={"transfer": {"pretrain": {"task": "rotation", "scans": "other"}}})
    with pytest.raises(
        DataError,
        match=f"other: pre-training has seen 1 of 2 test scans: 1 by contents .{test} first.; "
        "pre-train without .*transductive: true",
    ):
        selfvox.study(str(plan), out=tmp_path / "leaky")
    assert work == []


def test_test_subjects_of_other_scans_that_their_own_split_sets_aside_are_not_seen(
    finished, tmp_path, study_scans, write_plan
):
    test = splits.read_split(finished[1] / "store" / "split.json").test
    selfvox.prepare(study_scans, out=tmp_path / "own", workers=1)
    others = [case.subject for case in open_store(tmp_path / "own").cases]
    train = tuple(subject for subject in others if subject not in test)
    splits.write_split(splits.Split(train, (), tuple(test), 0), tmp_path / "own" / "split.json")
    methods = {"transfer": {"pretrain": {"task": "rotation", "scans": "own"}}}
    rows = selfvox.study(str(write_plan(methods=methods)), out=tmp_path / "apart")
    assert {row["transductive"] for row in rows} == {False}


def test_where_some_scans_have_label_images_a_grade_alone_is_no_label(finished):
    store = open_store(finished[1] / "store")
    graded, *others = stores.trainable_subjects(store)
    cases = [
        dataclasses.replace(case, grade=1, has_label=case.subject != graded) for case in store.cases
    ]
    mixed = dataclasses.replace(store, cases=tuple(cases))
    assert stores.trainable_subjects(mixed) == set(others)
    drawn = [stores.draw_subjects(mixed, seed, 1, None) for seed in range(20)]
    assert {subject for subjects in drawn for subject in subjects} == set(others)
    grades = [dataclasses.replace(case, has_label=False) for case in cases]
    no_images = dataclasses.replace(store, cases=tuple(grades))
    assert stores.trainable_subjects(no_images) == {graded, *others}


def test_a_transductive_plan_may_and_its_tables_say_so(
    finished, tmp_path, study_scans, write_plan, capsys
):
    planted(tmp_path, study_scans, finished[1])
    methods = {"transfer": {"pretrain": {"task": "rotation", "scans": "other"}}}
    selfvox.study(str(write_plan(methods=methods, transductive=True)), out=tmp_path / "told")
    assert "transfer (transductive)" in capsys.readouterr().out
    with (tmp_path / "told" / "summary.csv").open(newline="") as lines:
        printed = {row["method"]: row["transductive"] for row in csv.DictReader(lines)}
    assert printed == {"scratch": "no", "transfer": "yes"}


def test_a_run_that_has_seen_a_test_scan_is_refused_before_anything_is_trained(
    finished, tmp_path, write_plan
):
    _, reference, work = finished
    work.clear()
    run = reference / "pretrain" / "rotation-seed-0"
    file = run / "encoder" / "encoder.json"
    _, encoder_card = read_encoder(run)
    seen = encoder_card.seen
    test = splits.read_split(reference / "store" / "split.json").test[0]
    digest = write_seen(file.parent, {**seen, "subjects": [*seen["subjects"], test]})
    write_checked(file, {**json.loads(file.read_text()), "seen_sha256": digest})
    plan = write_plan(methods={"mine": {"pretrain": str(run)}})
    message = (
        f"rotation-seed-0: .* seen 1 of 2 test scans: 1 by the name of the subject .{test} first"
    )
    with pytest.raises(DataError, match=f"{message}.; .* a table with a column `subject`"):
        selfvox.study(str(plan), out=tmp_path / "leaky")
    assert work == []


def test_a_run_that_others_weights_replace_is_not_taken_for_what_it_was(
    finished, tmp_path, write_plan
):
    _, reference, _ = finished
    run = reference / "pretrain" / "rotation-seed-0"
    plan = write_plan(methods={"mine": {"pretrain": str(run)}}, labels=[1], seeds=[0])
    selfvox.study(str(plan), out=tmp_path / "out")
    selfvox.study(str(plan), out=tmp_path / "out")
    shutil.copytree(
        reference / "pretrain" / "simclr-seed-0" / "encoder", run / "encoder", dirs_exist_ok=True
    )
    with pytest.raises(UsageError, match=r"mine.*was made with settings other"):
        selfvox.study(str(plan), out=tmp_path / "out")


def test_without_scans_of_its_own_a_transductive_method_sees_the_test_scans(
    write_plan, pretended, tmp_path
):
    selfvox.study(str(write_plan(transductive=True, labels=[1], seeds=[0])), out=tmp_path / "out")
    _, card = read_encoder(tmp_path / "out/pretrain/rotation-seed-0")
    test = splits.read_split(tmp_path / "out/store/split.json").test
    assert set(test) < set(card.seen["subjects"])
    assert (tmp_path / "out/scans/all/images").is_symlink()  # none is prepared twice


@pytest.mark.fault("C3", "a test scan that trains under another name", "refused")
def test_a_test_scan_that_trains_under_another_name_is_refused(
    write_plan, pretended, tmp_path, study_scans
):
    images, labels = tmp_path / "twice" / "images", tmp_path / "twice" / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    for number in range(6):
        for folder, name in ((images, "images"), (labels, "labels")):
            content = (study_scans / name / f"sub-00{number // 2 + 1}.nii.gz").read_bytes()
            (folder / f"s{number}.nii.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"this test scan is identical to s.*, which is trained on"):
        selfvox.study(str(write_plan(data="twice", validation=0)), out=tmp_path / "out")
    assert pretended == []


def test_a_resampled_copy_of_a_test_scan_that_trains_is_refused():
    def case(name, seed):
        picture = base64.b64encode(np.random.default_rng(seed).bytes(512)).decode()
        contents = {"image_hash": name, "sha256": {"images": name}, "coarse_picture": picture}
        return SimpleNamespace(id=name, subject=name, is_labelled=True, **contents)

    split = splits.Split(train=("ann", "bob"), validation=(), test=("cyd",), seed=0)
    store = SimpleNamespace(
        cases=[case("ann", 0), case("bob", 1), case("cyd", 2)], split=lambda: split
    )
    check_stores.check_duplicates(store, False)
    store.cases[2] = case("cyd", 1)
    with pytest.raises(DataError, match="cyd: this test scan is like a resampled copy of bob"):
        check_stores.check_duplicates(store, False)


def test_an_unlabelled_copy_of_a_test_scan_is_refused_before_it_is_pre_trained_on(
    write_plan, pretended, own_scans, tmp_path
):
    few_labels = {"data": "mine", "labels": [1], "seeds": [0]}
    path = write_plan(**few_labels)
    selfvox.study(str(path), out=tmp_path / "dry", dry_run=True)
    for number, test in enumerate(splits.read_split(tmp_path / "dry/store/split.json").test):
        shutil.copy(
            own_scans / "images" / f"{test}.nii.gz", own_scans / "images" / f"copy-{number}.nii.gz"
        )
    with pytest.raises(
        DataError, match=r"this test scan is identical to copy-\d, which is trained on"
    ):
        selfvox.study(str(path), out=tmp_path / "out")
    assert pretended == []
    # nothing trains on it
    selfvox.study(
        str(write_plan(**few_labels, methods={"scratch": "scratch"})), out=tmp_path / "from-scratch"
    )
    selfvox.study(str(write_plan(**few_labels, transductive=True)), out=tmp_path / "transductive")


# with real training


def test_a_small_study_with_real_training(write_plan, tmp_path, capsys):
    shared = {"crop": 16, "batch": 2, "device": "cpu"}
    plan = write_plan(
        labels=[2],
        seeds=[0],
        equal_compute=True,
        methods={"rotation": {"pretrain": {"task": "rotation"}}, "none": "scratch"},
        pretrain={**shared, "steps": 2, "network": {"name": "plain", "channels": [4, 8]}},
        finetune={**shared, "steps": 2},
    )
    rows = selfvox.study(str(plan), out=tmp_path / "out")
    assert {row["method"] for row in rows} == {"none", "rotation", "none equal compute"}
    settings = {
        path.parent.parent.name: yaml.safe_load(path.read_text())
        for path in tmp_path.glob("out/cells/*/*/settings.yaml")
    }
    assert settings["none"]["steps"] == settings["rotation"]["steps"] == 2
    # two steps of an encoder on two crops are less than two of a whole network
    assert 3 <= settings["none-equal-compute"]["steps"] <= 4
    assert settings["none"]["network"]["channels"] == [4, 8]
    cards = [
        json.loads(path.read_text()) for path in tmp_path.glob("out/cells/*/*/network/network.json")
    ]
    assert len({json.dumps(card["network"]) for card in cards}) == 1
    assert not list(tmp_path.glob("out/**/checkpoints"))
    assert not (tmp_path / "out" / "trial").exists()


def test_the_figures_are_drawn_from_the_run_folders_alone(finished, monkeypatch):
    _, out, _ = finished
    monkeypatch.undo()
    for folder in ("store", "pretrain", "scans", "locks"):
        shutil.rmtree(out / folder, ignore_errors=True)
    selfvox.study("gone.yaml", out=out, table=True)
    sizes = {
        path.name: images.read_image(path).data.shape[1:] for path in (out / "figures").iterdir()
    }
    assert sizes.keys() == {"labels.png", "methods.png", "steps.png", "differences.png"}
    assert all(min(size) > 300 for size in sizes.values())


def test_runs_know_the_subjects_of_their_cases(finished):
    _, out, _ = finished
    store = open_store(out / "store")
    cases = [dataclasses.replace(case, subject="twins") for case in store.cases]
    write_manifest(out / "store", store.recipe, store.classes, cases, {})
    loaded = results.read_results(load_plan(out / "plan.yaml"), out)
    assert {run.subjects[case] for run in loaded for case in run.cases()} == {"twins"}
    assert {run.method: run.from_scratch for run in loaded} == {
        "scratch": True,
        "rotation": False,
        "simclr": False,
    }


def test_curves_show_the_score_that_is_compared(finished):
    _, out, _ = finished
    reference = results.read_results(load_plan(out / "plan.yaml"), out)
    measured = {"kappa": 0.25, "balanced_accuracy": 0.5}
    for key, title, line, expected in (
        ("dice", "Dice", {"dice_mean": 0.75}, 0.75),
        ("balanced_accuracy", "Balanced accuracy", measured, 0.5),
        ("quadratic_kappa", "Kappa", measured, 0.25),
    ):
        for file in out.glob("cells/*/*/metrics.jsonl"):
            file.write_text(json.dumps({"step": 3, "loss": 1, **line}) + "\n")
        loaded = [dataclasses.replace(run, key=key) for run in reference]
        axes = figures._by_steps(loaded, figure_parts.looks_of(loaded)).axes[0]
        assert axes.get_ylabel() == f"{title} of the validation subjects"
        assert [float(entry.get_ydata()[0]) for entry in axes.lines] == [expected] * 3


@pytest.mark.filterwarnings("ignore")  # dask's own
def test_a_cluster_tries_a_pre_training_that_fails_once(
    write_plan, pretended, tmp_path, monkeypatch
):
    distributed = pytest.importorskip("distributed")

    def fails(settings, is_alone=False):
        pretended.append("failed")
        raise ResourceError("the device's memory is full")

    monkeypatch.setattr(run_cell, "pretrain", fails)
    plan, out = str(write_plan(methods=rotation())), tmp_path / "out"
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        with pytest.raises(
            ResourceError, match=r"4 of 8 cells failed; the first, rotation, .* full"
        ):
            selfvox.study(plan, out=out, scheduler=address)
    assert pretended.count("failed") == 1
    assert len(list(out.glob("cells/*/*/failed.json"))) == 4


def test_finished_cells_need_no_pre_training_any_more(write_plan, pretended, tmp_path):
    plan, out = str(write_plan()), tmp_path / "out"
    rows = selfvox.study(plan, out=out)
    shutil.rmtree(out / "pretrain")
    pretended.clear()
    again = selfvox.study(plan, out=out)
    assert pretended == []
    assert [row["mean"] for row in again] == [row["mean"] for row in rows]


def test_a_cell_of_another_process_is_announced_once_with_the_remedy(
    write_plan, pretended, tmp_path, monkeypatch, capsys
):
    out, rounds = tmp_path / "out", []
    with contextlib.ExitStack() as other_process:
        cell = "cells/scratch/1-labels-seed-0"

        def wait(seconds):
            rounds.append(seconds)
            if len(rounds) == 3:
                other_process.close()

        monkeypatch.setattr(run_study.time, "sleep", wait)
        selfvox.study(str(write_plan(seeds=[0])), out=out, dry_run=True)
        other_process.enter_context(run_once.study_lock(out, cell))
        capsys.readouterr()
        selfvox.study(str(write_plan(seeds=[0])), out=out)
    printed = capsys.readouterr().err
    assert len(rounds) == 3
    assert printed.count("now scratch, 1 label, seed 0") == 1
    assert printed.count("scratch, 1 label, seed 0: later (") == 1
    assert "is writing here; wait for it" in printed


@pytest.mark.filterwarnings("ignore")  # dask's own
def test_a_dask_cluster_makes_each_piece_once_and_the_same_tables(finished, tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    plan, out, work = finished
    work_here = sorted(work)
    work.clear()
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        selfvox.study(str(plan), out=tmp_path / "there", scheduler=cluster.scheduler_address)
    assert sorted(work) == work_here
    assert tables(tmp_path / "there") == tables(out)
    printed = (
        capsys.readouterr().err
    )  # first 2 pre-trainings and 4 cells from scratch, then 8 cells
    assert "6/6" in printed
    assert "8/8" in printed
    assert "done  0 s left" in printed  # after the last


def test_the_time_left_on_a_cluster_follows_from_the_pace_so_far(monkeypatch):
    clock = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr(run_study.time, "monotonic", lambda: next(clock))
    pace = run_study._Pace(12.0)
    assert pace.time_left(0.0, counts=True) == ""  # was done before
    # 4 of 12 expected seconds took 10, so that the other 8 take 20
    assert pace.time_left(4.0, counts=True) == f"  {format_seconds(20)} left"
    assert pace.time_left(2.0, counts=False) == f"  {format_seconds(30 * 6 / 4)} left"
