"""A study without training: runs are faked, so that everything around them is tested quickly."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from selfvox.data import phantom
from selfvox.data.preparation import split as splits
from selfvox.data.preparation.leakage import seen_scans
from selfvox.data.preparation.store import open_store
from selfvox.runs.atomic_files import write_csv, write_text
from selfvox.runs.weights import save_part
from selfvox.studies import figures, measure_facts, run_cell, run_once
from selfvox.studies.facts import MethodFacts

FACTS = MethodFacts(
    network={"name": "plain"},
    store="store",
    pretrain_steps=10,
    pretrain_step_s=1.0,
    pretrain_step_flop=200.0,
    step_s=1.0,
    step_flop=100.0,
    validation_s=1.0,
    test_s=1.0,
    training=4,
    scans_per_subject=1.0,
)


def rotation(**settings):
    """The method rotation, by its name."""
    return {"rotation": {"pretrain": {"task": "rotation"}, **settings}}


PLAN = {
    "data": "scans",
    "test": 2,
    "validation": 2,
    "labels": [1, 3],
    "seeds": [0, 1],
    "methods": {**rotation(), "simclr": {"pretrain": {"task": "simclr"}}},
}


class SteadyMeter:
    """Every work takes the same, so that tables of two studies are equal."""

    def read(self):
        return {"seconds": 3.0, "cpu_s": 5.0, "peak_memory_mib": 100}


@pytest.fixture(scope="session")
def study_scans(tmp_path_factory):
    """Eight labelled volumes, as files."""
    folder = tmp_path_factory.mktemp("study") / "scans"
    phantom.write(folder, "shapes", count=8)
    return folder


@pytest.fixture
def write_plan(tmp_path, study_scans):
    """Write a plan next to its scans; returns its path."""
    (tmp_path / "scans").symlink_to(study_scans)

    def write(**changes) -> Path:
        plan = {name: value for name, value in {**PLAN, **changes}.items() if value is not None}
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
        return tmp_path / "plan.yaml"

    return write


@pytest.fixture
def pretended(monkeypatch):
    """Fake every run, with scores that depend on its name alone; lists the runs that were made."""
    work = []

    def pretrain(settings, is_alone=False):
        work.append(f"pretrain {settings.out.name}")
        store = open_store(settings.scans)
        split = store.split()
        test = set(split.test) if split else set()
        card = {
            "network": {"name": "plain"},
            "spatial_dims": 3,
            "in_channels": 1,
            "crop": [8, 8, 8],
            "slices": None,
            "spacing_mm": [1.0, 1.0, 1.0],
            "task": {"name": "rotation"},
            "weights": None,
            "steps": 1,
            "seed": 0,
        }
        card["recipe"] = store.recipe.to_dict()
        card["seen"] = seen_scans([case for case in store.cases if case.subject not in test])
        (settings.out / "settings.yaml").write_text(f"scans: {settings.scans}\n")
        save_part(settings.out / "encoder", "encoder", torch.nn.Linear(1, 1), card)

    def finetune(settings, is_alone=False):
        work.append(f"{settings.out.parent.name} {settings.out.name}")
        split = open_store(settings.labelled).split()
        chosen = splits.choose_subset(
            split, settings.subset_seed, settings.labels, settings.fraction
        )
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "settings.yaml").write_text(f"labelled: {settings.labelled}\n")
        write_text(settings.out / "metrics.jsonl", '{"step": 1, "loss": 1, "dice_mean": 0.5}\n')
        splits.write_split(
            splits.Split(chosen, split.validation, split.test, settings.seed),
            settings.out / "split.json",
        )

    def score(plan, run, store):
        test = splits.read_split(run / "split.json").test
        rows = []
        for case in test:
            for value, name in ((1, "dark"), (2, "bright")):
                digest = hashlib.sha256(
                    f"{run.parent.name} {run.name} {case} {value}".encode()
                ).digest()
                rows.append([case, value, name, f"{digest[0] / 255:.6g}"])
        write_csv(run / "scores.csv", ["case", "class", "name", "dice"], rows)

    def measure(plan, out, method):
        return FACTS

    for name, fake in (("pretrain", pretrain), ("finetune", finetune), ("score_network", score)):
        monkeypatch.setattr(run_cell, name, fake)
    monkeypatch.setattr(measure_facts, "_measure_method", measure)
    monkeypatch.setattr(run_once, "Meter", SteadyMeter)
    monkeypatch.setattr(
        figures, "draw", lambda plan, results, summary, further, folder: []
    )  # takes seconds
    return work


@pytest.fixture
def prepared_out(tmp_path_factory, study_scans):
    """Folders for studies of one plan that have the same store, so that it is prepared once."""

    def make(name: str, like: Path | None = None) -> Path:
        out = tmp_path_factory.mktemp("studies") / name
        if like:
            out.mkdir()
            shutil.copytree(like / "store", out / "store")
            shutil.copy(like / "plan.yaml", out / "plan.yaml")
        return out

    return make
