"""Building encoders: what the settings say is built, and what is impossible is refused by name."""

import json
import sys
from types import SimpleNamespace

import pytest

from selfvox.errors import UsageError, WeightsError
from selfvox.models.build import build_encoder, check_network, encoder_names, plan_encoder
from selfvox.runs.weights import save_part

ISOTROPIC = (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "network", ["residual", {"name": "plain", "channels": "4,8", "norm": "group"}]
)
def test_a_plan_is_plain_values_and_planning_it_again_changes_nothing(network):
    spec = plan_encoder(network, (16, 16, 16), ISOTROPIC)
    assert plan_encoder(json.loads(json.dumps(spec)), (64, 64, 64), ISOTROPIC) == spec


@pytest.fixture
def run(tmp_path):
    """A pre-training run with few levels: its task showed the encoder small views."""
    spec = plan_encoder({"name": "residual", "channels": [2, 4, 8, 16]}, (16, 16, 16), ISOTROPIC)
    card = {
        "network": spec,
        "spatial_dims": 3,
        "in_channels": 1,
        "crop": [16, 16, 16],
        "slices": None,
        "spacing_mm": [1.0, 1.0, 1.0],
        "recipe": {},
        "task": {"name": "cpc"},
        "weights": None,
        "seen": {"subjects": [], "image_hashes": []},
        "steps": 1,
        "seed": 0,
    }
    save_part(tmp_path / "run" / "encoder", "encoder", build_encoder(spec, 3, 1), card)
    return tmp_path / "run"


def test_a_network_that_names_a_run_is_that_of_its_encoder_whatever_the_crop(run):
    spec = plan_encoder(str(run), (64, 64, 64), ISOTROPIC)
    assert spec == plan_encoder(
        {"name": "residual", "channels": [2, 4, 8, 16]}, (16, 16, 16), ISOTROPIC
    )
    assert len(spec["channels"]) == 3
    assert spec == plan_encoder({"name": str(run / "encoder")}, (32, 32, 32), ISOTROPIC)
    with pytest.raises(
        UsageError, match=r"^network: .*run is a network of 3D scans, and these are 2D"
    ):
        plan_encoder(str(run), (64, 64), ISOTROPIC[:2])
    with pytest.raises(
        UsageError, match=r"^network: .*run names its own settings; leave --network.norm out"
    ):
        plan_encoder({"name": str(run), "norm": "batch"}, (64, 64, 64), ISOTROPIC)
    with pytest.raises(WeightsError, match=r"has no encoder\.json"):
        plan_encoder(str(run.parent), (64, 64, 64), ISOTROPIC)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("plian", "network: .*did you mean 'plain'"),
        ("", "network: no encoder is called ''"),
        ("mona:ResNetFeatures", "network: "),
        ({"channels": [16]}, r"network\.channels"),
        ({"channels": [16, 0]}, r"network\.channels"),
        ({"blocks": 0}, r"network\.blocks"),
        ({"norm": "layer"}, r"network\.norm"),
        ({"depth": 3}, r"network\.depth"),
        ({"channels": [4, 8], "strides": [[1, 1, 1]]}, r"network\.strides"),
        ({"channels": [4, 8], "strides": [[1, 1], [2, 2]]}, r"network\.strides"),
        ("monai:ResNetFeature", "did you mean 'ResNetFeatures'"),
        (
            "monai:ResNetFeatures",
            "network: monai:ResNetFeatures cannot be made with these settings .*model_name",
        ),
        ({"name": "monai:BasicUNet", "features": [2] * 6}, "no list of feature maps"),
        ("timm:resnet18", "2D network"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(network, message):
    with pytest.raises(UsageError, match=message) as refusal:
        build_encoder(plan_encoder(network, (16, 16, 16), ISOTROPIC), 3, 1)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("mona:ResNetFeatures", "no encoder is called 'mona:ResNetFeatures'; known: monai:NAME"),
        ("monai:resnet10", "MONAI has no network 'resnet10'"),
        ("timm:resnet1O", "timm has no network 'resnet1O'.*did you mean 'resnet10'"),
        (
            {"name": "monai:ResNetFeatures", "pretrained": True},
            r"network\.pretrained: .*leave it out",
        ),
        ({"name": "timm:resnet10", "pretrained": "no"}, r"network\.pretrained: .*leave it out"),
    ],
)
def test_an_unknown_network_is_refused_by_its_name_alone(network, message, monkeypatch):
    names = ["resnet10"]
    timm = SimpleNamespace(
        is_model=names.__contains__, list_models=lambda: names, create_model=dict
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    with pytest.raises(UsageError, match=message):
        check_network(network)
    check_network({"name": "monai:ResNetFeatures", "pretrained": False})
    check_network("timm:resnet10")


def test_the_names_offered_are_those_of_the_families():
    assert [name.partition(":")[0] for name in encoder_names()] == [
        "plain",
        "residual",
        "monai",
        "timm",
        "resenc",
    ]
