"""What pre-training leaves behind, and what it refuses."""

import getpass
import json
import socket

import nibabel as nib
import numpy as np
import pytest
import torch

import selfvox
from selfvox.commands.pretrain import pretrain
from selfvox.data import phantom
from selfvox.data.preparation.split import read_split
from selfvox.errors import DataError, UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.runs.atomic_files import sha256
from selfvox.runs.run_folder import read_metrics
from selfvox.runs.weights import load_strictly, read_encoder, read_network_card
from selfvox.tasks.exemplar import Exemplar
from selfvox.tasks.rotation import Rotation
from selfvox.training import pretext_objective, segmentation_objective


@pytest.fixture(scope="module")
def run(shapes_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("run of tests") / "out"
    network = {"name": "plain", "channels": [4, 8]}
    return selfvox.pretrain(
        shapes_store,
        out=out,
        task="rotation",
        steps=12,
        batch=2,
        save_every=5,
        crop=(16, 16, 16),
        network=network,
        device="cpu",
    )


def test_the_encoder_is_all_that_is_needed_to_build_and_load_it(run):
    tensors, card = read_encoder(run / "encoder")
    encoder = build_encoder(card.network, card.spatial_dims, card.in_channels)
    assert load_strictly(encoder, tensors, "here").startswith(f"{len(tensors)} tensors")
    assert encoder.embed(torch.zeros(1, 1, *card.crop)).shape == (1, encoder.width)
    assert card.task["name"] == "rotation"
    assert card.steps == 12


def test_test_subjects_are_never_seen(run, shapes_store):
    split = read_split(shapes_store / "split.json")
    subjects = read_encoder(run)[1].seen["subjects"]
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["cases"] == len(subjects)
    assert subjects == sorted((*split.train, *split.validation))
    assert not set(subjects) & set(split.test)


def test_the_folder_holds_what_the_formats_say_and_no_debris(run):
    assert {path.name for path in run.iterdir()} == {
        *(
            "settings.yaml",
            "run.json",
            "metrics.jsonl",
            "checkpoints",
            "encoder",
            "curve.png",
            "log.txt",
            "tensorboard",
        )
    }
    assert sorted(path.stem for path in run.glob("checkpoints/*.json")) == [
        "step-00000010",
        "step-00000012",
    ]
    assert [line["step"] for line in read_metrics(run)] == [10, 12]
    assert not list(run.rglob(".*.part.*"))


@pytest.mark.fault("X12", "paths, host and user", "in no file of a run")
def test_no_file_of_a_run_names_its_place_host_or_user(run, tmp_path_factory):
    secrets = [str(tmp_path_factory.getbasetemp()), f"/home/{getpass.getuser()}", socket.getfqdn()]
    for path in run.rglob("*"):
        # the settings contain the paths as they were given: a run could not be resumed without; and
        # so does what was printed
        if path.is_file() and path.name not in ("settings.yaml", "log.txt"):
            content = path.read_bytes()
            assert not [
                secret for secret in secrets if len(secret) > 4 and secret.encode() in content
            ], path
        assert socket.gethostname() not in path.name.split("."), path


def test_a_run_is_a_function_of_its_settings(run, shapes_store, tmp_path):
    settings = {
        "task": "rotation",
        "steps": 3,
        "batch": 2,
        "crop": (16, 16, 16),
        "network": {"channels": [4, 8]},
    }
    first, second, other_seed = (
        selfvox.pretrain(shapes_store, out=tmp_path / name, seed=seed, device="cpu", **settings)
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    digests = [
        sha256(path / "encoder" / "weights.safetensors") for path in (first, second, other_seed)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("verb", ["pretrain", "preview"])
def test_scans_whose_uneven_axes_differ_give_no_plane_to_turn_in(verb, tmp_path):
    (tmp_path / "scans").mkdir()
    for name, spacing in {
        "a": (1.0, 1.0, 1.15),
        "b": (1.15, 1.0, 1.0),
        "c": (1.15, 1.0, 1.0),
    }.items():
        voxels = np.random.default_rng(ord(name)).normal(size=(16, 16, 16)).astype(np.float32)
        nib.save(
            nib.Nifti1Image(voxels, np.diag([*spacing, 1])), tmp_path / "scans" / f"{name}.nii"
        )
    task = {"name": "rotation", "planes": "in-plane"}
    with pytest.raises(UsageError, match=r"1\.15 x 1\.00 x 1\.00 mm and 1\.00 x 1\.00 x 1\.15 mm"):
        getattr(selfvox, verb)(
            tmp_path / "scans", out=tmp_path / "out.png", task=task, crop=(16, 16, 16)
        )


def test_making_voxels_equal_does_not_hide_that_they_were_not(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in "ab":
        voxels = np.random.default_rng(ord(name)).normal(size=(20, 20, 4)).astype(np.float32)
        nib.save(
            nib.Nifti1Image(voxels, np.diag([1.0, 1, 5, 1])), tmp_path / "scans" / f"{name}.nii"
        )
    with pytest.raises(
        UsageError, match=r"1\.00 x 1\.00 x 5\.00 mm, as scanned .* xz,yz .* spacing=\(5, 5, 5\)"
    ):
        selfvox.pretrain(
            tmp_path / "scans", out=tmp_path / "run", spacing=(1, 1, 1), task="rotation", crop=(16,)
        )


@pytest.mark.parametrize(("edge", "warned"), [(32, False), (40, True)])
def test_crops_larger_than_the_scans_are_reported(
    edge, warned, shapes_store, tmp_path, small, capsys
):
    selfvox.pretrain(
        shapes_store,
        out=tmp_path / "run",
        task="rotation",
        steps=1,
        batch=2,
        **{**small, "crop": (edge,)},
    )
    assert ("6 of 6 scans are smaller than the crop" in capsys.readouterr().err) == warned


@pytest.mark.parametrize("task", ["jigsaw", "rotation+relative_location"])
def test_a_default_crop_has_room_for_the_task_where_half_the_scans_have(
    task, tmp_path, small, capsys
):
    rng = np.random.default_rng(0)
    settings = {**small, "crop": None, "task": task, "steps": 1, "batch": 2}
    for folder, edges in {"most": (34, 34, 28), "few": (34, 28, 28)}.items():
        (tmp_path / folder).mkdir()
        for number, edge in enumerate(edges):
            image = nib.Nifti1Image(rng.normal(size=(40, 32, edge)).astype(np.float32), np.eye(4))
            nib.save(image, tmp_path / folder / f"{number}.nii")
    selfvox.pretrain(tmp_path / "most", out=tmp_path / "run", **settings)
    output = capsys.readouterr().err
    assert "crops of 40 x 32 x 32 voxels" in output
    assert "1 of 3 scans" in output
    assert "40 x 32 x 24, which fits inside nine of ten, has no room for this task" in output
    with pytest.raises(UsageError, match=r"40 x 32 x 24 voxels has no room .* crop=\(40, 32, 32\)"):
        selfvox.pretrain(tmp_path / "few", out=tmp_path / "not", **settings)
    with pytest.raises(UsageError, match="40 x 32 x 24 voxels has no room"):
        selfvox.pretrain(
            tmp_path / "most", out=tmp_path / "asked", **settings | {"crop": (40, 32, 24)}
        )


def test_all_tasks_train_the_network_that_fine_tuning_plans(shapes_store, tmp_path, small, capsys):
    settings = {**small, "network": {"channels": [8, 16, 32, 64]}, "crop": (32, 32, 32)}
    settings |= {"steps": 1, "batch": 2}
    trained = selfvox.finetune(shapes_store, out=tmp_path / "scratch", encoder="none", **settings)
    network = read_network_card(trained).network
    capsys.readouterr()
    for task in ("rotation", "relative_location", "jigsaw", "cpc"):
        run = selfvox.pretrain(shapes_store, out=tmp_path / task, task=task, **settings)
        assert read_encoder(run)[1].network == network
        assert "planned for crops of 32 x 32 x 32 voxels" in capsys.readouterr().err
    settings["network"] = {"norm": "instance", **settings["network"]}
    with pytest.raises(UsageError, match="8 x 8 x 8 voxels ends in a map of 1, of which instance"):
        selfvox.pretrain(shapes_store, out=tmp_path / "not", task="jigsaw", **settings)


def test_a_residual_network_is_shown_crops_of_any_size(shapes_store, tmp_path, small):
    settings = {
        **small,
        "slices": "axial",
        "network": {
            "name": "residual",
            "channels": [8] * 5,
            "strides": [[1, 1], *[[2, 2]] * 4],
        },
        "steps": 1,
        "batch": 2,
        "crop": (64, 72),
    }
    run = selfvox.pretrain(
        shapes_store, out=tmp_path / "run", task="rotation+simclr", probe=shapes_store, **settings
    )
    assert read_encoder(run)[1].network["strides"] == [[1, 1], *[[2, 2]] * 4]


def test_epochs_are_passes_over_the_scans(shapes_store, tmp_path, small):
    run = selfvox.pretrain(
        shapes_store, out=tmp_path / "run", task="rotation", epochs=2, batch=4, **small
    )
    # six scans that are not for testing, twice, four at a time
    assert read_encoder(run / "encoder")[1].steps == 3


def test_a_second_crop_of_a_scan_is_not_taken_for_another_scan(
    shapes_store, tmp_path, small, monkeypatch
):
    ask = Exemplar.make_pair_batch
    scans = []

    def noted(self, images, partners, rng, scan=None):
        batch = ask(self, images, partners, rng, scan)
        scans.append((scan.tolist(), scan[batch["other"]].tolist()))
        return batch

    monkeypatch.setattr(Exemplar, "make_pair_batch", noted)
    # six scans that are not for testing
    selfvox.pretrain(
        shapes_store, out=tmp_path / "run", task="exemplar+rotation", steps=2, batch=9, **small
    )
    assert [len(set(shown)) for shown, _ in scans] == [6, 6]
    assert not [
        pair
        for shown, compared in scans
        for pair in zip(shown, compared, strict=True)
        if pair[0] == pair[1]
    ]


@pytest.mark.fault("C16", "one scan for a task that compares", "refused")
@pytest.mark.parametrize(
    "task", ["exemplar", {"name": "rotation+simclr", "simclr.mask_same_scan": True}]
)
def test_one_scan_alone_leaves_nothing_to_compare(task, tmp_path, small):
    phantom.write(tmp_path / "scans", "shapes", count=1)
    with pytest.raises(UsageError, match=r"compares scans of different people.* `task`"):
        selfvox.pretrain(
            tmp_path / "scans", out=tmp_path / "run", task=task, steps=1, batch=2, **small
        )


def test_pairs_of_scans_need_people_with_several(shapes_store, tmp_path, small, capsys):
    task = {"name": "simclr", "positives": "subject"}
    with pytest.raises(UsageError, match="pairs two scans of one person, and nobody has several"):
        selfvox.pretrain(shapes_store, out=tmp_path / "none", task=task, steps=1, batch=2, **small)
    phantom.write(tmp_path / "scans", "shapes", count=3)
    table = ["image,subject"]
    images = sorted((tmp_path / "scans").rglob("*.nii.gz"))
    images = [path.relative_to(tmp_path / "scans") for path in images if "images" in str(path)]
    table += [
        f"{path},{person}" for path, person in zip(images, ("ann", "bob", "ann"), strict=True)
    ]
    (tmp_path / "scans" / "table.csv").write_text("\n".join(table) + "\n")
    scans = tmp_path / "scans" / "table.csv"
    capsys.readouterr()
    for name, chosen in (("without", "simclr"), ("with", task)):
        selfvox.pretrain(scans, out=tmp_path / name, task=chosen, steps=1, batch=2, **small)
    printed = capsys.readouterr().err
    assert "1 of 2 people have several scans: --task.positives subject takes two" in printed
    assert "1 of 2 people have several scans: two of them are a pair" in printed
    weights = [
        sha256(tmp_path / name / "encoder" / "weights.safetensors") for name in ("without", "with")
    ]
    assert weights[0] != weights[1]


@pytest.mark.fault("F21", "a NaN batch with batch norm", "its statistics stay finite")
def test_statistics_of_a_batch_norm_outlive_a_bad_batch(shapes_store, tmp_path, small, monkeypatch):
    forward = pretext_objective.PretextObjective.forward

    def poisoned(self, batch, step, rng):
        batch["image"] = batch["image"] * (float("nan") if step == 2 else 1)
        return forward(self, batch, step, rng)

    monkeypatch.setattr(pretext_objective.PretextObjective, "forward", poisoned)
    settings = {**small, "network": {"channels": [4, 8], "norm": "batch"}}
    run = selfvox.pretrain(
        shapes_store,
        out=tmp_path / "run",
        task="rotation",
        steps=5,
        batch=2,
        save_every=1,
        **settings,
    )
    tensors, _ = read_encoder(run / "encoder")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert read_metrics(run)[-1]["skipped"] == 1


@pytest.mark.fault("C13", "impossible settings", "refused before any scan is read")
def test_mistakes_are_refused_before_the_folder_is_made(shapes_store, tmp_path, small):
    with pytest.raises(UsageError, match="did you mean 'rotation'"):
        selfvox.pretrain(shapes_store, out=tmp_path / "run", task="rotatoin", **small)
    assert not (tmp_path / "run").exists()


def test_a_mistyped_path_can_be_corrected_at_once(shapes_store, tmp_path, small):
    settings = {**small, "task": "rotation", "steps": 1, "batch": 2}
    with pytest.raises(DataError):
        selfvox.pretrain(tmp_path / "nowhere", out=tmp_path / "run", **settings)
    selfvox.pretrain(shapes_store, out=tmp_path / "run", **settings)


def first_batch(monkeypatch, verb, objective, *arguments, **settings):
    """The weights before the first step of a run, and the crops of that step."""
    recorded = {}
    forward = objective.forward

    def record(self, batch, step, rng):
        if step == 0:
            tensors = [parameter.detach().clone().flatten() for parameter in self.parameters()]
            recorded["weights"] = torch.cat(tensors)
            recorded["images"] = batch["image"].clone()
        return forward(self, batch, step, rng)

    with monkeypatch.context() as patched:
        patched.setattr(objective, "forward", record)
        verb(*arguments, steps=1, **settings)
    return recorded


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_the_seed_decides_on_the_weights_and_on_the_crops(
    verb, shapes_store, tmp_path, small, monkeypatch
):
    settings = {**small, "batch": 2}
    objective = pretext_objective.PretextObjective
    if verb == "pretrain":
        settings["task"] = "rotation"
    else:
        settings["encoder"] = "none"
        objective = segmentation_objective.SegmentationObjective
    zero, repeated, first = (
        first_batch(
            monkeypatch, getattr(selfvox, verb), objective, shapes_store,
            out=tmp_path / name, seed=seed, **settings,
        )
        for name, seed in (("zero", 0), ("again", 0), ("one", 1))
    )  # fmt: skip
    for name in ("weights", "images"):
        assert torch.equal(zero[name], repeated[name])
        assert not torch.equal(zero[name], first[name])


def test_a_task_and_an_encoder_may_be_python_objects(shapes_store, tmp_path, small):
    """The encoder starts from its own weights, and its card notes the classes alone."""
    settings = selfvox.pretrain.settings(
        scans=shapes_store, out=tmp_path / "run", steps=1, batch=2, seed=5, learning_rate=1e-9,
        crop=small["crop"], device="cpu", precision="fp32",
    )  # fmt: skip
    encoder = build_encoder(plan_encoder({"channels": (4, 8)}, small["crop"], (1, 1, 1)), 3, 1)
    initial = {name: tensor.clone() for name, tensor in encoder.named_parameters()}
    run = pretrain(settings, task=Rotation(versions=2), encoder=encoder)
    tensors, card = read_encoder(run / "encoder")
    assert (card.task["name"], card.task["versions"]) == ("rotation", 2)
    assert card.network == {"name": "selfvox.models.unet:UNetEncoder"}
    for name, tensor in initial.items():
        torch.testing.assert_close(tensors[name], tensor, atol=1e-6, rtol=1e-4)


def test_a_run_is_no_folder_of_scans(run, tmp_path):
    with pytest.raises(DataError, match="is a run of `selfvox pretrain`, not scans"):
        selfvox.pretrain(run, out=tmp_path / "run", task="rotation")
    assert not (tmp_path / "run").exists()
