"""Two processes train one encoder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import selfvox
from selfvox.errors import UsageError
from selfvox.runs.run_folder import read_metrics
from selfvox.runs.weights import load_tensors
from selfvox.settings.options import resolve, to_yaml
from selfvox.settings.verbs import Finetune
from selfvox.training.devices import batch_per_device

OPTIONS = (
    *("--task", "simclr", "--steps", "4", "--batch", "2", "--crop", "16,16,16"),
    *("--network.channels", "4,8", "--device", "cpu", "--precision", "fp32"),
)
SELFVOX = ("-m", "selfvox")


@pytest.fixture(scope="module")
def of_two_devices(shapes_store, tmp_path_factory):
    """A run of two processes that the command started, and what both printed."""
    run = tmp_path_factory.mktemp("devices") / "run"
    finished = subprocess.run(
        [
            *(sys.executable, *SELFVOX, "pretrain", str(shapes_store), "--out", str(run)),
            *(*OPTIONS, "--devices", "2"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return run, finished.stderr


def test_two_devices_train_one_encoder_and_one_of_them_prints(of_two_devices):
    run, printed = of_two_devices
    assert printed.count("encoder of 2 levels") == printed.count("next: selfvox finetune") == 1
    (line,) = read_metrics(run)
    # four samples on two devices make eight views, of which seven are not one's own
    torch.testing.assert_close(line["chance"], 1 / 7)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert all(
        torch.isfinite(tensor).all()
        for tensor in load_tensors(run / "encoder" / "weights.safetensors").values()
    )


@pytest.mark.fault("G", "two launchers, as on two computers", "one training of both")
def test_two_nodes_with_a_launcher_each_train_the_encoder_of_two_devices(
    of_two_devices, shapes_store, tmp_path, free_port
):
    run = tmp_path / "run"
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--node-rank", str(node), "--master-addr", "127.0.0.1"),
                *("--master-port", str(free_port), *SELFVOX),
                *("pretrain", str(shapes_store), "--out", str(run), *OPTIONS),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    printed = [node.communicate(timeout=600)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert ["encoder of 2 levels" in text for text in printed] == [True, False]
    weights = "encoder/weights.safetensors"
    assert (run / weights).read_bytes() == (of_two_devices[0] / weights).read_bytes()


FINETUNE = {
    # nothing is drawn by device: samples follow from their numbers
    **{"encoder": "none", "augment": "none", "keep": "last", "steps": 6, "validate_every": 3},
    **{"crop": (16, 16, 16), "device": "cpu", "precision": "fp32"},
    "network": {"name": "plain", "channels": [4, 8], "norm": "batch"},
}


def weights_of(run):
    return load_tensors(run / "network" / "weights.safetensors")


def assert_same_weights(run, other):
    expected = weights_of(other)
    for name, value in weights_of(run).items():
        # a norm follows: their gradients are 0, but for rounding, which Adam makes steps of
        if name.endswith(("conv.bias", "running_mean")):
            continue
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def finetune_on_two(store, out, *options):
    """Fine-tune in two processes; what they printed."""
    settings = out.with_suffix(".yaml")
    settings.write_text(to_yaml(resolve(Finetune, {"labelled": store, "out": out, **FINETUNE})))
    finished = subprocess.run(
        [
            *(sys.executable, *SELFVOX, "finetune", "--config", str(settings)),
            *(*options, "--devices", "2"),
        ],
        check=True,
        timeout=600,
        stderr=subprocess.PIPE,
        text=True,
    )
    return finished.stderr


def forget_last_checkpoint(run):
    """As if the run had been stopped after step 3."""
    for file in (run / "checkpoints").glob("*6*"):
        file.unlink()


@pytest.mark.fault(
    "F19 G5 G6", "resume on another number of devices", "the same samples in each step; printed"
)
def test_two_devices_fine_tune_as_one_does_with_twice_the_batch_and_each_goes_on_for_the_other(
    shapes_store, tmp_path, capsys
):
    one, two = tmp_path / "one", tmp_path / "two"
    selfvox.finetune(shapes_store, out=one, batch=2, **FINETUNE)
    finetune_on_two(shapes_store, two, "--batch", "1")
    assert_same_weights(two, one)
    last, expected = (read_metrics(run)[-1] for run in (two, one))
    assert last["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert last["dice_mean"] == pytest.approx(expected["dice_mean"], abs=1e-3)
    forget_last_checkpoint(two)
    capsys.readouterr()
    selfvox.finetune(shapes_store, out=two, batch=1, **FINETUNE, devices=1, resume=True)
    printed = capsys.readouterr().err
    assert "resuming from step 3" in printed
    assert "1 devices instead of 2: each step learns from the same samples, 2 on" in printed
    assert_same_weights(two, one)
    # and two for the one
    forget_last_checkpoint(one)
    printed = finetune_on_two(shapes_store, one, "--batch", "2", "--resume")
    assert "resuming from step 3" in printed
    assert "2 devices instead of 1: each step learns from the same samples, 1 on" in printed
    assert_same_weights(one, two)


def test_a_batch_that_the_devices_cannot_share_is_refused_with_the_numbers_that_can():
    assert batch_per_device(4, started=2, devices=8, min_batch=1) == 1
    with pytest.raises(UsageError, match=r"3 cannot share the 8 images .* on 1 or 2 or 4 devices$"):
        batch_per_device(4, started=2, devices=3, min_batch=2)


CHILDREN = "/proc/{0}/task/{0}/children"


@pytest.mark.fault(
    "F18",
    "SIGTERM to one of two processes",
    "both stop after the same step, one checkpoint",
)
@pytest.mark.skipif(
    not Path(CHILDREN.format(os.getpid())).exists(), reason="finds the second process in /proc"
)
def test_a_signal_to_one_of_them_stops_both_after_the_same_step(shapes_store, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "selfvox",
                "pretrain",
                str(shapes_store),
                "--task",
                "rotation",
                "--out",
                str(run),
            ),
            *("--steps", "5000", "--batch", "2", "--crop", "16,16,16", "--network.channels", "4,8"),
            *("--device", "cpu", "--devices", "2", "--save-every", "20"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(run.glob("checkpoints/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(CHILDREN.format(process.pid)).read_text().split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGTERM)
    output = process.communicate(timeout=600)[1]
    assert process.returncode == 143
    assert output.count("stopped by SIGTERM") == 1
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.fault(
    "G3",
    "SIGSTOP to one of two processes",
    "named within a minute, exit code 5, state kept",
)
@pytest.mark.skipif(
    not Path(CHILDREN.format(os.getpid())).exists(), reason="finds the second process in /proc"
)
def test_a_process_that_is_frozen_is_named_and_the_state_after_the_last_step_is_kept(
    shapes_store, tmp_path
):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, *SELFVOX, "pretrain", str(shapes_store), "--out", str(run)),
            *(*OPTIONS, "--steps", "5000", "--devices", "2", "--save-every", "1"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(run.glob("checkpoints/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    (child,) = Path(CHILDREN.format(process.pid)).read_text().split()
    os.kill(int(child), signal.SIGSTOP)
    began = time.monotonic()
    output = process.communicate(timeout=600)[1]
    assert time.monotonic() - began < 60  # 26 s on a machine that is not busy
    assert process.returncode == 5
    assert f"rank 1 (process {child} of node 0) gave no sign of life" in output
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed"
    assert "rank 1" in record["reason"]
    # a stopped process would stay for ever; one that was killed takes a while to end on a busy
    # machine, and may then wait to be reaped
    began = time.monotonic()
    while not has_ended(int(child)):
        assert time.monotonic() - began < 60
        time.sleep(0.1)
