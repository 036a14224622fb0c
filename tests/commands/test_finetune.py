"""Fine-tuning: which weights are loaded, frozen and kept, and which subjects they learn from."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import selfvox
from selfvox.data import phantom
from selfvox.data.preparation.split import read_split
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.models.build import build_encoder
from selfvox.prediction.load_model import load_segmenter
from selfvox.runs.weights import read_encoder, read_network


@pytest.fixture(scope="module")
def pretrained(shapes_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "run"
    network = {"name": "plain", "channels": [4, 8], "norm": "batch"}
    return selfvox.pretrain(
        shapes_store,
        out=out,
        task="rotation",
        steps=3,
        batch=2,
        crop=(16, 16, 16),
        network=network,
        device="cpu",
    )


def encoders(pretrained, run):
    pretrained_tensors, _ = read_encoder(pretrained / "encoder")
    tensors, card = read_network(run / "network")
    return (
        pretrained_tensors,
        {name: tensors[f"encoder.{name}"] for name in pretrained_tensors},
        card,
    )


def test_an_encoder_frozen_for_good_keeps_every_weight_and_statistic(
    shapes_store, tmp_path, pretrained
):
    run = selfvox.finetune(
        shapes_store,
        out=tmp_path / "run",
        encoder=str(pretrained),
        freeze="always",
        steps=4,
        crop=(16, 16, 16),
    )
    pretrained_tensors, tensors, card = encoders(pretrained, run)
    assert any("running_mean" in name for name in pretrained_tensors)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in pretrained_tensors.items())
    assert card.encoder.startswith(f"loaded {len(pretrained_tensors)} tensors")


def test_a_linear_probe_trains_one_layer_alone_also_of_random_features(
    shapes_store, tmp_path, pretrained
):
    settings = {"head": "linear", "freeze": "always", "steps": 2, "crop": (16, 16, 16)}
    settings["keep"] = "last"  # which step is best depends on the arithmetic: bf16 or fp32
    run = selfvox.finetune(shapes_store, out=tmp_path / "run", encoder=str(pretrained), **settings)
    pretrained_tensors, tensors, card = encoders(pretrained, run)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in pretrained_tensors.items())
    assert card.head == "linear"
    assert load_segmenter(run).network.decoder.layers[0].weight.shape == (3, 4, 1, 1, 1)
    settings["network"] = {"name": "plain", "channels": [4, 8], "norm": "batch"}
    fresh = [
        selfvox.finetune(
            shapes_store,
            out=tmp_path / f"fresh{steps}",
            encoder="none",
            **{**settings, "steps": steps},
        )
        for steps in (1, 2)
    ]
    first, second = (read_network(folder / "network")[0] for folder in fresh)
    unchanged = {name for name in first if torch.equal(first[name], second[name])}
    assert unchanged == {name for name in first if name.startswith("encoder.")}


def test_a_warm_up_freezes_and_then_trains(shapes_store, tmp_path, pretrained):
    settings = {"encoder": str(pretrained), "crop": (16, 16, 16), "steps": 4, "keep": "last"}
    run = selfvox.finetune(shapes_store, out=tmp_path / "run", warmup=0.5, **settings)
    pretrained_tensors, tensors, _ = encoders(pretrained, run)
    assert not any(
        torch.equal(tensors[name], tensor)
        for name, tensor in pretrained_tensors.items()
        if name.endswith("conv.weight")
    )


@pytest.mark.parametrize("by", ["its settings", "the run"])
def test_from_scratch_and_pre_trained_differ_in_nothing_but_the_encoder(
    by, shapes_store, tmp_path, pretrained
):
    network = (
        str(pretrained)
        if by == "the run"
        else {"name": "plain", "channels": [4, 8], "norm": "batch"}
    )
    settings = {"network": network, "labels": 2, "steps": 2} | (
        {} if by == "the run" else {"crop": (16, 16, 16)}
    )
    cards = []
    for name, encoder in (("pre", str(pretrained)), ("scratch", "none")):
        run = selfvox.finetune(shapes_store, out=tmp_path / name, encoder=encoder, **settings)
        tensors, card = read_network(run / "network")
        cards.append(
            {
                key: getattr(card, key)
                for key in ("network", "crop", "classes", "recipe", "in_channels")
            }
        )
        cards[-1]["shapes"] = {key: tensor.shape for key, tensor in tensors.items()}
        cards[-1]["split"] = read_split(run / "split.json")
    assert cards[0] == cards[1]


@pytest.mark.fault("F12 K4", "weights of another network", "refused with tensor and shapes")
@pytest.mark.parametrize(
    "network",
    ["residual", {"name": "plain", "channels": [4, 16]}, {"name": "plain", "norm": "group"}],
)
def test_another_network_than_the_encoder_is_refused(network, shapes_store, tmp_path, pretrained):
    with pytest.raises(UsageError, match=r"^network: .* leave `network` out"):
        selfvox.finetune(
            shapes_store, out=tmp_path / "run", encoder=str(pretrained), network=network, steps=1
        )


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [("balance", True, "balance=True"), ("ordinal", False, "ordinal=False")],
)
def test_options_of_classification_are_refused(name, value, option, shapes_store, tmp_path, small):
    with pytest.raises(
        UsageError, match=f"^{name}: is for classification, but .* has labels; leave {option} out"
    ):
        selfvox.finetune(
            shapes_store, out=tmp_path / "run", encoder="none", steps=1, **{name: value}, **small
        )


def test_epochs_are_passes_over_the_labelled_scans_that_train(shapes_store, tmp_path, small):
    settings = {**small, "batch": 2, "keep": "last"}
    run = selfvox.finetune(
        shapes_store, out=tmp_path / "run", encoder="none", labels=3, epochs=1.5, **settings
    )
    # three scans, one and a half times, two at a time
    assert json.loads((run / "network" / "network.json").read_text())["step"] == 3


def test_labels_are_counted_by_subject_and_nested(shapes_store, tmp_path, small):
    chosen = {}
    for name, labels in (
        ("one", {"labels": 1}),
        ("three", {"labels": 3}),
        ("half", {"fraction": 0.5}),
    ):
        run = selfvox.finetune(
            shapes_store, out=tmp_path / name, encoder="none", steps=1, **labels, **small
        )
        split = read_split(run / "split.json")
        chosen[name] = set(split.train)
        assert len(split.validation) == len(split.test) == 2
        assert json.loads((run / "run.json").read_text())["data"]["subjects"] == sorted(
            {*split.train, *split.validation}
        )
    assert (len(chosen["one"]), len(chosen["three"]), len(chosen["half"])) == (1, 3, 2)
    assert chosen["one"] < chosen["half"] < chosen["three"]


@pytest.mark.fault("C16", "more labels than there are", "refused")
def test_more_labels_than_there_are_is_refused(shapes_store, tmp_path, small):
    with pytest.raises(
        UsageError, match="has 4 to train on, besides 2 for validation and 2 for testing"
    ):
        selfvox.finetune(shapes_store, out=tmp_path / "run", encoder="none", labels=5, **small)


@pytest.mark.parametrize(("augment", "warned"), [(None, True), ("light", False), ("none", False)])
def test_strong_augmentation_in_a_short_run_is_warned_of(
    augment, warned, shapes_store, tmp_path, small, capsys
):
    selfvox.finetune(
        shapes_store, out=tmp_path / "run", encoder="none", steps=2, augment=augment, **small
    )
    assert ("strong augmentation needs 1000 steps" in capsys.readouterr().err) == warned


def test_the_best_step_by_validation_is_kept_and_recorded(shapes_store, tmp_path, small):
    run = selfvox.finetune(
        shapes_store, out=tmp_path / "run", encoder="none", steps=30, validate_every=5, **small
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    dice = {line["step"]: line["dice_mean"] for line in lines if "dice_mean" in line}
    assert list(dice) == [5, 10, 15, 20, 25, 30]
    card = json.loads((run / "network" / "network.json").read_text())
    assert card["validation_dice"] == max(dice.values()) == dice[card["step"]]


def test_label_values_with_gaps_are_learnt_and_written_as_they_are(tmp_path, small):
    phantom.write(tmp_path / "scans", "shapes", count=4)
    for file in [*(tmp_path / "scans" / "labels").iterdir()]:
        label = nib.load(file)
        nib.save(
            nib.Nifti1Image(
                np.asarray([0, 4, 200], np.uint8)[label.get_fdata().astype(int)], label.affine
            ),
            file,
        )
    (tmp_path / "scans" / "dataset.json").unlink()
    run = selfvox.finetune(
        tmp_path / "scans",
        out=tmp_path / "run",
        encoder="none",
        steps=60,
        spacing=(1.5, 1.5, 1.5),
        **small,
    )
    card = json.loads((run / "network" / "network.json").read_text())
    assert list(card["classes"]) == ["0", "4", "200"]
    for out, options in (("plain", {}), ("maps", {"probabilities": True})):
        selfvox.predict(run, tmp_path / "scans", out=tmp_path / out, **options)
        values = {
            int(v)
            for f in (tmp_path / out).glob("sub-00?.nii.gz")
            for v in np.unique(nib.load(f).get_fdata())
        }
        assert values <= {0, 4, 200}
        assert len(values) > 1
    rows = selfvox.evaluate(tmp_path / "plain", tmp_path / "scans" / "labels")
    assert {row["class"] for row in rows} == {4, 200}


def test_as_many_labels_as_there_are_train_and_none_is_left_to_validate(tmp_path, small):
    phantom.write(tmp_path / "scans", "shapes", count=5)
    for labels, validation in ((5, 0), (4, 1), (None, 1)):
        run = selfvox.finetune(
            tmp_path / "scans",
            out=tmp_path / f"run{labels}",
            encoder="none",
            steps=1,
            labels=labels,
            **small,
        )
        split = read_split(run / "split.json")
        assert (len(split.train), len(split.validation)) == (labels or 4, validation)


def test_test_scans_that_the_encoder_has_seen_are_reported(shapes_store, tmp_path, small, capsys):
    settings = {"task": "rotation", "steps": 1, "batch": 2, **small}
    blind = selfvox.pretrain(shapes_store, out=tmp_path / "blind", **settings)
    phantom.write(tmp_path / "scans", "shapes", count=8)
    seeing = selfvox.pretrain(tmp_path / "scans", out=tmp_path / "seeing", **settings)
    capsys.readouterr()
    for encoder, is_reported in ((blind, False), (seeing, True)):
        out = tmp_path / f"seg-{encoder.name}"
        selfvox.finetune(shapes_store, out=out, encoder=str(encoder), steps=1, crop=(16, 16, 16))
        assert ("2 of 2 test scans" in capsys.readouterr().err) == is_reported


def test_random_features_may_be_frozen_as_a_baseline_and_this_is_reported(
    shapes_store, tmp_path, capsys
):
    settings = {
        "freeze": "always",
        "steps": 2,
        "crop": (16, 16, 16),
        "network": {"name": "plain", "channels": [4, 8]},
    }
    run = selfvox.finetune(shapes_store, out=tmp_path / "run", encoder="none", **settings)
    assert (
        "is frozen for 2 of 2 steps, with random weights: only as a baseline"
        in capsys.readouterr().err
    )
    torch.manual_seed(0)
    drawn = build_encoder(
        json.loads((run / "network" / "network.json").read_text())["network"], 3, 1
    ).named_parameters()
    tensors, _ = read_network(run / "network")
    assert all(torch.equal(tensors[f"encoder.{name}"], tensor) for name, tensor in drawn)


def two_channels(folder, count=3):
    """Shapes, and a copy of each as its second channel."""
    phantom.write(folder / "one", "shapes", count=count)
    shutil.copytree(folder / "one", folder / "copy")
    rows = []
    for case in find_dataset(folder / "one").cases:
        (scan,) = case.images
        copy = folder / "copy" / scan.relative_to(folder / "one")
        rows.append(f"{case.subject},{scan},{copy},{case.label}")
    (folder / "two.csv").write_text("\n".join(["subject,image_a,image_b,label", *rows]) + "\n")
    return folder / "two.csv"


@pytest.mark.fault("K4", "an encoder of other channels", "refused without a stated rule")
def test_scans_of_other_channels_need_a_policy_which_is_reported_and_recorded(
    tmp_path, pretrained, capsys
):
    table = two_channels(tmp_path)
    settings = {
        "encoder": str(pretrained),
        "labels": 1,
        "steps": 1,
        "crop": (16, 16, 16),
        "device": "cpu",
    }
    with pytest.raises(DataError, match='first_conv="mean"'):
        selfvox.finetune(table, out=tmp_path / "refused", **settings)
    run = selfvox.finetune(
        table, out=tmp_path / "run", first_conv="mean", freeze="always", **settings
    )
    pretrained_tensors, tensors, card = encoders(pretrained, run)
    assert "from 1 to 2 channels: mean" in card.encoder
    assert "from 1 to 2 channels: mean" in capsys.readouterr().err
    changed = [
        name for name in pretrained_tensors if pretrained_tensors[name].shape != tensors[name].shape
    ]
    assert len(changed) == 1
    assert torch.allclose(tensors[changed[0]].sum(1, keepdim=True), pretrained_tensors[changed[0]])
    assert all(
        torch.equal(pretrained_tensors[name], tensors[name])
        for name in pretrained_tensors
        if name not in changed
    )


def test_scans_of_other_channels_get_the_grid_of_the_encoder_unless_another_is_given(
    tmp_path, pretrained
):
    table = two_channels(tmp_path)
    settings = {"encoder": str(pretrained), "labels": 1, "steps": 1, "crop": (16, 16, 16)}
    settings |= {"device": "cpu", "first_conv": "mean"}
    trained_on = read_encoder(pretrained / "encoder")[1].recipe
    assert trained_on["spacing_mm"] is not None
    assert trained_on["keep_within"] > 0
    grid = ("size", "spacing_mm", "keep_within")
    for name, option, expected in (
        ("default", {}, [trained_on[key] for key in grid]),
        ("size", {"size": (24, 24, 24)}, [[24, 24, 24], None, 0.0]),
        ("spacing", {"spacing": (2.0, 2.0, 2.0)}, [None, [2.0, 2.0, 2.0], 0.0]),
    ):
        run = selfvox.finetune(table, out=tmp_path / name, **settings, **option)
        recipe = read_network(run / "network")[1].recipe
        assert [recipe[key] for key in grid] == expected
    # a store of these scans has the same grid, and needs no other preparation
    selfvox.finetune(tmp_path / "default" / "store", out=tmp_path / "again", **settings)
    with pytest.raises(DataError, match="was prepared in another way than the encoder's scans"):
        selfvox.finetune(tmp_path / "size" / "store", out=tmp_path / "refused", **settings)


def test_an_encoder_that_labels_trained_serves_as_one_that_pre_training_did(
    shapes_store, tmp_path, small
):
    first = selfvox.finetune(
        shapes_store, out=tmp_path / "first", encoder="none", labels=2, steps=2, **small
    )
    second = selfvox.finetune(
        shapes_store,
        out=tmp_path / "second",
        encoder=str(first),
        freeze="always",
        labels=1,
        seed=1,
        steps=2,
        crop=(16, 16, 16),
        device="cpu",
    )
    pretrained_tensors, card = read_network(first / "network")
    tensors, later = read_network(second / "network")
    inherited = [name for name in pretrained_tensors if name.startswith("encoder.")]
    assert inherited
    assert all(torch.equal(pretrained_tensors[name], tensors[name]) for name in inherited)
    assert "the labels of first" in later.encoder
    assert set(card.seen["image_hashes"]) <= set(later.seen["image_hashes"])


def test_the_labelled_scans_of_a_folder_are_prepared_alone(tmp_path, capsys, small):
    phantom.write(tmp_path / "scans", "shapes", count=6)
    for label in sorted((tmp_path / "scans" / "labels").iterdir())[3:]:
        label.unlink()
    (tmp_path / "scans" / "dataset.json").unlink(missing_ok=True)
    how = {"encoder": "none", "steps": 1, "workers": 1, **small}
    selfvox.finetune(tmp_path / "scans", out=tmp_path / "run", **how)
    assert len(list((tmp_path / "run" / "store" / "images").iterdir())) == 3
    assert "3 of 6 scans have no label and are not prepared" in capsys.readouterr().err


def test_an_encoder_of_pictures_is_refused_for_volumes(tmp_path, small):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(256, size=(32, 32), dtype=np.uint8)).save(
            pictures / f"{number}.png"
        )
    options = {**small, "crop": (16, 16)}
    run = selfvox.pretrain(pictures, out=tmp_path / "2d", task="rotation", steps=1, **options)
    phantom.write(tmp_path / "scans", "shapes", count=4)
    with pytest.raises(DataError, match="has 3 spatial axes where the data set has 2"):
        selfvox.finetune(tmp_path / "scans", out=tmp_path / "run", encoder=str(run), steps=1)
