"""A run folder survives kills, damage and full disks, and never mixes two runs."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from selfvox.errors import NumericalError, ResourceError, UsageError, WeightsError
from selfvox.runs import atomic_files, run_folder
from selfvox.runs.run_folder import Checkpoint, Run, open_run
from selfvox.runs.weights import load_part, load_strictly, load_tensors, save_part, state_tensors
from selfvox.settings.verbs import Pretrain


def settings(tmp_path, **changed):
    return Pretrain(scans=tmp_path / "scans", out=tmp_path / "run", **changed)


def checkpoint(step):
    return Checkpoint(step, {"weights.a": torch.full((3,), float(step))}, {"skipped": 0})


def started(tmp_path):
    return open_run(tmp_path / "run", settings(tmp_path), resume=False)


@pytest.fixture
def opened(tmp_path):
    with open_run(tmp_path / "run", settings(tmp_path), resume=False) as opened:
        yield opened


def test_a_checkpoint_is_read_back_as_it_was_written(opened):
    opened.save_checkpoint(
        Checkpoint(7, {"weights.a": torch.randn(3), "b": torch.tensor(2)}, {"skipped": 1})
    )
    back = opened.last_checkpoint()
    assert back.step == 7
    assert back.state == {"skipped": 1}
    assert back.tensors["b"].item() == 2


def test_the_last_two_checkpoints_are_kept(opened):
    for step in (1, 2, 3):
        opened.save_checkpoint(checkpoint(step))
    assert sorted(path.stem for path in opened.path.glob("checkpoints/*.json")) == [
        "step-00000002",
        "step-00000003",
    ]
    assert opened.last_checkpoint().step == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "gone", "last byte"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(opened, damage):
    for step in (1, 2):
        opened.save_checkpoint(checkpoint(step))
    file = opened.path / "checkpoints" / "step-00000002.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[-3] ^= 1
        file.write_bytes(
            {"cut": content[: len(content) // 2], "empty": b"", "flip": content}.get(
                damage, content[:-1]
            )
        )
    assert opened.last_checkpoint().step == 1


@pytest.mark.parametrize(
    "change", [('"step": 2', '"step": 3'), ('"skipped": 0', '"skipped": 7'), ("{", "[")]
)
def test_a_damaged_record_gives_way_to_the_one_before(opened, change):
    for step in (1, 2):
        opened.save_checkpoint(checkpoint(step))
    record = opened.path / "checkpoints" / "step-00000002.json"
    record.write_text(record.read_text().replace(*change))
    assert opened.last_checkpoint().step == 1


def test_a_record_of_another_kind_gives_way_to_the_one_before(opened):
    for step in (1, 2):
        opened.save_checkpoint(checkpoint(step))
    (opened.path / "checkpoints" / "step-00000002.json").write_text("[]")
    assert opened.last_checkpoint().step == 1


def test_a_checkpoint_of_a_newer_version_is_not_called_damaged(opened):
    opened.save_checkpoint(checkpoint(1))
    record = opened.path / "checkpoints" / "step-00000001.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(WeightsError, match="format 2 is not known to this version; update"):
        opened.last_checkpoint()


def test_two_intact_checkpoints_are_kept_where_a_later_one_is_damaged(opened):
    for step in (1, 3):
        opened.save_checkpoint(checkpoint(step))
    (opened.path / "checkpoints" / "step-00000003.safetensors").write_bytes(b"")
    assert opened.last_checkpoint().step == 1
    opened.save_checkpoint(checkpoint(2))
    assert sorted(path.name for path in opened.path.glob("checkpoints/*")) == [
        f"step-0000000{step}.{kind}" for step in (1, 2) for kind in ("json", "safetensors")
    ]


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(opened):
    opened.save_checkpoint(checkpoint(1))
    (opened.path / "checkpoints" / "step-00000001.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="every checkpoint is damaged"):
        opened.last_checkpoint()


def test_a_kill_while_writing_keeps_the_checkpoint_before(tmp_path):
    with started(tmp_path) as opened:
        opened.save_checkpoint(checkpoint(1))
    folder = opened.path / "checkpoints"
    # killed in the midst of the weights, and killed between weights and record
    (folder / ".99.part.step-00000002.safetensors").write_bytes(b"half")
    (folder / "step-00000003.safetensors").write_bytes(
        (folder / "step-00000001.safetensors").read_bytes()
    )
    with open_run(tmp_path / "run", settings(tmp_path), resume=True) as opened:
        assert opened.last_checkpoint().step == 1
        assert not list(folder.glob(".*.part.*"))
        opened.save_checkpoint(checkpoint(4))
        assert sorted(path.stem for path in folder.glob("*.safetensors")) == [
            "step-00000001",
            "step-00000004",
        ]


@pytest.mark.parametrize("folder", ["", "checkpoints", "encoder", "network"])
def test_half_written_files_are_removed_when_a_run_is_continued(tmp_path, folder):
    with started(tmp_path) as opened:
        (opened.path / folder).mkdir(exist_ok=True)
        half = opened.path / folder / ".99.part.weights.safetensors"
        half.write_bytes(b"half")
    with open_run(tmp_path / "run", settings(tmp_path), resume=True):
        assert not half.exists()


def test_a_full_disk_keeps_the_checkpoint_before_and_no_temporary_files(opened, monkeypatch):
    opened.save_checkpoint(checkpoint(1))

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files.os, "fsync", full)
        with pytest.raises(ResourceError, match="disk is full"):
            opened.save_checkpoint(checkpoint(2))
    assert opened.last_checkpoint().step == 1
    assert not list((opened.path / "checkpoints").glob(".*"))


def test_a_file_over_the_size_limit_is_reported_as_a_full_disk_and_the_old_one_stays(tmp_path):
    code = """
import pathlib, resource, sys, torch
from selfvox.errors import ResourceError
from selfvox.runs.weights import load_tensors, save_tensors

path = pathlib.Path(sys.argv[1])
save_tensors(path, {"a": torch.ones(4)})
resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))
try:
    save_tensors(path, {"a": torch.zeros(5000)})
except ResourceError as error:
    print(error, len(load_tensors(path)["a"]), len(list(path.parent.iterdir())))
"""
    finished = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "a: the disk is full; free some space" in finished.stdout
    assert finished.stdout.endswith(" 4 1\n")


def test_values_that_are_not_finite_are_never_written(opened):
    with pytest.raises(NumericalError, match="not finite"):
        opened.save_checkpoint(Checkpoint(1, {"weights.a": torch.tensor([1.0, float("nan")])}, {}))
    assert not list(opened.path.glob("checkpoints/step*"))


def test_an_existing_run_is_only_written_into_when_resumed(tmp_path):
    with open_run(tmp_path / "run", settings(tmp_path), resume=False):
        pass
    with (
        pytest.raises(UsageError, match="already contains a run"),
        open_run(tmp_path / "run", settings(tmp_path), resume=False),
    ):
        pass
    with open_run(tmp_path / "run", settings(tmp_path), resume=True):
        pass


@pytest.mark.parametrize("changed", [{"batch": 8}, {"seed": 1}, {"accumulate": 3}])
def test_a_run_is_not_resumed_with_other_settings(tmp_path, changed):
    first = {"batch": 4, "seed": 0, "accumulate": 1}
    with open_run(tmp_path / "run", settings(tmp_path, **first), resume=False):
        pass
    ((name, value),) = changed.items()
    with (
        pytest.raises(UsageError, match=f"{name}={first[name]}, not {value}"),
        open_run(tmp_path / "run", settings(tmp_path, **first | changed), resume=True),
    ):
        pass


def test_a_second_process_is_kept_out_until_the_first_is_gone(tmp_path):
    (tmp_path / "run").mkdir()
    code = "import sys, time, pathlib; from selfvox.runs.atomic_files import folder_lock\n"
    code += "with folder_lock(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE
    )
    assert first.stdout.readline() == b"in\n"
    with pytest.raises(UsageError, match=f"process {first.pid} is writing here"), started(tmp_path):
        pass
    first.kill()
    first.communicate()
    with started(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "run").write_text("a file in the way")
    with (
        pytest.raises(UsageError, match="run"),
        open_run(tmp_path / "run", settings(tmp_path), resume=False),
    ):
        pass


def test_the_record_says_how_a_run_ended(tmp_path):
    with open_run(tmp_path / "run", settings(tmp_path), resume=False):
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    with (
        pytest.raises(ZeroDivisionError),
        open_run(tmp_path / "run", settings(tmp_path), resume=True),
    ):
        raise ZeroDivisionError
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["reason"]) == ("failed", "ZeroDivisionError: ")


def test_a_run_that_failed_before_its_first_checkpoint_is_started_again(tmp_path):
    with pytest.raises(ZeroDivisionError), started(tmp_path):
        raise ZeroDivisionError
    with open_run(tmp_path / "run", settings(tmp_path, batch=3), resume=False) as opened:
        assert "batch: 3 " in (tmp_path / "run" / "settings.yaml").read_text()
        opened.save_checkpoint(checkpoint(1))
    with pytest.raises(UsageError, match="already contains a run"), started(tmp_path):
        pass


def test_a_reason_names_no_folders_above_those_that_were_given(tmp_path):
    with pytest.raises(ValueError), started(tmp_path):
        raise ValueError(
            f"{tmp_path}/scans/sub/a.nii and {tmp_path / 'run'} and {os.path.expanduser('~')}/x"
        )
    reason = json.loads((tmp_path / "run" / "run.json").read_text())["reason"]
    assert reason == "ValueError: scans/sub/a.nii and run and x"


def test_facts_that_changed_since_a_run_began_are_reported(tmp_path, capsys, monkeypatch):
    with started(tmp_path) as opened:
        opened.depends_on(data={"subjects": ("a", "b")})
    with open_run(tmp_path / "run", settings(tmp_path), resume=True) as opened:
        opened.depends_on(data={"subjects": ("a", "b")})
    assert "changed since the run began" not in capsys.readouterr().err
    monkeypatch.setattr(run_folder.torch, "get_num_threads", lambda: 99)
    with open_run(tmp_path / "run", settings(tmp_path), resume=True) as opened:
        assert "threads: changed since the run began" in capsys.readouterr().err
        opened.depends_on(data={"subjects": ("a",)})
        assert "data: changed since the run began" in capsys.readouterr().err


def test_metrics_of_steps_that_a_resumed_run_repeats_are_dropped(opened):
    for step in (10, 20, 30):
        opened.log(step, {"loss": 1.0})
    with (opened.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    opened.forget_metrics_after(20)
    assert [line["step"] for line in run_folder.read_metrics(opened.path)] == [10, 20]


class Twice(nn.Module):
    """Registers one layer under two names, as nnU-Net's blocks do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.all = nn.Sequential(self.conv, nn.BatchNorm2d(2))


def test_a_part_is_loaded_completely_and_reported(tmp_path):
    saved = Twice()
    loaded = Twice()
    save_part(tmp_path, "encoder", saved, {"name": "x"})
    tensors, card = load_part(tmp_path, "encoder")
    assert card["name"] == "x"
    assert load_strictly(loaded, tensors, "here").startswith("7 tensors")
    assert all(
        torch.equal(a, b)
        for a, b in zip(state_tensors(saved).values(), state_tensors(loaded).values(), strict=True)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("conv.weight"), "no tensor 'conv.weight'"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), "'other' is not in the network"),
        (
            lambda tensors: tensors.update({"conv.bias": torch.zeros(5)}),
            r"\(5,\) and the network's is \(2,\)",
        ),
        (lambda tensors: tensors["conv.bias"].fill_(float("inf")), "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_loaded(change, message):
    module = Twice()
    initial = {name: tensor.clone() for name, tensor in state_tensors(module).items()}
    tensors = {name: tensor.clone() + 1 for name, tensor in state_tensors(Twice()).items()}
    change(tensors)
    with pytest.raises(WeightsError, match=message):
        load_strictly(module, tensors, "here")
    assert all(torch.equal(tensor, initial[name]) for name, tensor in state_tensors(module).items())


def test_a_part_with_changed_weights_or_without_a_card_is_refused(tmp_path):
    save_part(tmp_path, "encoder", Twice(), {})
    weights = tmp_path / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(WeightsError, match="checksum"):
        load_part(tmp_path, "encoder")
    with pytest.raises(WeightsError, match=r"has no encoder\.json"):
        load_part(tmp_path / "nowhere", "encoder")


def test_a_pickle_is_never_executed(tmp_path):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    torch.save({"weights": Evil()}, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="safetensors"):
        load_tensors(tmp_path / "weights.safetensors")
    assert not canary.exists()


def test_a_folder_without_checkpoints_has_no_last_one(tmp_path):
    assert Run(tmp_path, {}).last_checkpoint() is None
