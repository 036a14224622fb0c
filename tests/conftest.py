"""Shared by several tests: a small store of shapes, runs with random weights, scans."""

import os

# before torch is imported, and for all processes that tests start: processes of several threads
# each wait for one another, which made some tests fifty times as slow on busy cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import pydoc
import socket
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import matplotlib.legend
import nibabel as nib
import numpy as np
import pytest
import torch

import selfvox
from selfvox.data import phantom
from selfvox.data.preparation.normalise import Intensity
from selfvox.data.preparation.recipe import Recipe
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.segmenter import Segmenter
from selfvox.runs.typed_json import write_checked
from selfvox.runs.weights import save_part

CROP = (16, 16, 16)
SMALL = {"network": {"name": "plain", "channels": [4, 8]}, "crop": CROP, "device": "cpu"}


# the tests of `make fast`: of pure functions, files and settings, which train nothing
FAST = ("ops", "settings", "runs", "evaluation", "models", "uncertainty", "data", "test_cli.py")
# each takes 10 to 25 seconds of CPU: passes over scans, DICOM series, synthetic brains, stores
NOT_FAST = {"test_passes.py", "test_maps.py", "test_dicom.py", "test_phantom.py", "preparation"}


def is_fast(path):
    parts = path.relative_to(Path(__file__).parent).parts
    return parts[0] in FAST and NOT_FAST.isdisjoint(parts)


def pytest_collection_modifyitems(items):
    """Mark the tests of the fast rooms as `fast`."""
    for item in items:
        if is_fast(item.path):
            item.add_marker(pytest.mark.fast)


def pytest_ignore_collect(collection_path, config):
    """With `-m fast`, do not even import the other files; None: collect as usual."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return (
        True
        if config.option.markexpr == "fast" and is_test and not is_fast(collection_path)
        else None
    )


@pytest.fixture(scope="session", autouse=True)
def slow_to_place_legends():
    """Each legend takes hours to place, so that matplotlib warns of every legend without `loc`."""
    hours = iter(range(0, 10**9, 3600))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.legend, "time", SimpleNamespace(perf_counter=lambda: next(hours)))
        yield


@pytest.fixture(scope="session")
def shapes_store(tmp_path_factory):
    """Eight prepared volumes of 32 voxels with labels; two subjects to test, two to validate."""
    folder = tmp_path_factory.mktemp("shapes")
    phantom.write(folder / "scans", "shapes", count=8)
    selfvox.prepare(folder / "scans", out=folder / "store", test=2, validation=2, workers=1)
    return folder / "store"


@pytest.fixture
def free_port():
    """A port of this machine that no program listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@pytest.fixture
def change_json():
    """A function that changes keys of a JSON file of selfvox, and renews its checksum."""

    def change(file, **changes):
        write_checked(file, json.loads(file.read_text()) | changes)

    return change


@pytest.fixture
def small():
    """Settings of a network and crops that take milliseconds."""
    return dict(SMALL)


CLASSES = {"0": "background", "1": "organ", "2": "lesion"}


def make_run(
    folder,
    *,
    channel_names=("MRI",),
    spatial_dims=3,
    seed=0,
    classes=CLASSES,
    crop=16,
    regions=None,
    **recipe,
):
    torch.manual_seed(seed)
    kind = (
        Intensity(kind="mri") if spatial_dims == 3 else Intensity(kind="photo", mean=0.5, std=0.25)
    )
    how = Recipe(
        spatial_dims=spatial_dims,
        channel_names=channel_names,
        intensity=(kind,) * len(channel_names),
        **recipe,
    )
    edges = (crop,) * spatial_dims
    spec = plan_encoder(
        {"name": "plain", "channels": (4, 8), "blocks": 1}, edges, (1.0,) * spatial_dims
    )
    network = Segmenter(build_encoder(spec, spatial_dims, len(channel_names)), len(classes))
    card = {
        "network": spec,
        "spatial_dims": spatial_dims,
        "in_channels": len(channel_names),
        "recipe": how.to_dict(),
        "encoder": "from scratch",
        "seed": seed,
        "crop": list(edges),
        "slices": None,
        "head": "full",
        "classes": classes,
        "regions": regions,
        "trained_on": "classes",
        "seen": {"subjects": [], "image_hashes": []},
        "step": 1,
        "validation_dice": None,
    }
    save_part(folder / "network", "network", network, card)
    split = {"train": ["scan_0"], "validation": [], "test": ["scan_1", "scan_2"], "seed": 0}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


def blob(shape, seed=0):
    """A bright ellipsoid off the centre of a dark volume: its foreground box is smaller."""
    rng = np.random.default_rng(seed)
    at = np.indices(shape) / np.array(shape).reshape(-1, *(1,) * len(shape))
    centre = rng.uniform(0.4, 0.6, (len(shape), *(1,) * len(shape)))
    inside = ((at - centre) ** 2).sum(0) < 0.07
    return (np.where(inside, 600 + 400 * rng.random(shape), 0)).astype(np.int16)


def affine(
    spacing=(1.0, 1.2, 2.0), turn=0.0, axes=(0, 1, 2), signs=(1, 1, 1), origin=(-31, 17.5, 4)
):
    """Voxel -> mm with the axes permuted, flipped and turned about z by `turn` radians."""
    matrix = np.eye(4)
    rotation = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    matrix[:3, :3] = (rotation * np.array(signs))[:, axes] * np.array(spacing)
    matrix[:3, 3] = origin
    return matrix


def write_scan(path, data, matrix=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    scan = nib.Nifti1Image(data, affine() if matrix is None else matrix)
    scan.header["descrip"] = b"DOE^JANE"
    nib.save(scan, path)
    return path


def content(folder):
    """The bytes of predictions; without log, settings, and the time and the costs of the work."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    if "cases.jsonl" in files:
        records = [json.loads(line) for line in files["cases.jsonl"].splitlines()]
        files["cases.jsonl"] = [record | {"work": None, "checksum": None} for record in records]
    files.pop("log.txt", None)
    files.pop("settings.yaml", None)
    return files


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def scans(tmp_path):
    for number in range(3):
        write_scan(tmp_path / "scans" / f"scan_{number}.nii.gz", blob((20, 17, 12), number))
    return tmp_path / "scans"


# what reading a file costs: bytes read and memory, not seconds


class _RecordingFile:
    """A file that records how many bytes each `read` returned."""

    def __init__(self, file, sizes):
        self._file = file
        self._sizes = sizes

    def read(self, size=-1):
        content = self._file.read(size)
        self._sizes.append(len(content))
        return content

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def record_reads(monkeypatch):
    """A function of a module: the list of the sizes of all reads by its `open_regular`."""

    def record(module):
        sizes = []
        open_regular = module.open_regular
        monkeypatch.setattr(
            module,
            "open_regular",
            lambda *arguments: _RecordingFile(open_regular(*arguments), sizes),
        )
        return sizes

    return record


@pytest.fixture
def peak_bytes():
    """A function of an action: the most memory that it allocated at a time."""

    def measure(action):
        tracemalloc.start()
        try:
            action()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


@pytest.fixture
def write_plans(tmp_path):
    """A function that writes plans of nnU-Net: thick slices along x, which nnU-Net puts first."""

    def write(name="plain", d=3, channels=(4, 6, 8), forward=(2, 0, 1), **changes):
        is_plain = name == "plain"
        blocks = {
            "n_conv_per_stage" if is_plain else "n_blocks_per_stage": [2, 1, 2],
            "n_conv_per_stage_decoder": [2, 1],
        }
        conv = f"torch.nn.modules.conv.Conv{d}d"
        norm = f"torch.nn.modules.instancenorm.InstanceNorm{d}d"
        kernels = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
        strides = [[1, 1, 1], [1, 2, 2], [2, 2, 4]]
        network = "PlainConvUNet" if is_plain else "ResidualEncoderUNet"
        architecture = {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": list(channels),
                "conv_op": conv,
                "kernel_sizes": [level[-d:] for level in kernels],
                "strides": [level[-d:] for level in strides],
                **blocks,
                "conv_bias": True,
                "norm_op": norm,
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
        configuration = {
            "patch_size": [10, 12, 16][-d:],
            "spacing": [3.0, 1.0, 0.5][-d:],
            "normalization_schemes": ["ZScoreNormalization"],
            "architecture": architecture,
            **changes,
        }
        plans = {
            "dataset_name": "Dataset999_Test",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": list(forward),
            "transpose_backward": [forward.index(axis) for axis in range(3)],
            "configurations": {"2d" if d == 2 else "3d_fullres": configuration},
            "foreground_intensity_properties_per_channel": {
                "0": {
                    "mean": 40.0,
                    "std": 20.0,
                    "percentile_00_5": -90.0,
                    "percentile_99_5": 210.0,
                }
            },
        }
        file = tmp_path / "nnUNetPlans.json"
        file.write_text(json.dumps(plans))
        return file

    return write


def nnunet_network(file, in_channels, classes, configuration="3d_fullres"):
    """The network of plans, made by nnU-Net's own classes as nnU-Net makes it."""
    architecture = json.loads(file.read_text())["configurations"][configuration]["architecture"]
    kwargs = dict(architecture["arch_kwargs"])
    for key in architecture["_kw_requires_import"]:
        kwargs[key] = kwargs[key] and pydoc.locate(kwargs[key])
    network = pydoc.locate(architecture["network_class_name"])
    return network(in_channels, num_classes=classes, deep_supervision=False, **kwargs)


def as_nnunet_reads(image, forward):
    """An image (batch, channel, x, y, z) as nnU-Net has it: z, y, x, and then transposed."""
    turned = image.permute(0, 1, 4, 3, 2)
    return turned.permute(0, 1, *(2 + axis for axis in forward))
