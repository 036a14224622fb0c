"""The command `demo`, which is the first that the README shows, from its start to its last line."""

import csv
import shutil
import statistics
import sys

import numpy as np
import pytest
from PIL import Image

import selfvox
from selfvox.commands import demo
from selfvox.errors import Stopped, UsageError

SMALL = {
    "KIND": "shapes",
    "UNLABELLED": 2,
    "LABELS": 2,
    "VALIDATION": 1,
    "TEST": 2,
    "CROP": (16, 16, 16),
    "NETWORK": {"name": "plain", "channels": [4, 8]},
    "PRETRAIN_STEPS": 3,
    "FINETUNE_STEPS": 3,
}


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory):
    """A demo of few small scans and three steps: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("small") / "demo"
    printed = []
    with pytest.MonkeyPatch.context() as patched:
        for name, value in SMALL.items():
            patched.setattr(demo, name, value)
        patched.setattr(demo, "echo", printed.append)
        with demo.console.capture() as captured:
            assert selfvox.demo(out=out) == out
    return out, printed, captured.get()


def test_a_demo_ends_with_three_pictures(small_demo):
    out, _, _ = small_demo
    for name in ("preview.png", "curves.png", "predictions.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
            assert np.asarray(picture.convert("L")).std() > 5


def test_a_demo_goes_through_all_five_steps_and_says_what_to_type_next(small_demo):
    out, printed, _ = small_demo
    steps = [line.split(":")[0] for line in printed if " of 5: " in line]
    assert steps == [f"{number} of 5" for number in range(1, 6)]
    assert printed[-1].endswith(" pretrain YOUR_SCANS/ --out runs/pretrained")
    assert (out / "runs" / "rotation" / "encoder" / "encoder.json").exists()
    for name in ("pretrained", "scratch"):
        assert len(list((out / "predictions" / name).glob("*.nii.gz"))) == 2


def test_the_table_of_a_demo_has_the_means_of_its_scores(small_demo):
    out, _, printed = small_demo
    means = {}
    for name in ("pretrained", "scratch"):
        with (out / f"scores_{name}.csv").open(newline="") as lines:
            for row in csv.DictReader(lines):
                means.setdefault(row["name"], {}).setdefault(name, []).append(float(row["dice"]))
    assert {"dark", "bright"} <= set(means)
    table = {line.split()[0]: line for line in printed.splitlines() if line.split()[:1]}
    for name, scores in means.items():
        for values in scores.values():
            assert f"{statistics.mean(values):.3f} ± " in table[name.split()[0]]
        pairs = list(zip(scores["pretrained"], scores["scratch"], strict=True))
        assert f"{sum(a > b for a, b in pairs)} of 2" in table[name.split()[0]]


@pytest.mark.parametrize("script_place", ["same folder", "elsewhere", None])
def test_the_next_command_starts_this_installation(script_place, tmp_path, monkeypatch):
    python = tmp_path / "a b" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    scripts = {"same folder": python.with_name("selfvox"), "elsewhere": tmp_path / "selfvox"}
    monkeypatch.setattr(
        shutil, "which", lambda name: scripts.get(script_place) and str(scripts[script_place])
    )
    expected = "selfvox" if script_place == "same folder" else f"'{python}' -m selfvox"
    assert demo._program() == expected


def test_a_demo_that_was_stopped_is_started_again(tmp_path, monkeypatch):
    def stop(folder, **_):
        folder.mkdir(parents=True)
        raise Stopped(
            "demo/runs/rotation: stopped by SIGINT after step 3, saved; go on with --resume", 2
        )

    monkeypatch.setattr(demo.phantom, "write", stop)
    with pytest.raises(Stopped, match=r"demo: stopped; remove it and run the demo again$") as error:
        selfvox.demo(out=tmp_path / "demo")
    assert error.value.exit_code == 130
    with pytest.raises(UsageError, match="is not empty; remove it"):
        selfvox.demo(out=tmp_path / "demo")
