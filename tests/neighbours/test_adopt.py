"""Weights from elsewhere: all of the encoder is loaded and computes the same, or it is refused."""

import json
import pickle

import pytest
import safetensors.torch
import torch
from monai.networks.nets import resnet
from monai.networks.nets.swin_unetr import SwinTransformer

import selfvox
from selfvox.errors import UsageError, WeightsError
from selfvox.models.build import build_encoder, load_encoder, plan_encoder
from selfvox.runs.weights import read_encoder, state_tensors
from selfvox.training.pretrained import read_pretrained

from ..conftest import as_nnunet_reads, nnunet_network


def save(path, tensors):
    safetensors.torch.save_file({key: value.clone() for key, value in tensors.items()}, path)
    return path


def random_state(network):
    """The state of a network with weights that are not those of its start."""
    torch.manual_seed(2)
    state = network.state_dict()
    for tensor in dict(network.named_parameters()).values():
        tensor.data.copy_(0.3 * torch.randn(tensor.shape))
    return state


@pytest.fixture
def nnssl_file(write_plans, tmp_path):
    """A checkpoint as nnssl writes it, and its network."""
    plans = write_plans("residual", forward=(0, 1, 2))
    network = nnunet_network(plans, 1, 2)
    state = random_state(network)
    architecture = json.loads(plans.read_text())["configurations"]["3d_fullres"]["architecture"]
    content = {
        "network_weights": state,
        "nnssl_adaptation_plan": {
            "architecture_plans": {
                "arch_class_name": "ResidualEncoderUNet",
                "arch_kwargs": architecture["arch_kwargs"],
            }
        },
        "trainer_name": "MAE",
    }
    torch.save(content, tmp_path / "checkpoint_final.pth")
    return tmp_path / "checkpoint_final.pth", network


def test_a_checkpoint_of_nnssl_computes_the_same_maps_here(nnssl_file, tmp_path, capsys):
    file, theirs = nnssl_file
    out = selfvox.adopt(file, layout="openmind", out=tmp_path / "encoder")
    encoder, card = load_encoder(out)
    image = torch.randn(1, 1, 16, 12, 10)
    with torch.no_grad():
        expected = theirs.encoder(as_nnunet_reads(image, (0, 1, 2)))
        maps = encoder(image)
    for level, theirs_level in zip(maps, expected, strict=True):
        difference = (as_nnunet_reads(level, (0, 1, 2)) - theirs_level).abs().max()
        assert float(difference) < 1e-4 * float(theirs_level.abs().max())
    assert card.source["licence"].startswith("CC BY 4.0")
    assert list(card.recipe["spacing_mm"]) == [1, 1, 1]
    # also where it is used
    capsys.readouterr()
    read_pretrained(str(out))
    assert "licence: CC BY 4.0" in capsys.readouterr().err


def test_a_checkpoint_of_nnunet_takes_its_plans(write_plans, tmp_path):
    plans = write_plans(forward=(1, 0, 2), normalization_schemes=["CTNormalization"])
    theirs = nnunet_network(plans, 1, 2)
    file = save(tmp_path / "w.safetensors", random_state(theirs))
    out = selfvox.adopt(file, layout="nnunet", network=str(plans), out=tmp_path / "encoder")
    encoder, card = load_encoder(out)
    # x, y, z of a patch of 10, 12, 16 in nnU-Net's order y, z, x
    image = torch.randn(1, 1, 16, 10, 12)
    with torch.no_grad():
        expected = theirs.encoder(as_nnunet_reads(image, (1, 0, 2)))[-1]
        difference = (as_nnunet_reads(encoder(image)[-1], (1, 0, 2)) - expected).abs().max()
    assert float(difference) < 1e-4 * float(expected.abs().max())
    assert card.recipe["intensity"][0]["lower"] == -90


def test_a_residual_network_of_medicalnet_is_recognised(tmp_path):
    theirs = resnet.ResNetFeatures("resnet10", pretrained=False)
    state = random_state(theirs)
    named = {f"module.{key}": value for key, value in state.items()}
    named |= {"module.conv_seg.0.weight": torch.ones(2, 2)}
    out = selfvox.adopt(
        save(tmp_path / "resnet_10.safetensors", named), layout="medicalnet", out=tmp_path / "e"
    )
    encoder, card = load_encoder(out)
    assert card.network == {"name": "monai:ResNetFeatures", "model_name": "resnet10"}
    image = torch.randn(1, 1, 32, 24, 16)
    with torch.no_grad():
        expected = theirs.eval()(image.permute(0, 1, 4, 3, 2))[-1]
        ours = encoder.eval()(image)[-1].permute(0, 1, 4, 3, 2)
    assert float((ours - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("layout", ["swinunetr", "voco"])
def test_a_swin_transformer_is_loaded_from_either_layout(tmp_path, layout):
    is_v2 = layout == "voco"
    theirs = SwinTransformer(
        in_chans=1,
        embed_dim=12,
        window_size=(7, 7, 7),
        patch_size=(2, 2, 2),
        depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24),
        use_v2=is_v2,
    )
    state = random_state(theirs)
    if is_v2:
        named = {f"backbone.swinViT.{key}": value for key, value in state.items()}
        named |= {
            "backbone.encoder1.layer.weight": torch.ones(2),
            "student.0.weight": torch.ones(3),
        }
    else:
        # NVIDIA's names
        named = {
            f"module.{key}".replace("linear1", "fc1").replace("linear2", "fc2"): value
            for key, value in state.items()
        }
    out = selfvox.adopt(save(tmp_path / "w.safetensors", named), layout=layout, out=tmp_path / "e")
    encoder, card = load_encoder(out)
    assert (card.network["feature_size"], card.network["use_v2"]) == (12, is_v2)
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        pairs = zip(encoder.eval()(image), theirs.eval()(image), strict=True)
        assert all(torch.allclose(ours, expected) for ours, expected in pairs)
    window = card.recipe["intensity"][0]
    assert [(value - window["mean"]) / window["std"] for value in (-175, 250)] == [0, 1]


def test_a_missing_tensor_or_a_value_that_is_not_finite_is_refused(write_plans, tmp_path):
    plans = write_plans()
    state = random_state(nnunet_network(plans, 1, 2))
    key = "encoder.stages.2.0.convs.0.conv.weight"
    nan = {**state, key: torch.full_like(state[key], torch.nan)}
    missing = {name: value for name, value in state.items() if name != key}
    for number, (tensors, message) in enumerate([(nan, "not finite"), (missing, "has no tensor")]):
        file = save(tmp_path / f"{number}.safetensors", tensors)
        with pytest.raises(WeightsError, match=message):
            selfvox.adopt(file, layout="nnunet", network=str(plans), out=tmp_path / "e")
    assert not (tmp_path / "e").exists()


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_file_is_not_run(tmp_path):
    file = tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps({"state_dict": Canary(tmp_path / "canary")}))
    with pytest.raises(WeightsError, match="is not a file of tensors and plain values"):
        selfvox.adopt(file, layout="openmind", out=tmp_path / "e")
    torch.save({"state_dict": {"a": Canary(tmp_path / "canary")}}, file)
    with pytest.raises(WeightsError, match="is not a file of tensors and plain values"):
        selfvox.adopt(file, layout="openmind", out=tmp_path / "e")
    assert not (tmp_path / "canary").exists()


def test_a_network_is_named_where_the_layout_does_not_say_it(tmp_path):
    file = save(tmp_path / "w.safetensors", {"a": torch.ones(1)})
    for layout, network, message in (
        ("nnunet", None, "say which one"),
        ("nnunet", "plain", "is not a file of plans"),
        ("voco", "plain", "leave .*network.* out"),
    ):
        with pytest.raises(UsageError, match=message):
            selfvox.adopt(file, layout=layout, network=network, out=tmp_path / "e")
    with pytest.raises(WeightsError, match="no Swin transformer"):
        selfvox.adopt(file, layout="voco", out=tmp_path / "e")
    with pytest.raises(WeightsError, match="no residual network of MedicalNet"):
        selfvox.adopt(file, layout="medicalnet", out=tmp_path / "e")


def test_a_network_of_ones_own_keeps_its_names(tmp_path):
    network = {"name": "plain", "channels": [4, 8]}
    encoder = build_encoder(plan_encoder(network, (16,) * 3, (1.0,) * 3), 3, 2)
    random_state(encoder)
    tensors = state_tensors(encoder)
    named = {
        f"module.encoder.{name.removeprefix('net.')}": value for name, value in tensors.items()
    }
    file = save(tmp_path / "own.safetensors", named)
    out = selfvox.adopt(file, layout="torch", network=network, out=tmp_path / "e")
    adopted, card = read_encoder(out)
    assert card.in_channels == 2
    assert all(torch.equal(adopted[name], tensor) for name, tensor in tensors.items())
