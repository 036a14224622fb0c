"""A damaged scan costs its crops in pre-training, and no step of a fine-tuning that is resumed."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

import selfvox
from selfvox.data.preparation.manifest import read_manifest, write_manifest
from selfvox.data.preparation.store import open_store
from selfvox.data.sampling.crops import Crops
from selfvox.errors import DataError
from selfvox.runs.atomic_files import sha256
from selfvox.training import segmentation_objective
from selfvox.training.readers import read_batches


@pytest.fixture
def store(shapes_store, tmp_path):
    return shutil.copytree(shapes_store, tmp_path / "store")


def spoil(folder, number):
    """Write NaN into half of a training scan, and its right checksum; returns its id."""
    opened = open_store(folder)
    case = opened.without_test_subjects()[number]
    file = folder / "images" / f"{case.id}.npy"
    values = np.load(file)
    values[..., : values.shape[-1] // 2] = np.nan
    np.save(file, values)
    spoilt = dataclasses.replace(case, sha256={**case.sha256, "images": sha256(file)})
    cases = [spoilt if other.id == case.id else other for other in opened.cases]
    request = read_manifest(folder)["asked"]
    write_manifest(folder, opened.recipe, opened.classes, cases, request)
    return case.id


def record(run):
    return json.loads((run / "run.json").read_text())


@pytest.mark.fault("F21a F14", "a NaN voxel in a store", "the scan is named once and left out")
def test_a_scan_with_nan_is_left_out_and_named_once(store, tmp_path, small, capsys):
    damaged = spoil(store, 0)
    settings = {**small, "task": "rotation", "steps": 8, "batch": 4, "save_every": 4}
    whole = selfvox.pretrain(store, out=tmp_path / "whole", **settings)
    printed = capsys.readouterr().err
    assert printed.count(f"{damaged}: ") == printed.count("left out where it is damaged") == 1
    assert record(whole)["damaged_scans"] == [damaged]
    # which crops replace it follows from the seed alone
    again = selfvox.pretrain(store, out=tmp_path / "again", **settings)
    digests = [sha256(run / "encoder" / "weights.safetensors") for run in (whole, again)]
    assert digests[0] == digests[1]


@pytest.mark.fault("F14", "more damaged scans than one in a hundred", "ends with a checkpoint")
def test_too_many_damaged_scans_end_the_run_with_a_checkpoint(store, tmp_path, small):
    damaged = [spoil(store, number) for number in (0, 1)]
    settings = {**small, "task": "rotation", "steps": 30, "batch": 1, "save_every": 30}
    with pytest.raises(DataError, match="2 damaged scans, and at most 1 may") as error:
        selfvox.pretrain(store, out=tmp_path / "run", **settings)
    assert any(case in str(error.value) for case in damaged)
    assert "saved after step" in str(error.value)
    assert sorted(record(tmp_path / "run")["damaged_scans"]) == sorted(damaged)
    assert list((tmp_path / "run" / "checkpoints").glob("*.json"))
    # resumed without a repair, it ends again
    with pytest.raises(DataError, match="2 damaged scans, and at most 1 may"):
        selfvox.pretrain(store, out=tmp_path / "run", resume=True, **settings)


@pytest.mark.fault(
    "F26e",
    "an array truncated during fine-tuning",
    "an error with a checkpoint; resumes to the same weights",
)
def test_a_fine_tuning_whose_scan_is_truncated_goes_on_to_the_same_weights(
    store, tmp_path, small, monkeypatch
):
    settings = {**small, "encoder": "none", "steps": 8, "validate_every": 8, "labels": 2}
    alone = selfvox.finetune(store, out=tmp_path / "alone", **settings)
    forward = segmentation_objective.SegmentationObjective.forward
    files = [*(store / "images").glob("*.npy")]
    contents = {file: file.read_bytes() for file in files}

    def truncating(self, batch, step, rng):
        if step == 3:
            for file in files:
                os.truncate(file, 4096)
        return forward(self, batch, step, rng)

    with monkeypatch.context() as patched:
        patched.setattr(segmentation_objective.SegmentationObjective, "forward", truncating)
        with pytest.raises(DataError, match=r"it was truncated.*saved after step 4"):
            selfvox.finetune(store, out=tmp_path / "run", **settings)
    for file, content in contents.items():
        file.write_bytes(content)
    resumed = selfvox.finetune(store, out=tmp_path / "run", resume=True, **settings)
    digests = [sha256(run / "network" / "weights.safetensors") for run in (alone, resumed)]
    assert digests[0] == digests[1]


@pytest.mark.fault("F14", "an error in a process that reads", "one line")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_process_that_reads_is_its_own_one_line(store, workers):
    damaged = spoil(store, 0)
    opened = open_store(store)
    case = next(case for case in opened.cases if case.id == damaged)
    data = Crops(opened, [case], case.shape, seed=0, labels=True)
    with pytest.raises(DataError, match="not finite") as error:
        list(read_batches(data, [[0, 1]], workers))
    assert "\n" not in str(error.value)


@pytest.mark.fault("F14", "a NaN voxel in a validation scan", "an error with a checkpoint")
def test_a_damaged_validation_scan_ends_a_fine_tuning_with_a_checkpoint(store, tmp_path, small):
    validation = open_store(store).split().validation
    training = open_store(store).without_test_subjects()
    spoil(store, [case.subject for case in training].index(validation[0]))
    settings = {**small, "encoder": "none", "steps": 8, "validate_every": 3}
    with pytest.raises(DataError, match=r"not finite.*saved after step 3"):
        selfvox.finetune(store, out=tmp_path / "run", **settings)
    assert list((tmp_path / "run" / "checkpoints").glob("*.json"))
