"""Plug-ins: tasks and encoders of an installed package, as its users meet them."""

import importlib
import json
import sys

import pytest
import torch

import selfvox
from selfvox import plugins, tasks, testing
from selfvox.cli import main
from selfvox.data import phantom
from selfvox.errors import UsageError
from selfvox.joint import Joint
from selfvox.models.build import build_encoder, check_network, encoder_names, plan_encoder
from selfvox.runs.run_folder import read_metrics

TASK = '''"""Invert: was the image inverted?"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from selfvox.models.answer_head import answer_layer, answer_outcome
from selfvox.pretext import Panel, PretextTask


@dataclass(frozen=True, kw_only=True)
class Inversion(PretextTask):
    """Predict whether the image was inverted. Good for a test."""

    offset: Annotated[float, "added to inverted images"] = 0.0

    def head(self, encoder):
        return answer_layer(encoder.width, 2)

    def make_batch(self, images, rng, scan=None):
        answer = torch.randint(2, (len(images),), generator=rng).to(images.device)
        inverted = answer.bool().view(-1, *(1,) * (images.ndim - 1))
        return {"images": torch.where(inverted, self.offset - images, images), "answer": answer}

    def loss(self, encoder, head, batch):
        return answer_outcome(head(encoder.embed(batch["images"])), batch["answer"])

    def preview_panels(self, images, batch):
        return [
            [Panel("scan", image), Panel(f"answer {answer}", shown)]
            for image, answer, shown in zip(images, batch["answer"], batch["images"])
        ]
'''
ENCODER = '''"""Two convolutions."""

from torch import nn


class Maps(nn.Module):
    def __init__(self, spatial_dims, in_channels, width):
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.fine = conv(in_channels, width, 3, padding=1)
        self.coarse = conv(width, 2 * width, 3, stride=2, padding=1)

    def forward(self, x):
        fine = self.fine(x)
        return [fine, self.coarse(fine.relu())]


def make(spatial_dims, in_channels, width=4):
    return Maps(spatial_dims, in_channels, width)
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package with entry points and modules on the path, as pip would install it."""

    def install_package(name, entry_points, modules=(), version="1.5"):
        site = tmp_path / f"site_{name}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        for file, text in dict(modules).items():
            path = site / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()

    yield install_package
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def installed(install):
    install(
        "voxel-games",
        "[selfvox.tasks]\ninvert = voxel_games.tasks:Inversion\n"
        "[selfvox.encoders]\ntwo-maps = voxel_games.maps:make\n",
        {"voxel_games/tasks.py": TASK, "voxel_games/maps.py": ENCODER},
    )


PLUGIN = {"package": "voxel-games", "version": "1.5"}


def test_an_installed_task_is_listed_with_its_question_and_options(installed, capsys):
    assert tasks.task_names() == sorted([*tasks._built_in_names(), "invert"])
    assert selfvox.info()["tasks"]["invert"] == "Invert: was the image inverted?"
    about = selfvox.info("tasks")["invert"]
    assert about["options"] == {"offset": {"default": 0.0, "meaning": "added to inverted images"}}
    assert about["voxels"] == 1
    capsys.readouterr()
    assert main(["pretrain", "--task", "invert", "--help"]) == 0
    assert "--task.offset X" in capsys.readouterr().out


def test_an_installed_task_and_encoder_are_previewed_and_pretrain(installed, tmp_path):
    phantom.write(tmp_path / "scans", kind="shapes", count=2)
    scans = tmp_path / "scans"
    crop = (16, 16, 16)
    picture = selfvox.preview(scans, out=tmp_path / "p.png", task="invert", count=1, crop=crop)
    assert picture.stat().st_size > 1000
    run = selfvox.pretrain(
        scans,
        out=tmp_path / "run",
        task={"name": "invert", "offset": 0.5},
        network={"name": "two-maps", "width": 6},
        steps=2,
        batch=2,
        crop=crop,
        device="cpu",
    )
    assert read_metrics(run)[-1]["chance"] == 0.5
    card = json.loads((run / "encoder" / "encoder.json").read_text())
    assert card["task"] == {"name": "invert", "offset": 0.5, "plugin": PLUGIN}
    assert card["network"] == {"name": "two-maps", "width": 6, "plugin": PLUGIN}
    tuned = selfvox.finetune(
        run / "store", out=tmp_path / "tuned", encoder=str(run), steps=1, batch=2, crop=crop,
        device="cpu",
    )  # fmt: skip
    assert (tuned / "network" / "weights.safetensors").exists()


def test_a_task_is_called_by_its_entry_point_and_alone_among_others(installed):
    task = tasks.find_task("invert")()
    assert type(task).__name__ == "Inversion"
    assert task.name == "invert"
    joint = tasks.task_from_setting({"name": "rotation+invert", "invert.offset": 2})
    setting = tasks.task_to_setting(joint)
    assert setting["invert.plugin"] == PLUGIN
    assert setting["invert.offset"] == 2
    assert not any(key.endswith("plugin") for key in setting if key.startswith("rotation"))
    assert tasks.task_from_setting(setting, joint.weights) == joint


def test_an_installed_task_and_encoder_satisfy_the_contract(installed):
    testing.check_task(tasks.find_task("invert")())
    make = plugins.find_plugin(plugins.ENCODERS, "two-maps", ()).load()
    testing.check_encoder(make)


def test_settings_of_an_installed_task_are_read_back(installed):
    task = tasks.task_from_setting({"name": "invert", "offset": 3})
    assert tasks.task_from_setting(tasks.task_to_setting(task)) == task
    assert "plugin" not in tasks.task_to_setting(tasks.task_from_setting("rotation"))


@pytest.mark.parametrize("name", ["invert", "rotation+invert"])
def test_a_run_of_a_task_that_is_not_installed_names_the_package(name):
    key = "invert.plugin" if "+" in name else "plugin"
    with pytest.raises(
        UsageError, match=r"^task: 'invert' is of .* pip install voxel-games==1\.5$"
    ):
        tasks.task_from_setting({"name": name, key: PLUGIN})


def test_a_run_of_an_encoder_that_is_not_installed_names_the_package():
    spec = {"name": "two-maps", "width": 6, "plugin": PLUGIN}
    with pytest.raises(UsageError, match=r"^network: 'two-maps' .* pip install voxel-games==1\.5$"):
        build_encoder(spec, 3, 1)


@pytest.mark.parametrize(
    "recorded",
    [None, 3, {}, {"package": "a\nb", "version": "1"}, {"package": "a", "version": "1 b"}],
)
def test_a_card_that_names_no_package_is_refused_as_any_unknown_name(recorded):
    with pytest.raises(UsageError, match=r"no pretext task is called 'invert'") as refusal:
        tasks.task_from_setting({"name": "invert", "plugin": recorded})
    assert "\n" not in str(refusal.value)


def test_a_built_in_name_wins_over_a_package(install):
    install(
        "taker",
        "[selfvox.tasks]\nrotation = taker:Never\n[selfvox.encoders]\nplain = taker:never\n",
    )
    assert tasks.find_task("rotation").__module__ == "selfvox.tasks.rotation"
    assert tasks.task_names().count("rotation") == 1
    assert type(build_encoder(plan_encoder("plain", (16,) * 3, (1,) * 3), 3, 1)).__name__ == (
        "UNetEncoder"
    )
    assert encoder_names().count("plain") == 1


def test_a_name_of_two_packages_is_refused_with_both(installed, install):
    install(
        "voxel-toys",
        "[selfvox.tasks]\ninvert = voxel_toys:Inversion\n"
        "[selfvox.encoders]\ntwo-maps = voxel_toys:m\n",
    )
    with pytest.raises(UsageError, match=r"^task: 'invert' .* voxel-games and voxel-toys; uninst"):
        tasks.task_from_setting("invert")
    with pytest.raises(UsageError, match=r"^network: 'two-maps' .* voxel-games and voxel-toys; un"):
        check_network("two-maps")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise RuntimeError('no licence\\nat all')", r"cannot be imported \(no licence\); repair"),
        ("Broken = 3", "is not a subclass of selfvox.pretext.PretextTask; repair or uninstall"),
        ("import absent_module_of_nobody", r"cannot be imported \(No module named 'absent_module"),
    ],
)
def test_a_broken_package_is_named_and_the_other_tasks_work(install, module, reason):
    install(
        "broken-games",
        "[selfvox.tasks]\nbroken = broken_games:Broken\n",
        {"broken_games.py": module},
    )
    with pytest.raises(UsageError, match=f"^task: 'broken' of the package broken-games.*{reason}"):
        tasks.task_from_setting("broken")
    assert tasks.task_from_setting("rotation").name == "rotation"


def test_entry_points_that_no_option_could_spell_are_left_out(install):
    install("odd", "[selfvox.tasks]\na+b = odd:A\nc.d = odd:C\n[selfvox.encoders]\nx:y = odd:x\n")
    assert tasks.task_names() == sorted(tasks._built_in_names())
    assert encoder_names()[-1] == "resenc"


def test_an_encoder_of_a_package_is_offered_planned_and_built(installed):
    assert encoder_names()[-1] == "two-maps"
    spec = plan_encoder({"name": "two-maps", "width": 3}, (16, 16), (1.0, 1.0))
    assert spec == {"name": "two-maps", "width": 3, "plugin": PLUGIN}
    assert plan_encoder(spec, (16, 16), (1.0, 1.0)) == spec
    encoder = build_encoder(spec, 2, 1)
    assert encoder.channels == (3, 6)
    assert encoder.strides == ((1, 1), (2, 2))
    with pytest.raises(UsageError, match=r"^network: two-maps cannot be made .*'depth'"):
        build_encoder({**spec, "depth": 3}, 2, 1)


def test_a_package_whose_encoder_is_no_module_is_named(install):
    install(
        "half", "[selfvox.encoders]\nhalf = half:make\n", {"half.py": "def make(d, c): return d"}
    )
    with pytest.raises(
        UsageError, match=r"half of the package half makes a int, not a torch module"
    ):
        build_encoder({"name": "half"}, 2, 1)


def test_a_task_passed_as_an_object_is_used_as_it_is(installed):
    task = tasks.find_task("invert")(offset=4)
    assert tasks.task_from_setting(task) is task
    joint = Joint(tasks=(task,), weights=(2.0,))
    assert tasks.task_from_setting(joint) is joint
    with pytest.raises(UsageError, match=r"^weights: belong to the Joint task"):
        tasks.task_from_setting(joint, (1.0,))


def test_a_class_without_a_name_is_recorded_honestly_and_not_read_back(tmp_path, monkeypatch):
    (tmp_path / "notebook_cell.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    task = importlib.import_module("notebook_cell").Inversion(offset=1)
    del sys.modules["notebook_cell"]
    setting = tasks.task_to_setting(task)
    assert setting == {"name": "notebook_cell:Inversion", "offset": 1}
    assert task.name == "Inversion"
    with pytest.raises(UsageError, match="class that was passed to Python as an object"):
        tasks.task_from_setting(setting)


def test_a_module_is_an_encoder_with_the_weights_it_has(installed):
    plugin = plugins.find_plugin(plugins.ENCODERS, "two-maps", ())
    module = plugin.load()(3, 1)
    check_network(module)
    assert plan_encoder(module, (16,) * 3, (1.0,) * 3) == {"name": "voxel_games.maps:Maps"}
    encoder = build_encoder(module, 3, 1)
    assert encoder.net is module
    assert build_encoder(encoder, 3, 1) is encoder
    x = torch.randn(2, 1, 8, 8, 8)
    assert all(torch.equal(a, b) for a, b in zip(encoder(x), module(x), strict=True))
    with pytest.raises(
        UsageError, match="takes 3D images of 1 channels, and the scans are 2D of 1"
    ):
        build_encoder(encoder, 2, 1)
    with pytest.raises(
        UsageError, match=r"Maps does not take an image of shape \(1, 2, 64, 64, 64\)"
    ):
        build_encoder(module, 3, 2)
    with pytest.raises(UsageError, match="class that was passed to Python as an object"):
        build_encoder({"name": "voxel_games.maps:Maps"}, 3, 1)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_a_module_leaves_its_mode_and_its_statistics(training):
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))

    class Maps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return [self.net(x)]

    module = Maps().train(training)
    build_encoder(module, 2, 1)
    assert module.training is training
    assert net[1].training is training
    assert int(net[1].num_batches_tracked) == 0
