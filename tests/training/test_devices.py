"""Two processes train one encoder."""

import json
import subprocess
import sys

import torch

from selfvox.run import load_tensors, read_metrics


def test_two_devices_train_one_encoder_and_one_of_them_speaks(shapes_store, tmp_path):
    run = tmp_path / "run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "selfvox", "pretrain", str(shapes_store), "--task", "simclr", "--out", str(run)),
            *("--steps", "4", "--batch", "2", "--crop", "16,16,16", "--network.channels", "4,8"),
            *("--device", "cpu", "--devices", "2", "--precision", "fp32"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr.count("encoder of 2 levels") == done.stderr.count("next: selfvox finetune") == 1
    (line,) = read_metrics(run)
    # four samples on two devices make eight views, of which seven are not one's own
    torch.testing.assert_close(line["chance"], 1 / 7)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert all(torch.isfinite(tensor).all() for tensor in load_tensors(run / "encoder" / "weights.safetensors").values())
