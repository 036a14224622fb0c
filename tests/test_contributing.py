"""The example task of CONTRIBUTING.md is a real one."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import selfvox
from selfvox import tasks
from selfvox.data import phantom
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.runs.run_folder import read_metrics

ROOT = Path(__file__).parent.parent
TASK, TEST = re.findall(
    r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.fixture(autouse=True)
def the_example_is_a_file_of_tasks(tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mirror.py").write_text(TASK, encoding="utf-8")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "tasks")])


def test_the_example_is_found_by_its_file_name():
    assert "mirror" in tasks.task_names()
    assert tasks.find_task("mirror").__name__ == "Mirror"


def test_the_example_test_holds(tmp_path):
    (tmp_path / "test_mirror.py").write_text(TEST, encoding="utf-8")
    tests = [
        value
        for name, value in runpy.run_path(str(tmp_path / "test_mirror.py")).items()
        if name[:5] == "test_"
    ]
    assert tests
    for test in tests:
        test()


def test_the_example_passes_the_test_of_every_task(tmp_path):
    folder = str(tmp_path / "tasks")
    plugin = f"from selfvox import tasks\ntasks.__path__ = [*tasks.__path__, {folder!r}]\n"
    (tmp_path / "with_mirror.py").write_text(plugin, encoding="utf-8")
    plugins = ["-p", "with_mirror", "-p", "no:cacheprovider"]
    arguments = [*plugins, "-k", "mirror", "tests/test_every_task.py"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


@pytest.mark.parametrize("d", [2, 3])
def test_the_example_learns_in_2d_and_3d(d):
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    # a bright side, so that mirroring can be seen
    images = (
        torch.linspace(-1, 1, 8).view(1, 1, 8, *(1,) * (d - 1)).expand(8, 1, *(8,) * d).contiguous()
    )
    task = tasks.task_from_setting("mirror")
    encoder = build_encoder(
        plan_encoder({"channels": [4, 8], "blocks": 1}, (8,) * d, (1.0,) * d), d, 1
    )
    head = task.head(encoder)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(30):
        outcome = task.loss(encoder, head, task.make_batch(images, rng))
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
    assert outcome.metrics["accuracy"] == 1


def test_the_example_pretrains_an_encoder(tmp_path):
    phantom.write(tmp_path / "scans", kind="shapes", count=2)
    run = selfvox.pretrain(
        tmp_path / "scans",
        out=tmp_path / "run",
        task={"name": "mirror", "axis": "y"},
        steps=2,
        batch=2,
        crop=(8, 8, 8),
        network={"channels": [4, 8], "blocks": 1},
    )
    assert read_metrics(run)[-1]["chance"] == 0.5
    assert (run / "encoder" / "weights.safetensors").exists()
