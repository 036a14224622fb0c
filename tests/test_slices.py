"""2D networks of slices, from the volumes' store to predictions on the volumes' own grid."""

import nibabel as nib
import numpy as np
import pytest
import torch

import selfvox
from selfvox.data import phantom
from selfvox.data.formats.image import read_image as read_scan
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.preparation.split import read_split
from selfvox.data.sampling.crop_size import SLICE_AXES
from selfvox.errors import UsageError
from selfvox.models.sliding_window import segment_scan
from selfvox.prediction.load_model import load_segmenter
from selfvox.reports.figures import montage
from selfvox.runs.run_folder import read_metrics
from selfvox.runs.weights import read_encoder, read_network

every_axis = pytest.mark.parametrize("name", SLICE_AXES)
SMALL = {"network": {"channels": [4, 8]}, "crop": (16,), "device": "cpu", "precision": "fp32"}


@every_axis
@pytest.mark.parametrize("window", [(8, 8), (16, 8)])
def test_a_whole_volume_is_its_slices_stacked(name, window):
    axis = SLICE_AXES[name]
    torch.manual_seed(0)
    network = torch.nn.Conv2d(2, 3, 3, padding=1)
    image = torch.randn(2, 11, 19, 37)
    expected = [
        segment_scan(network, predictions, window, 0.25) for predictions in image.unbind(1 + axis)
    ]
    prediction = segment_scan(network, image, window, 0.25, axis)
    torch.testing.assert_close(prediction, torch.stack(expected, 1 + axis), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def runs(shapes_store, tmp_path_factory):
    """Encoders of axial slices and of volumes; segmenters from the first and from scratch."""
    folder = tmp_path_factory.mktemp("slices")
    settings = {"task": "rotation", "steps": 2, "batch": 2, **SMALL}
    selfvox.pretrain(
        shapes_store, out=folder / "flat", slices="axial", probe=shapes_store, **settings
    )
    selfvox.pretrain(shapes_store, out=folder / "solid", **settings)
    settings = {"steps": 6, "batch": 4, "labels": 2, "validate_every": 6, **SMALL}
    del settings["network"]
    selfvox.finetune(
        shapes_store, out=folder / "seg", encoder=str(folder / "flat"), slices="axial", **settings
    )
    settings["network"] = SMALL["network"]
    selfvox.finetune(
        shapes_store,
        out=folder / "sagittal",
        encoder="none",
        slices="sagittal",
        learning_rate=1e-2,
        **settings,
    )
    return folder


def test_a_run_of_slices_says_so_and_its_network_is_2d(runs):
    for read, run in ((read_encoder, "flat"), (read_network, "seg")):
        tensors, card = read(runs / run)
        assert (card.slices, card.spatial_dims, len(card.crop)) == ("axial", 2, 2)
        assert card.recipe["spatial_dims"] == 3
        assert {tensor.ndim for tensor in tensors.values()} == {1, 4}
    assert read_encoder(runs / "solid" / "encoder")[1].slices is None


def test_slices_are_pre_trained_measured_and_probed_in_2d(runs):
    last = read_metrics(runs / "flat")[-1]
    assert last["chance"] == 0.25  # rotation has ten answers in 3D
    assert last["health/alignment"] > 0
    assert 0 < last["probe/linear"] <= 1


def test_subjects_are_chosen_and_kept_apart_as_for_volumes(runs, shapes_store):
    full = read_split(shapes_store / "split.json")
    reduced = read_split(runs / "seg" / "split.json")
    assert len(reduced.train) == 2
    assert (reduced.validation, reduced.test) == (full.validation, full.test)
    assert set(reduced.train) < set(full.train)
    subjects = read_encoder(runs / "flat")[1].seen["subjects"]
    assert subjects
    assert not set(subjects) & set(full.test)


@pytest.mark.parametrize("run", ["seg", "sagittal"])
def test_predictions_lie_on_the_scans_grid_and_are_those_of_its_slices(
    runs, run, shapes_store, tmp_path
):
    phantom.write(tmp_path / "scans", "shapes", count=2)
    # turned and mirrored, so that slices of the scan's file are not slices of the prepared volume
    for file in (tmp_path / "scans").rglob("*.nii.gz"):
        scan = nib.load(file)
        turned = nib.Nifti1Image(np.asarray(scan.dataobj)[::-1].transpose(2, 0, 1), None)
        flip = np.eye(4)
        flip[:3, :3] = np.array([[0, -1, 0], [0, 0, 1], [1, 0, 0]])
        flip[0, 3] = scan.shape[0] - 1
        turned.set_sform(scan.affine @ flip, 1)
        nib.save(turned, file)
    paths = selfvox.predict(
        runs / run, tmp_path / "scans", out=tmp_path / "predictions", device="cpu", precision="fp32"
    )
    model = load_segmenter(runs / run)
    axis = {"seg": 2, "sagittal": 0}[run]
    for path in paths:
        file = next((tmp_path / "scans").glob(f"images/{path.name}"))
        scan = nib.load(file)
        label = nib.load(path)
        assert scan.shape == label.shape
        np.testing.assert_allclose(scan.affine, label.affine)
        prepared: PreparedScan = model.recipe.apply(read_scan(file))
        slices = np.moveaxis(prepared.data, 1 + axis, 0)
        predictions = [
            segment_scan(model.network, torch.from_numpy(x.copy()), model.window) for x in slices
        ]
        naive = np.stack([x.argmax(0).numpy() for x in predictions], axis).astype(np.uint8)
        assert np.array_equal(
            np.asarray(label.dataobj), model.recipe.undo(naive, prepared.geometry)
        )
        assert len(np.unique(naive)) > 1


@pytest.mark.parametrize(
    ("encoder", "slices", "message"),
    [
        (
            "flat",
            None,
            r"^encoder: .*flat was pre-trained in 2D, on axial slices, .*; use slices=\"axial\"$",
        ),
        (
            "solid",
            "coronal",
            r"^slices: .*solid was not pre-trained on slices.* pre-train with slices=\"coronal\"$",
        ),
    ],
)
def test_an_encoder_of_other_dimensions_is_refused(
    runs, shapes_store, tmp_path, encoder, slices, message
):
    with pytest.raises(UsageError, match=message):
        selfvox.finetune(
            shapes_store,
            out=tmp_path / "run",
            encoder=str(runs / encoder),
            slices=slices,
            device="cpu",
        )
    assert not (tmp_path / "run").exists()


def test_networks_of_slices_in_several_directions_vote_together(runs, shapes_store, tmp_path):
    phantom.write(tmp_path / "scans", "shapes", count=1)
    settings = {"out": tmp_path / "predictions", "device": "cpu"}
    paths = selfvox.predict(
        runs / "seg", tmp_path / "scans", ensemble=[runs / "sagittal"], **settings
    )
    assert (
        nib.load(paths[0]).shape == nib.load(next((tmp_path / "scans" / "images").iterdir())).shape
    )


def test_passes_over_slices_vote_with_those_of_another_direction(runs, shapes_store, tmp_path):
    phantom.write(tmp_path / "scans", "shapes", count=1)
    settings = {
        "passes": 3,
        "maps": ["percentiles", "variance"],
        "vote": "mean",
        "probabilities": True,
        "device": "cpu",
    }
    mean = {}
    for name, options in (
        ("seg", {}),
        ("sagittal", {}),
        ("both", {"ensemble": [runs / "sagittal"]}),
    ):
        run = runs / ("seg" if name == "both" else name)
        (path,) = selfvox.predict(
            run, tmp_path / "scans", out=tmp_path / name, **options, **settings
        )
        mean[name] = nib.load(next((tmp_path / name).glob("*_probabilities*"))).get_fdata()
        assert np.array_equal(np.asarray(nib.load(path).dataobj), mean[name].argmax(-1))
        assert len([*(tmp_path / name / "maps").iterdir()]) == 7
    second = (
        2 * mean["both"] - mean["seg"]
    )  # its passes are the fourth to the sixth, others than those it makes alone
    assert -1e-5 < second.min() < second.max() < 1 + 1e-5
    np.testing.assert_allclose(second.sum(-1), 1, atol=1e-5)
    assert np.abs(mean["both"] - mean["seg"]).max() > 1e-3


def test_the_next_command_names_the_slices(shapes_store, tmp_path, small, capsys):
    settings = {**small, "crop": (16,), "task": "rotation", "steps": 1, "slices": "coronal"}
    selfvox.pretrain(shapes_store, out=tmp_path / "run", **settings)
    assert (
        f"selfvox finetune LABELLED/ --encoder {tmp_path / 'run'} --slices coronal --out"
        in capsys.readouterr().err
    )


def test_a_slice_is_drawn_as_it_lies_and_a_photograph_as_it_is():
    image = np.zeros((3, 4, 6))
    image[0, 1, 5] = 1  # the second from the left, the most anterior
    image[1] = 100
    drawn = montage(image, is_slice=True)
    assert drawn.shape == (6, 4)  # one channel, with greys of its own
    assert np.argwhere(drawn == drawn.max()).tolist() == [[0, 1]]
    assert drawn.max() == 1
    assert montage(image).shape == (4, 6, 3)


def test_a_volume_s_greys_are_those_of_the_channel_that_is_shown():
    volume = np.stack([np.linspace(0, 1, 512).reshape(8, 8, 8), np.full((8, 8, 8), 1000.0)])
    np.testing.assert_array_equal(montage(volume), montage(volume[:1]))
    assert montage(volume[:1]).std() > 0.2


@every_axis
def test_a_preview_shows_slices(shapes_store, tmp_path, monkeypatch, name):
    shown = []
    monkeypatch.setattr(
        "selfvox.commands.preview.draw_preview", lambda rows, *_, **__: shown.append(rows)
    )
    selfvox.preview(shapes_store, out=tmp_path / "p.png", task="rotation", slices=name, crop=(16,))
    assert {panel.image.ndim for row in shown[0] for panel in row} == {3}
