"""Tasks, encoders and callbacks from Python: what a settings file cannot contain."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml

import selfvox
from selfvox.cli import main
from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.runs.run_folder import read_metrics
from selfvox.runs.weights import load_tensors, state_tensors
from selfvox.tasks.rotation import Rotation


@dataclass(frozen=True, kw_only=True)
class OwnRotation(Rotation):
    """A task of a notebook: no file of selfvox has it."""


def encoder_of(small):
    torch.manual_seed(5)
    return build_encoder(plan_encoder(small["network"], small["crop"], (1.0, 1.0, 1.0)), 3, 1)


def without(small, *names):
    return {name: value for name, value in small.items() if name not in names}


def weights(run, folder="encoder"):
    return load_tensors(run / folder / "weights.safetensors")


def test_a_task_object_trains_as_its_name_does(shapes_store, tmp_path, small):
    named = selfvox.pretrain(
        shapes_store, out=tmp_path / "named", task="rotation", steps=2, batch=2, **small
    )
    run = selfvox.pretrain(
        shapes_store, out=tmp_path / "object", task=Rotation(), steps=2, batch=2, **small
    )
    expected = weights(named)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run).items())
    recorded = yaml.safe_load((run / "settings.yaml").read_text())["task"]
    assert recorded["name"] == "rotation"


def test_a_task_of_a_notebook_is_recorded_by_its_class_and_cannot_be_resumed_by_name(
    shapes_store, tmp_path, small, capsys
):
    run = selfvox.pretrain(
        shapes_store, out=tmp_path / "run", task=OwnRotation(), steps=2, batch=2, **small
    )
    recorded = yaml.safe_load((run / "settings.yaml").read_text())["task"]
    assert recorded["name"].endswith(":OwnRotation")
    assert json.loads((run / "encoder" / "encoder.json").read_text())["task"] == recorded
    settings = str(run / "settings.yaml")
    code = main(["pretrain", str(shapes_store), "--config", settings, "--resume"])
    assert code == UsageError.exit_code
    assert "OwnRotation" in capsys.readouterr().err


def test_an_encoder_object_is_trained_from_its_own_weights(shapes_store, tmp_path, small):
    module = encoder_of(small)
    before = {name: tensor.clone() for name, tensor in state_tensors(module).items()}
    run = selfvox.pretrain(
        shapes_store,
        out=tmp_path / "run",
        task="rotation",
        encoder=module,
        steps=1,
        batch=2,
        learning_rate=1e-6,
        **without(small, "network"),
    )
    saved = weights(run)
    name = next(iter(before))
    assert saved.keys() == before.keys()
    assert torch.allclose(saved[name], before[name], atol=1e-5)
    assert not torch.equal(saved[name], before[name])


def test_an_encoder_object_is_recorded_by_its_class_and_cannot_be_resumed_by_name(
    shapes_store, tmp_path, small, capsys
):
    run = tmp_path / "run"
    module = encoder_of(small)
    selfvox.pretrain(
        shapes_store,
        out=run,
        task="rotation",
        encoder=module,
        steps=1,
        batch=2,
        **without(small, "network"),
    )
    remedy = f"selfvox.finetune('LABELLED/', encoder=selfvox.load_encoder({str(run)!r}, network="
    assert remedy in capsys.readouterr().err
    name = f"{type(module).__module__}:{type(module).__qualname__}"
    assert yaml.safe_load((run / "settings.yaml").read_text())["network"] == name
    settings = str(run / "settings.yaml")
    code = main(["pretrain", str(shapes_store), "--config", settings, "--resume"])
    assert code == UsageError.exit_code
    assert f"network: {name} is a class that was passed to Python" in capsys.readouterr().err
    with pytest.raises(UsageError, match="load it in Python"):
        selfvox.load_encoder(run)
    assert selfvox.load_encoder(run, network=encoder_of(small), device="cpu").module is not None


def test_an_encoder_object_is_fine_tuned_from_its_own_weights(shapes_store, tmp_path, small):
    module = encoder_of(small)
    before = {name: tensor.clone() for name, tensor in state_tensors(module).items()}
    run = selfvox.finetune(
        shapes_store,
        out=tmp_path / "run",
        encoder=module,
        freeze="always",
        steps=1,
        **without(small, "network"),
    )
    saved = weights(run, "network")
    assert all(torch.equal(saved[f"encoder.{name}"], tensor) for name, tensor in before.items())


def test_networks_with_an_encoder_object_predict_with_such_an_object(shapes_store, tmp_path, small):
    runs = [
        selfvox.finetune(
            shapes_store,
            out=tmp_path / name,
            encoder=encoder_of(small),
            steps=1,
            seed=seed,
            **without(small, "network"),
        )
        for seed, name in enumerate("ab")
    ]
    with pytest.raises(UsageError, match=r"selfvox\.load_segmenter\(run, encoder="):
        selfvox.load_segmenter(runs[0])
    encoder = encoder_of(small)
    before = {name: tensor.clone() for name, tensor in state_tensors(encoder).items()}
    segmenter = selfvox.load_segmenter(runs, encoder=encoder, device="cpu")
    for model, run in zip(segmenter.models, runs, strict=True):
        saved = weights(run, "network")
        loaded = state_tensors(model.network)
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[name], tensor) for name, tensor in loaded.items())
    assert all(torch.equal(before[name], x) for name, x in state_tensors(encoder).items())
    scan = np.random.default_rng(0).random((24, 24, 24))
    assert segmenter.predict(scan, (1, 1, 1), force=True).label.shape == scan.shape


def test_metrics_arrive_while_a_run_trains(shapes_store, tmp_path, small):
    lines = []
    run = selfvox.pretrain(
        shapes_store,
        out=tmp_path / "run",
        task="rotation",
        steps=20,
        batch=2,
        on_metrics=lambda step, metrics: lines.append({"step": step, **metrics}),
        **small,
    )
    assert lines == read_metrics(run)
    assert {"loss", "accuracy", "chance"} <= lines[0].keys()
    tuned = []
    selfvox.finetune(
        shapes_store,
        out=tmp_path / "tuned",
        encoder=run,
        steps=2,
        on_metrics=lambda step, metrics: tuned.append(step),
        **without(small, "network"),
    )
    assert tuned == [line["step"] for line in read_metrics(tmp_path / "tuned")]


def test_a_wrong_object_is_refused_before_any_scan_is_read(shapes_store, tmp_path, small):
    with pytest.raises(UsageError, match="not a int"):
        selfvox.pretrain(shapes_store, out=tmp_path / "run", task=3, **small)
    with pytest.raises(UsageError, match="leave `network` out"):
        selfvox.pretrain(shapes_store, out=tmp_path / "run", encoder=encoder_of(small), **small)
    assert not (tmp_path / "run").exists()
