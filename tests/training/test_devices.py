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

from selfvox.runs.run_folder import read_metrics
from selfvox.runs.weights import load_tensors


def test_two_devices_train_one_encoder_and_one_of_them_prints(shapes_store, tmp_path):
    run = tmp_path / "run"
    finished = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "selfvox",
                "pretrain",
                str(shapes_store),
                "--task",
                "simclr",
                "--out",
                str(run),
            ),
            *("--steps", "4", "--batch", "2", "--crop", "16,16,16", "--network.channels", "4,8"),
            *("--device", "cpu", "--devices", "2", "--precision", "fp32"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert (
        finished.stderr.count("encoder of 2 levels")
        == finished.stderr.count("next: selfvox finetune")
        == 1
    )
    (line,) = read_metrics(run)
    # four samples on two devices make eight views, of which seven are not one's own
    torch.testing.assert_close(line["chance"], 1 / 7)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert all(
        torch.isfinite(tensor).all()
        for tensor in load_tensors(run / "encoder" / "weights.safetensors").values()
    )


CHILDREN = "/proc/{0}/task/{0}/children"


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
