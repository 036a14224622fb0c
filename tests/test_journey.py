"""The whole way on the command line, in 3D and in 2D."""

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from selfvox.cli import main
from selfvox.data import phantom
from selfvox.data.preparation.split import read_split
from selfvox.runs.atomic_files import sha256
from selfvox.runs.typed_json import write_checked
from selfvox.runs.weights import load_tensors, read_encoder, read_network, save_part

NETWORK = ("--network.channels", "4,8,16", "--network.blocks", "1", "--device", "cpu")


def selfvox(*arguments, cwd, code=0):
    """Run one command line in this process; return its output, or the line of its refusal."""
    output = io.StringIO()
    errors = io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        result = main([str(word) for word in arguments])
    assert result == code, errors.getvalue()
    return errors.getvalue().splitlines()[-1] if code else output.getvalue()


def command(*arguments, cwd):
    """Run one command line in a process of its own; its standard output."""
    words = [sys.executable, "-m", "selfvox", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, env=environment, timeout=600
    )
    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Scans of 32 voxels, and what becomes of them up to two pre-trained encoders."""
    root = tmp_path_factory.mktemp("volumes")
    phantom.write(root / "scans", "shapes", count=7)
    sizes = ("--test", 2, "--validation", 1, "--workers", 1)
    selfvox("prepare", "scans", "--out", "store", *sizes, cwd=root)
    options = ("--steps", 3, "--batch", 2, "--crop", "16,16,16", *NETWORK)
    for task in ("rotation", "simclr"):
        selfvox("pretrain", "store", "--task", task, "--out", f"runs/{task}", *options, cwd=root)
    return root


@pytest.fixture(scope="module")
def trained(volumes):
    """A network that segments."""
    options = ("--labels", 3, "--steps", 12, "--crop", "16,16,16", "--device", "cpu")
    words = ("store", "--encoder", "runs/simclr", "--out", "seg")
    selfvox("finetune", *words, *options, cwd=volumes)
    return volumes


def test_volumes_go_from_a_folder_of_scans_to_scores_on_their_own_grids(trained):
    root = trained
    assert len(read_split(root / "seg" / "split.json").train) == 3
    # in a process that has nothing of the one that trained
    command("predict", "seg", "scans/images", "--subset", "test", "--out", "predictions", cwd=root)
    test = read_split(root / "store" / "split.json").test
    assert sorted(path.name for path in root.glob("predictions/*.nii.gz")) == sorted(
        f"{name}.nii.gz" for name in test
    )
    for name in test:
        scan, result = (
            nib.load(root / folder / f"{name}.nii.gz") for folder in ("scans/images", "predictions")
        )
        assert result.shape == scan.shape
        np.testing.assert_array_equal(result.affine, scan.affine)
        assert set(np.unique(result.dataobj)) <= {0, 1, 2}
    output = selfvox("evaluate", "predictions", "scans/labels", "--out", "scores.csv", cwd=root)
    assert "bright" in output
    assert "dice" in output.lower()
    with (root / "scores.csv").open() as file:
        assert {row["case"] for row in csv.DictReader(file)} >= set(test)


def test_a_fraction_of_the_labels_from_scratch_and_a_frozen_encoder(volumes):
    options = ("--steps", 2, "--crop", "16,16,16")
    first = ("finetune", "store", "--encoder", "none", "--fraction", "0.5", "--out", "scratch")
    selfvox(*first, *options, *NETWORK, cwd=volumes)
    assert len(read_split(volumes / "scratch" / "split.json").train) == 2
    frozen = (
        "finetune",
        "store",
        "--encoder",
        "runs/rotation/encoder",
        "--freeze",
        "always",
        "--out",
        "frozen",
    )
    selfvox(*frozen, *options, "--device", "cpu", cwd=volumes)
    pretrained, _ = read_encoder(volumes / "runs" / "rotation" / "encoder")
    finetuned, card = read_network(volumes / "frozen" / "network")
    assert all(
        torch.equal(finetuned[f"encoder.{name}"], tensor) for name, tensor in pretrained.items()
    )
    assert "pre-trained by rotation" in card.encoder


def test_a_run_resumes_from_its_own_settings_file(volumes):
    settings = ("--config", "runs/rotation/settings.yaml")
    assert "finished" in (volumes / "runs" / "rotation" / "run.json").read_text()
    output = selfvox("pretrain", *settings, cwd=volumes, code=2)
    assert "already contains a run; continue it with --resume" in output
    selfvox("pretrain", *settings, "--resume", cwd=volumes)


def test_a_preview_is_a_picture_and_info_is_json(volumes):
    selfvox(
        "preview",
        "store",
        "--task",
        "simclr",
        "--crop",
        "16,16,16",
        "--out",
        "look.png",
        cwd=volumes,
    )
    with Image.open(volumes / "look.png") as picture:
        assert min(picture.size) > 100
        assert len(np.unique(np.asarray(picture))) > 20
    info = json.loads(selfvox("info", "--json", cwd=volumes))
    assert {"rotation", "simclr"} <= set(info["tasks"])


def test_pictures_go_the_same_way(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "scans" / folder).mkdir(parents=True)
    for number in range(5):
        drawn = phantom.draw_shapes(rng, (48, 40), channels=3)
        rgb = np.moveaxis(np.clip(drawn.image / 4, 0, 255), 0, -1).astype(np.uint8)
        Image.fromarray(rgb).save(tmp_path / "scans" / "images" / f"eye_{number}.png")
        Image.fromarray(drawn.label).save(tmp_path / "scans" / "labels" / f"eye_{number}.png")
    options = ("--crop", "32,32", *NETWORK)
    selfvox(
        "pretrain",
        "scans",
        "--task",
        "simclr",
        "--steps",
        2,
        "--batch",
        2,
        "--out",
        "pre",
        *options,
        cwd=tmp_path,
    )
    also = ("--steps", 2, "--crop", "32,32", "--device", "cpu")
    selfvox(
        "finetune", "scans", "--encoder", "pre", "--labels", 2, "--out", "seg", *also, cwd=tmp_path
    )
    selfvox("predict", "seg", "scans/images", "--out", "predictions", cwd=tmp_path)
    for number in range(5):
        with Image.open(tmp_path / "predictions" / f"eye_{number}.png") as result:
            assert result.size == (40, 48)
            assert set(np.unique(np.asarray(result))) <= {0, 1, 2}
    selfvox("evaluate", "predictions", "scans/labels", "--out", "scores.csv", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "output"),
    [
        ("pretrain nowhere --task rotation --out x", 3, "nowhere: no such file or folder"),
        ("pretrain store --task rotatoin --out x", 2, "did you mean 'rotation'"),
        (
            "pretrain nowhere --network resdual --out x",
            2,
            "network: no encoder is called 'resdual'; did you mean",
        ),
        (
            "pretrain nowhere --network monai:ResNetFeature --out x",
            2,
            "did you mean 'ResNetFeatures'",
        ),
        (
            "finetune nowhere --encoder none --network.chanels 4 --out x",
            2,
            "network.chanels: no such setting; did you",
        ),
        (
            "pretrain nowhere --task simclr --batch 1 --out x",
            2,
            "nothing to compare; use --batch 2 or more",
        ),
        (
            "pretrain nowhere --task rotation+exemplar --batch 1 --out x",
            2,
            "task exemplar+rotation: a device's batch of 1",
        ),
        (
            "pretrain nowhere --task rotation --probe missing --out x",
            3,
            "missing: no such file or folder",
        ),
        ("pretrain store --task rotation --out x --crop 15,16,16", 2, "15 is no multiple of"),
        ("pretrain store --task rotation --out scans/dataset.json/x", 2, "cannot be written"),
        ("pretrain store --task rotation --out /proc/x", 2, "/proc/x: cannot be written"),
        ("pretrain store --task rotation --out runs/rotation", 2, "already contains a run"),
        ("finetune store --encoder nowhere --out x", 4, "has no encoder.json"),
        ("finetune store --encoder store/manifest.json --out x", 4, "has no encoder.json"),
        ("finetune scans/images --encoder none --out x --steps 1", 3, "neither labels nor grades"),
        ("finetune store --encoder none --labels 99 --out x", 2, "store has 4 to train on"),
        ("finetune store --encoder none --labels 2 --fraction 0.5 --out x", 2, "give one of them"),
        ("predict runs/rotation scans/images --out x", 4, "is a pre-training run"),
        ("evaluate nowhere scans/labels", 3, "nowhere"),
        (
            "preview nowhere --out look.jpg",
            2,
            "look.jpg: is not the name of a picture; end it in .png",
        ),
        ("preview nowhere --out scans", 2, "scans: is not the name of a picture; end it in .png"),
        ("prepare scans --out scans/dataset.json/x", 5, "choose a folder you may write to"),
        ("demo --out scans/dataset.json", 5, "choose a folder you may write to"),
        (
            "pretrain store --task rotation --out store",
            2,
            "store: is a store; name another --out",
        ),
    ],
)
def test_the_commonest_mistakes_have_a_code_and_one_line(volumes, arguments, code, output):
    line = selfvox(*arguments.split(), cwd=volumes, code=code)
    assert line.startswith("selfvox: error: ")
    assert output in line
    shutil.rmtree(volumes / "x", ignore_errors=True)


def spoiled(volumes: Path, name: str) -> Path:
    folder = volumes / name
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(volumes / "runs" / "simclr" / "encoder", folder)


def tensors_and_card(folder: Path):
    tensors = load_tensors(folder / "weights.safetensors")
    card = json.loads((folder / "encoder.json").read_text())
    return {name: tensor.clone() for name, tensor in tensors.items()}, card


class Holder(torch.nn.Module):
    """Tensors under any names, to be saved as a part."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = tensors

    def named_parameters(self, *_):
        yield from self.tensors.items()


@pytest.mark.parametrize(
    ("damage", "output"),
    [
        ("flip", "checksum"),
        ("cut", "checksum"),
        ("nan", "not finite"),
        ("shape", "is (9,) and the network's is"),
        ("two-dimensional", "its recipe is of 1 channels in 3D and its network of 1 in 2D"),
        ("no card", "has no encoder.json"),
        ("no recipe", "damaged"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_refused_before_training(volumes, damage, output):
    folder = spoiled(volumes, "spoiled")
    weights = folder / "weights.safetensors"
    file = folder / "encoder.json"
    content = bytearray(weights.read_bytes())
    tensors, card = tensors_and_card(folder)
    first = next(name for name in tensors if name.endswith("bias"))
    if damage == "flip":
        content[-5] ^= 1
        weights.write_bytes(content)
    elif damage == "cut":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "no card":
        file.unlink()
    elif damage == "two-dimensional":
        network = {
            **card["network"],
            "strides": [stride[:2] for stride in card["network"]["strides"]],
        }
        flat = {"spatial_dims": 2, "crop": card["crop"][:2], "network": network}
        write_checked(file, {**card, **flat})
    elif damage == "no recipe":
        del card["recipe"]
        write_checked(file, card)
    else:
        tensors[first] = torch.zeros(9) if damage == "shape" else tensors[first]
        save_part(folder, "encoder", Holder(tensors), card)
        if damage == "nan":
            # our own writer refuses to
            tensors[first][0] = float("nan")
            safetensors.torch.save_file(tensors, weights)
            write_checked(file, {**card, "sha256": sha256(weights)})
    line = selfvox(
        "finetune", "store", "--encoder", folder, "--steps", 1, "--out", "y", cwd=volumes, code=4
    )
    shutil.rmtree(volumes / "y", ignore_errors=True)
    assert output in line
