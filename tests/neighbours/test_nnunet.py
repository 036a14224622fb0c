"""Weights for nnU-Net: its own network reads them, and computes what ours computes."""

import json

import pytest
import torch

import selfvox
from selfvox.errors import UsageError, WeightsError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.nnunet_plans import read_plans
from selfvox.models.segmenter import Segmenter
from selfvox.runs.weights import save_part

from ..conftest import as_nnunet_reads, nnunet_network

SEEN = {"subjects": ["ANNA_KANARIA"], "image_hashes": ["abc"], "coarse_pictures": []}


def save_run(folder, file, *, decoder="pretrained", channels=1):
    """A run with the network of plans and random weights: an encoder, or a segmenter."""
    plans = read_plans(str(file))
    spec = plan_encoder(str(file), plans.patch, (1.0, 1.0, 1.0))
    torch.manual_seed(1)
    encoder = build_encoder(spec, 3, channels)
    network = Segmenter(encoder, 3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
    card = {
        "network": spec,
        "spatial_dims": 3,
        "in_channels": channels,
        "crop": list(plans.patch),
        "slices": None,
        "recipe": {
            "spatial_dims": 3,
            "channel_names": ["MRI"] * channels,
            "intensity": [{"kind": "mri"}] * channels,
            "spacing_mm": list(plans.spacing_mm),
        },
        "seen": SEEN,
        "seed": 0,
    }
    if decoder == "fine-tuned":
        card |= {
            "encoder": "from scratch",
            "head": "full",
            "classes": {"0": "background", "1": "a", "2": "b"},
            "regions": None,
            "trained_on": "classes",
            "step": 1,
            "validation_dice": None,
        }
        save_part(folder / "network", "network", network, card)
        return network
    card |= {"spacing_mm": [1.0] * 3, "task": {"name": "masked"}, "weights": None, "steps": 1}
    if decoder == "pretrained":
        save_part(folder / "decoder", "decoder", network.decoder, {"norm": "instance"})
    save_part(folder / "encoder", "encoder", encoder, card)
    return network


def load_as_nnunet(network, file):
    """A second implementation of what nnU-Net 2.8 does with `-pretrained_weights`."""
    content = torch.load(file, weights_only=True)["network_weights"]
    state = network.state_dict()
    for key, tensor in state.items():
        if ".seg_layers." not in key:
            assert content[key].shape == tensor.shape
    network.load_state_dict(
        state | {key: tensor for key, tensor in content.items() if ".seg_layers." not in key}
    )


@pytest.mark.parametrize("forward", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_nnunet_reads_the_weights_and_computes_the_same_maps(write_plans, tmp_path, name, forward):
    file = write_plans(name, forward=forward)
    ours = save_run(tmp_path / "run", file, decoder="fine-tuned")
    out = selfvox.export(
        tmp_path / "run", to="nnunet", plans=str(file), out=tmp_path / "weights.pth"
    )
    theirs = nnunet_network(file, 1, 3)
    load_as_nnunet(theirs, out)
    # output layers are nnU-Net's own: ours for the comparison
    theirs.decoder.seg_layers[-1].load_state_dict(ours.decoder.seg_layers[-1].state_dict())
    image = torch.randn(1, 1, *read_plans(str(file)).patch)
    with torch.no_grad():
        maps = ours.encoder(image)
        turned = as_nnunet_reads(image, forward)
        for level, expected in zip(maps, theirs.encoder(turned), strict=True):
            difference = (as_nnunet_reads(level, forward) - expected).abs().max()
            assert float(difference) < 1e-4 * float(expected.abs().max())
        logits = as_nnunet_reads(ours(image), forward)
        expected = theirs(turned)
    assert float((logits - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("decoder", ["random", "pretrained", "fine-tuned"])
def test_only_a_fine_tuned_decoder_is_exported_with_the_encoder(write_plans, tmp_path, decoder):
    file = write_plans()
    ours = save_run(tmp_path / "run", file, decoder=decoder)
    out = selfvox.export(
        tmp_path / "run", to="nnunet", plans=str(file), out=tmp_path / "weights.pth"
    )
    content = torch.load(out, weights_only=True)
    weights = content["network_weights"]
    key = "stages.0.convs.0.norm.weight"
    assert torch.equal(
        weights["encoder.stages.0.0.convs.0.norm.weight"],
        ours.encoder.net.stages[0][0].convs[0].norm.weight,
    )
    is_ours = torch.equal(weights[f"decoder.{key}"], dict(ours.decoder.named_parameters())[key])
    assert is_ours == (decoder == "fine-tuned")
    assert ("random" in content["selfvox"]["decoder"]) == (decoder != "fine-tuned")
    load_as_nnunet(nnunet_network(file, 1, 5), out)


def test_the_same_run_is_exported_to_the_same_weights(write_plans, tmp_path):
    file = write_plans()
    save_run(tmp_path / "run", file, decoder="random")
    states = []
    for number in range(2):
        out = tmp_path / f"{number}.pth"
        torch.manual_seed(number)
        selfvox.export(tmp_path / "run", to="nnunet", plans=str(file), out=out)
        states.append(torch.load(out, weights_only=True)["network_weights"])
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_more_channels_see_what_one_saw(write_plans, tmp_path):
    file = write_plans()
    ours = save_run(tmp_path / "run", file, decoder="random")
    out = selfvox.export(
        tmp_path / "run", to="nnunet", plans=str(file), out=tmp_path / "w.pth", channels=3
    )
    theirs = nnunet_network(file, 3, 2)
    load_as_nnunet(theirs, out)
    image = torch.randn(1, 1, 10, 16, 12)
    with torch.no_grad():
        # the same image in all channels
        maps = theirs.encoder(as_nnunet_reads(image, (2, 0, 1)).repeat(1, 3, 1, 1, 1))
        expected = as_nnunet_reads(ours.encoder(image)[-1], (2, 0, 1))
    assert float((maps[-1] - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_nothing_of_the_subjects_is_exported(write_plans, tmp_path):
    file = write_plans()
    save_run(tmp_path / "run", file)
    for form in ("nnunet", "nnssl"):
        plans = str(file) if form == "nnunet" else None
        out = selfvox.export(tmp_path / "run", to=form, plans=plans, out=tmp_path / f"{form}.pth")
        assert b"KANARIA" not in out.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features_per_stage": [4, 6, 10]}, r"has channels \[4, 6, 10\], and the network of"),
        ({"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}, "has strides"),
        ({"kernel_sizes": [[3, 3, 3]] * 3}, "has kernels"),
        ({"n_conv_per_stage_decoder": [2, 2]}, "has decoder_blocks"),
    ],
)
def test_weights_of_another_network_are_refused_and_nothing_is_written(
    write_plans, tmp_path, change, message
):
    file = write_plans()
    save_run(tmp_path / "run", file, decoder="fine-tuned")
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= change
    other = tmp_path / "other.json"
    other.write_text(json.dumps(plans))
    with pytest.raises(UsageError, match=f"{message}.*pre-train with network="):
        selfvox.export(tmp_path / "run", to="nnunet", plans=str(other), out=tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


def test_a_random_decoder_is_that_of_the_plans(write_plans, tmp_path):
    file = write_plans()
    save_run(tmp_path / "run", file, decoder="random")
    plans = json.loads(file.read_text())
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments["n_conv_per_stage_decoder"] = [1, 3]
    file.write_text(json.dumps(plans))
    out = selfvox.export(tmp_path / "run", to="nnunet", plans=str(file), out=tmp_path / "w.pth")
    load_as_nnunet(nnunet_network(file, 1, 2), out)


def test_a_damaged_run_and_missing_plans_are_refused(write_plans, tmp_path):
    file = write_plans()
    save_run(tmp_path / "run", file)
    with pytest.raises(UsageError, match="plans: name the plans"):
        selfvox.export(tmp_path / "run", to="nnunet", out=tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"end it in \.pth"):
        selfvox.export(tmp_path / "run", to="nnunet", plans=str(file), out=tmp_path / "w.bin")
    weights = tmp_path / "run" / "encoder" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="checksum"):
        selfvox.export(tmp_path / "run", to="nnunet", plans=str(file), out=tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_an_nnssl_checkpoint_has_plain_values_and_the_keys_that_its_plan_names(
    write_plans, tmp_path, name
):
    file = write_plans(name, forward=(0, 1, 2))
    save_run(tmp_path / "run", file)
    out = selfvox.export(tmp_path / "run", to="nnssl", out=tmp_path / "w.pth")
    # refuses anything but tensors and plain values
    content = torch.load(out, weights_only=True)
    plan = content["nnssl_adaptation_plan"]
    architecture = plan["architecture_plans"]
    weights = content["network_weights"]
    # as nnU-Net makes its network from such arguments, on the axes of SimpleITK
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + architecture["arch_class_name"],
        "arch_kwargs": architecture["arch_kwargs"],
        "_kw_requires_import": architecture["arch_kwargs_requiring_import"],
    }
    file.write_text(json.dumps(plans))
    theirs = nnunet_network(file, plan["pretrain_num_input_channels"], 2)
    expected = {key for key in theirs.state_dict() if key.startswith("encoder.")}
    assert weights.keys() == expected
    assert any(key.startswith(plan["key_to_encoder"]) for key in weights)
    assert any(key.startswith(plan["key_to_stem"]) for key in weights)
    for layer in plan["keys_to_in_proj"]:
        assert weights[f"{layer}.weight"].shape[1] == 1
    configuration = next(iter(plan["pretrain_plan"]["configurations"].values()))
    # as the plans had them, whose axes are z, y, x too
    assert configuration["spacing"] == [3.0, 1.0, 0.5]
    assert configuration["patch_size"] == [10, 12, 16]
