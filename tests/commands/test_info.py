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
def installed(capsys) -> dict:
    assert main(["info", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_is_what_the_function_returns(installed, capsys):
    assert selfvox.info(json=True) == installed
    assert json.loads(capsys.readouterr().out) == installed


def test_tasks_and_sources_are_the_files_of_their_folders(installed):
    for title, folder in (("tasks", "tasks"), ("sources", "data/sources")):
        files = {path.stem for path in (SOURCE / folder).glob("[!_]*.py")}
        assert set(installed[title]) == files
        for name, text in installed[title].items():
            assert text
            assert (SOURCE / folder / f"{name}.py").read_text().startswith(f'"""{text}')
    assert list(installed["tasks"]) == tasks.task_names()
    assert list(installed["sources"]) == sources.source_names()
    assert installed["encoders"] == encoder_names()


def test_versions_are_those_that_run(installed):
    assert installed["selfvox"] == selfvox.__version__
    assert installed["packages"]["torch"] == torch.__version__
    assert installed["packages"]["numpy"] == np.__version__
    assert {"nilearn", "timm", "distributed"} < set(installed["packages"])
    assert "ruff" not in installed["packages"]


def test_a_missing_optional_package_is_listed(capsys, monkeypatch):
    version = importlib.metadata.version

    def without_timm(name):
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_timm)
    assert selfvox.info()["packages"]["timm"] is None
    assert "timm                          not installed (optional)" in capsys.readouterr().out


def test_the_readable_form_shows_the_same(installed, capsys):
    selfvox.info()
    shown = capsys.readouterr().out
    names = [
        *installed["tasks"],
        *installed["sources"],
        *installed["encoders"],
        *installed["packages"],
        *installed["tasks"].values(),
    ]
    for name in (*names, f"{installed['devices']['cpu']['cores']} cores"):
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


def test_no_host_user_or_path_is_printed(installed):
    text = json.dumps(installed)
    for secret in (socket.gethostname(), str(Path.home()), str(SOURCE), os.environ.get("USER", "")):
        assert len(secret) < 5 or secret not in text


def test_info_tasks_has_the_use_options_and_cost_of_each_task(capsys):
    installed = selfvox.info("tasks")
    text = " ".join(capsys.readouterr().out.split())
    assert list(installed) == tasks.task_names()
    for name, task in installed.items():
        assert f"{name}: {task['question'].partition(': ')[2]}" in text
        assert "Good for" in task["about"]
        assert " ".join(task["about"].split()) in text
        task_options = options(tasks.find_task(name))
        assert list(task["options"]) == [option.name for option in task_options]
        assert main(["pretrain", "--task", name, "--help"]) == 0
        usage = " ".join(capsys.readouterr().out.split())
        for option in task_options:
            flag = f"--task.{option.name.replace('_', '-')}"
            assert f"{flag} [" in text
            assert flag in usage
            assert option.help in text
            assert option.help in usage
    assert main(["info", "tasks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == installed


def test_the_cost_of_a_task_is_the_share_of_voxels_that_its_encoder_sees():
    cost = {name: task["voxels"] for name, task in selfvox.info("tasks").items()}
    assert [cost["rotation"], cost["masked"], cost["simclr"], cost["exemplar"]] == [1, 1, 2, 2]
    assert cost["genesis"] == 1
    # tiles of 16 voxels: nine of relative location, 27 of jigsaw; CPC's 64 patches have 24
    expected = [9 * 16**3, 27 * 16**3, 64 * 24**3]
    installed = [cost["relative_location"], cost["jigsaw"], cost["cpc"]]
    assert installed == pytest.approx([voxels / 64**3 for voxels in expected], abs=0.01)
