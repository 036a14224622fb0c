"""nnU-Net's plans: the very network of nnU-Net, with its axes turned to ours."""

import json

import pytest
import torch

from selfvox.errors import DataError, UsageError
from selfvox.models.build import build_encoder, check_network, plan_encoder, plans_divisor
from selfvox.models.nnunet_plans import kernel_order, read_plans
from selfvox.models.segmenter import Segmenter

from ..conftest import as_nnunet_reads, nnunet_network

ISOTROPIC = (1.0, 1.0, 1.0)


def change(file, **changes):
    """Change arguments of the network in plans."""
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= changes
    file.write_text(json.dumps(plans))
    return str(file)


# the last two turn the axes in a cycle, which differs from its inverse
@pytest.mark.parametrize("forward", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (0, 2, 1)])
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_the_network_of_plans_computes_what_that_of_nnunet_computes(write_plans, name, forward):
    file = write_plans(name, forward=forward)
    plans = read_plans(str(file))
    encoder = build_encoder(plan_encoder(str(file), plans.patch, ISOTROPIC), 3, 1)
    segmenter = Segmenter(encoder, 3)
    theirs = nnunet_network(file, 1, 3)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
    order = kernel_order(plans.axes)
    state = dict(theirs.named_parameters())
    ours = {
        name.replace("encoder.net.", "encoder."): tensor
        for name, tensor in segmenter.named_parameters()
    }
    # of nnU-Net's decoder, selfvox lacks the outputs of the coarser levels
    assert {key for key in state if key not in ours} == {
        "decoder.seg_layers.0.weight",
        "decoder.seg_layers.0.bias",
    }
    with torch.no_grad():
        for key, tensor in ours.items():
            state[key].copy_(tensor.permute(order) if tensor.ndim == 5 else tensor)
    image = torch.randn(1, 1, *plans.patch)
    with torch.no_grad():
        expected = theirs(as_nnunet_reads(image, forward))
        logits = segmenter(image)
    difference = (as_nnunet_reads(logits, forward) - expected).abs().max()
    assert float(difference) < 1e-4 * float(expected.abs().max())


def test_patch_spacing_and_strides_are_in_our_order(write_plans):
    plans = read_plans(str(write_plans(forward=(2, 0, 1))))
    # nnU-Net's first axis is x (2 of z, y, x), then z, then y
    assert plans.axes == (0, 2, 1)
    assert plans.patch == (10, 16, 12)
    assert plans.spacing_mm == (3.0, 0.5, 1.0)
    assert plans.network["strides"] == [[1, 1, 1], [1, 2, 2], [2, 4, 2]]
    assert plans.network["kernels"][0] == [1, 3, 3]
    assert plans_divisor(str(plans.file)) == (2, 8, 4)


@pytest.mark.parametrize(
    ("forward", "slices", "axes", "patch"),
    [
        ((0, 1, 2), "axial", (1, 0), (16, 12)),
        ((2, 0, 1), "sagittal", (2, 1), (16, 12)),
        ((1, 0, 2), "coronal", (2, 0), (16, 12)),
        ((1, 2, 0), "coronal", (0, 2), (12, 16)),
    ],
)
def test_slices_of_a_2d_network_are_those_that_nnunet_cuts(
    write_plans, forward, slices, axes, patch
):
    plans = read_plans(f"{write_plans(d=2, forward=forward)}:2d")
    assert (plans.slices, plans.axes, plans.patch) == (slices, axes, patch)
    # a kernel keeps its first two axes and is turned where the order of its others differs
    turned = axes[0] > axes[1]
    assert kernel_order(axes) == ((0, 1, 3, 2) if turned else (0, 1, 2, 3))


def test_a_configuration_inherits(write_plans):
    file = write_plans()
    plans = json.loads(file.read_text())
    configurations = plans["configurations"]
    configurations["small"] = {"inherits_from": "3d_fullres", "patch_size": [2, 4, 8]}
    configurations["loop"] = {"inherits_from": "loop"}
    configurations["lost"] = {"inherits_from": "nowhere"}
    file.write_text(json.dumps(plans))
    assert read_plans(f"{file}:small").patch == (2, 8, 4)
    assert read_plans(f"{file}:small").network == read_plans(str(file)).network
    for name in ("loop", "lost"):
        with pytest.raises(DataError, match="'inherits_from' leads to"):
            read_plans(f"{file}:{name}")
    with pytest.raises(UsageError, match="no configuration 'smal'; did you mean 'small'"):
        read_plans(f"{file}:smal")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nonlin": "os.system"}, "has nonlin os.system"),
        ({"norm_op": "os.system"}, "layers .* and os.system"),
        ({"conv_op": "torch.nn.Linear"}, "layers torch.nn.Linear"),
        ({"dropout_op": "torch.nn.Dropout3d"}, "has dropout_op"),
        ({"squeeze_excitation": True}, "has squeeze_excitation True"),
        ({"conv_bias": False}, "has conv_bias False"),
        ({"strides": [[1, 1, 1], [2, 2, 2]]}, "'strides' are not 3 numbers for each of 3 levels"),
        ({"features_per_stage": [4, 8]}, "'features_per_stage' is not a number for each"),
        ({"kernel_sizes": [[2, 3, 3]] * 3}, "kernels: 2 is even"),
        ({"features_per_stage": [4, "x", 8]}, "network.channels"),
    ],
)
def test_a_network_that_selfvox_does_not_have_is_refused(write_plans, changes, message):
    with pytest.raises((UsageError, DataError), match=message):
        check_network(change(write_plans(), **changes))


def test_the_class_of_a_network_is_compared_and_never_imported(write_plans, monkeypatch):
    file = write_plans()
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "antigravity.Fly"
    file.write_text(json.dumps(plans))
    with pytest.raises(UsageError, match=r"of the class antigravity\.Fly, and selfvox has"):
        check_network(str(file))


def test_plans_name_their_own_settings_and_dimensions(write_plans):
    file = write_plans()
    with pytest.raises(UsageError, match=r"leave --network\.norm out"):
        check_network({"name": str(file), "norm": "group"})
    with pytest.raises(UsageError, match="is a network of 3D scans, and these are 2D"):
        plan_encoder(str(file), (16, 16), (1.0, 1.0))
    with pytest.raises(DataError, match="no such file"):
        check_network("missing.json")


def test_the_preset_has_fewer_levels_in_small_crops():
    spec = plan_encoder("resenc", (32, 32, 32), ISOTROPIC)
    assert spec["channels"] == [32, 64, 128, 256]
    assert spec["blocks"] == [1, 3, 4, 6]
    assert spec["decoder_blocks"] == 1
    assert plan_encoder(spec, (32, 32, 32), ISOTROPIC) == spec
