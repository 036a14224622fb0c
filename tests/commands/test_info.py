"""The command `info`: what it prints is what it returns, and both are what is installed."""

import importlib.metadata
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

import selfvox
from selfvox import tasks
from selfvox.cli import main
from selfvox.data import sources
from selfvox.models.build import encoder_names
from selfvox.settings.options import options

SOURCE = Path(selfvox.__file__).parent


@pytest.fixture
def found(capsys) -> dict:
    assert main(["info", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_is_what_the_function_returns(found, capsys):
    assert selfvox.info(json=True) == found
    assert json.loads(capsys.readouterr().out) == found


def test_tasks_and_sources_are_the_files_of_their_folders(found):
    for title, folder in (("tasks", "tasks"), ("sources", "data/sources")):
        files = {path.stem for path in (SOURCE / folder).glob("[!_]*.py")}
        assert set(found[title]) == files
        for name, text in found[title].items():
            assert text
            assert (SOURCE / folder / f"{name}.py").read_text().startswith(f'"""{text}')
    assert list(found["tasks"]) == tasks.task_names()
    assert list(found["sources"]) == sources.source_names()
    assert found["encoders"] == encoder_names()


def test_versions_are_those_that_run(found):
    assert found["selfvox"] == selfvox.__version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["numpy"] == np.__version__
    assert {"nilearn", "timm", "distributed"} < set(found["packages"])
    assert "ruff" not in found["packages"]


def test_an_absent_optional_package_is_told(capsys, monkeypatch):
    version = importlib.metadata.version

    def without_timm(name):
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_timm)
    assert selfvox.info()["packages"]["timm"] is None
    assert "timm                          not installed (optional)" in capsys.readouterr().out


def test_the_readable_form_shows_the_same(found, capsys):
    selfvox.info()
    shown = capsys.readouterr().out
    names = [
        *found["tasks"],
        *found["sources"],
        *found["encoders"],
        *found["packages"],
        *found["tasks"].values(),
    ]
    for name in (*names, f"{found['devices']['cpu']['cores']} cores"):
        assert name in shown


def test_cards_are_listed(monkeypatch, capsys):
    card = type("Card", (), {"name": "NVIDIA Toy", "total_memory": 24 * 2**30})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert selfvox.info()["devices"]["cuda"] == [
        {"name": "NVIDIA Toy", "memory_gib": 24.0, "bf16": True}
    ]
    assert "cuda:0  NVIDIA Toy, 24.0 GiB, bf16" in capsys.readouterr().out


def test_nothing_tells_who_and_where(found):
    text = json.dumps(found)
    for secret in (socket.gethostname(), str(Path.home()), str(SOURCE), os.environ.get("USER", "")):
        assert len(secret) < 5 or secret not in text


def test_info_tasks_tells_each_task_its_use_its_options_and_its_cost(capsys):
    found = selfvox.info("tasks")
    text = " ".join(capsys.readouterr().out.split())
    assert list(found) == tasks.task_names()
    for name, task in found.items():
        assert f"{name}: {task['question'].partition(': ')[2]}" in text
        assert "Good for" in task["about"]
        assert " ".join(task["about"].split()) in text
        known = options(tasks.find_task(name))
        assert list(task["options"]) == [option.name for option in known]
        assert main(["pretrain", "--task", name, "--help"]) == 0
        usage = " ".join(capsys.readouterr().out.split())
        for option in known:
            flag = f"--task.{option.name.replace('_', '-')}"
            assert f"{flag} [" in text
            assert flag in usage
            assert option.help in text
            assert option.help in usage
    assert main(["info", "tasks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_the_cost_of_a_task_is_the_share_of_voxels_that_its_encoder_sees():
    cost = {name: task["voxels"] for name, task in selfvox.info("tasks").items()}
    assert [cost["rotation"], cost["masked"], cost["simclr"], cost["exemplar"]] == [1, 1, 2, 2]
    # tiles of 16 voxels: two of relative location, 27 of jigsaw; CPC's 64 patches have 24
    expected = [2 * 16**3, 27 * 16**3, 64 * 24**3]
    found = [cost["relative_location"], cost["jigsaw"], cost["cpc"]]
    assert found == pytest.approx([voxels / 64**3 for voxels in expected], abs=0.01)
