"""The example task of CONTRIBUTING.md is a real one."""

import re
import runpy
from pathlib import Path

import pytest
import torch

import selfvox
from selfvox import tasks, testing
from selfvox.data import phantom
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.runs.run_folder import read_metrics

from . import test_every_task

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


@pytest.mark.parametrize("spatial_dims", [2, 3], ids=["2D", "3D"])
@pytest.mark.parametrize("check", testing.TASK_CHECKS, ids=lambda check: check.__name__)
def test_the_example_satisfies_the_contract_of_a_task(spatial_dims, check):
    test_every_task.test_the_contract_of_a_task_is_satisfied("mirror", spatial_dims, check)


def test_the_example_refuses_what_every_task_refuses():
    test_every_task.test_a_negative_number_is_refused_by_name("mirror")
    test_every_task.test_a_misspelt_task_is_refused_with_the_right_one("mirror")


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
