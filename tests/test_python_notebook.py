"""Networks loaded in Python predict arrays, files and nibabel images as the command line does."""

import inspect
import json
import typing
from collections.abc import Sequence

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

import selfvox
from selfvox.data.formats.image import read_image
from selfvox.errors import DataError, SelfvoxError, UsageError, WeightsError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.notebook import LoadedClassifier, LoadedSegmenter
from selfvox.notebook.options import SegmentationOptions
from selfvox.runs.weights import save_part
from selfvox.settings.verbs import Predict

from .conftest import affine, blob, make_run, write_scan

CPU = {"device": "cpu", "precision": "fp32"}


def load_label(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "scan.nii.gz", blob((20, 17, 12)), affine(axes=(1, 2, 0)))


def make_encoder_run(folder, card=(), *, spatial_dims=3, name="plain"):
    """A pre-training run with random weights."""
    torch.manual_seed(0)
    crop = (16,) * spatial_dims
    spec = plan_encoder(
        {"name": name, "channels": (4, 8), "blocks": 1}, crop, (1.0,) * spatial_dims
    )
    encoder = build_encoder(spec, spatial_dims, 1)
    segmenter = make_run(folder / "recipe", spatial_dims=3)
    recipe = selfvox.load_segmenter(segmenter, **CPU).models[0].recipe.to_dict()
    facts = {"network": spec, "spatial_dims": spatial_dims, "in_channels": 1, "recipe": recipe}
    facts |= {"crop": list(crop), "spacing_mm": [1.0] * spatial_dims, "slices": None}
    facts |= {"seen": {"subjects": [], "image_hashes": []}, "steps": 1, "seed": 0}
    facts |= {"task": {"name": "simclr"}, "weights": None}
    save_part(folder / "run" / "encoder", "encoder", encoder, facts | dict(card))
    return folder / "run", encoder


@pytest.mark.parametrize("recipe", [{}, {"spacing_mm": (1.5, 1.5, 1.5)}, {"size": (16, 16, 16)}])
def test_a_path_an_array_and_an_image_predict_what_the_command_line_writes(tmp_path, scan, recipe):
    run = make_run(tmp_path / "run", **recipe)
    (file,) = selfvox.predict(run, scan, out=tmp_path / "out", **CPU)
    segmenter = selfvox.load_segmenter(run, **CPU)
    image = nib.load(scan)
    array = np.asarray(image.dataobj)
    results = [
        segmenter.predict(scan),
        segmenter.predict(str(scan)),
        segmenter.predict(image),
        segmenter.predict(array, affine=image.affine),
        segmenter.predict(array[None], affine=image.affine),
    ]
    for result in results:
        np.testing.assert_array_equal(result.label, load_label(file))
        assert result.label.shape == array.shape
        assert result.probabilities.shape == (3, *array.shape)
        np.testing.assert_allclose(result.affine, image.affine)
        np.testing.assert_allclose(result.spacing, image.header.get_zooms(), rtol=1e-6)
        assert (result.trust, result.volumes, dict(result.maps)) == (None, {}, {})


def test_passes_maps_and_review_are_those_of_the_command_line(tmp_path, scan):
    runs = [make_run(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    options = {"passes": 4, "maps": ("entropy",), "vote": "mean", "seed": 3}
    (file,) = selfvox.predict(
        runs[0], scan, out=tmp_path / "o", ensemble=runs[1:], **options, **CPU
    )
    segmenter = selfvox.load_segmenter(runs, **CPU)
    result = segmenter.predict(scan, **options)
    np.testing.assert_array_equal(result.label, load_label(file))
    written = nib.load(tmp_path / "o" / "maps" / "scan_entropy.nii.gz").get_fdata()
    # the file has 16 bits for the whole range
    step = written.max() / 65535
    np.testing.assert_allclose(result.maps["entropy"], written, rtol=0, atol=step)
    header, row = [
        line.split(",") for line in (tmp_path / "o" / "review.csv").read_text().splitlines()
    ]
    values = dict(zip(header, row, strict=True))
    assert result.trust == pytest.approx(float(values["trust"]))
    assert list(result.volumes) == ["organ", "lesion"]
    for name, (low, volume, high) in result.volumes.items():
        columns = (f"{name} spread low", f"{name} ml", f"{name} spread high")
        assert (low, volume, high) == pytest.approx([float(values[key]) for key in columns])


def test_a_result_saves_the_file_of_the_command_line(tmp_path, scan):
    run = make_run(tmp_path / "run")
    (file,) = selfvox.predict(run, scan, out=tmp_path / "out", **CPU)
    result = selfvox.load_segmenter(run, **CPU).predict(scan)
    saved = result.save(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(load_label(saved), load_label(file))
    np.testing.assert_array_equal(nib.load(saved).affine, nib.load(file).affine)
    np.testing.assert_array_equal(result.to_nibabel().affine, nib.load(file).affine)
    np.testing.assert_array_equal(np.asarray(result.to_nibabel().dataobj), result.label)


def test_windows_overlap_as_the_command_line_says(tmp_path):
    run = make_run(tmp_path / "run")
    scan = write_scan(tmp_path / "large.nii.gz", blob((60, 50, 40)))
    options = {"overlap": 0.1, "probabilities": True}
    selfvox.predict(run, scan, out=tmp_path / "out", **options, **CPU)
    written = nib.load(tmp_path / "out" / "large_probabilities.nii.gz").get_fdata()
    result = selfvox.load_segmenter(run, **CPU).predict(scan, overlap=0.1)
    np.testing.assert_array_equal(result.probabilities, np.moveaxis(written, -1, 0))


def test_a_spacing_is_an_affine_without_rotation(tmp_path):
    run = make_run(tmp_path / "run", spacing_mm=(1.5, 1.5, 1.5))
    segmenter = selfvox.load_segmenter(run, **CPU)
    array = blob((20, 17, 12))
    by_spacing = segmenter.predict(array, spacing=(1, 1.2, 2))
    by_affine = segmenter.predict(array, affine=np.diag([1, 1.2, 2, 1]))
    np.testing.assert_array_equal(by_spacing.probabilities, by_affine.probabilities)
    coarser = segmenter.predict(array, (2, 2, 2))
    assert not np.array_equal(by_spacing.probabilities, coarser.probabilities)


def test_an_array_without_spacing_is_refused_where_the_spacing_counts(tmp_path):
    array = blob((20, 17, 12))
    resampling = selfvox.load_segmenter(make_run(tmp_path / "a", spacing_mm=(1, 1, 1)), **CPU)
    with pytest.raises(UsageError, match=r"give it in mm, such as spacing=\(1, 1, 1\)$"):
        resampling.predict(array)
    plain = selfvox.load_segmenter(make_run(tmp_path / "b"), **CPU)
    plain.predict(array)  # the scan's own voxels
    with pytest.raises(UsageError, match="volumes are in ml"):
        plain.predict(array, passes=2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"spacing": (1, 1)}, UsageError, "should be 3 numbers above 0"),
        ({"spacing": (1, 0, 1)}, UsageError, "should be 3 numbers above 0"),
        ({"affine": np.eye(4)}, UsageError, "^spacing: the affine has it already; give one"),
        ({"scan": np.zeros((3, 4))}, DataError, r"shape \(3, 4\): the run takes 3D scans of 1"),
        ({"scan": np.zeros((8, 8, 8))}, DataError, "same value everywhere"),
        ({"scan": np.full((8, 8, 8), np.nan)}, DataError, "NaN"),
        ({"passes": 0}, UsageError, "^passes: "),
        ({"vote": "borda"}, UsageError, "give passes=20"),
        ({"maps": ("entropi",), "passes": 2}, UsageError, "did you mean 'entropy'"),
        ({"pases": 2}, UsageError, "^pases: no such setting; did you mean 'passes'"),
        ({"subset": "test"}, UsageError, "^subset: no such setting"),
    ],
)
def test_what_does_not_fit_is_refused_in_words_of_python(tmp_path, arguments, error, message):
    segmenter = selfvox.load_segmenter(make_run(tmp_path / "run"), **CPU)
    scan = arguments.pop("scan", blob((12, 12, 12)))
    with pytest.raises(error, match=message) as refusal:
        segmenter.predict(scan, **({"spacing": (1, 1, 1)} | arguments))
    assert "--" not in str(refusal.value)


def test_a_scan_with_a_spacing_of_its_own_takes_no_other(tmp_path, scan):
    segmenter = selfvox.load_segmenter(make_run(tmp_path / "run"), **CPU)
    with pytest.raises(UsageError, match="the scan has its own; leave it out"):
        segmenter.predict(scan, (1, 1, 1))
    write_scan(tmp_path / "two" / "a.nii.gz", blob((12, 12, 12)))
    write_scan(tmp_path / "two" / "b.nii.gz", blob((12, 12, 12), 1))
    with pytest.raises(DataError, match="has 2 scans; pass one"):
        segmenter.predict(tmp_path / "two")


FOR_ALL = [
    "force",
    "mirror",
    "passes",
    "vote",
    "vote_weights",
    "encoder_dropout",
    "decoder_dropout",
]
FOR_ALL += ["dropout_kind", "seed"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [(LoadedSegmenter, [*FOR_ALL, "maps", "union_class", "overlap"]), (LoadedClassifier, FOR_ALL)],
)
def test_the_options_of_predict_have_the_defaults_of_the_command_line(kind, options):
    parameters = inspect.signature(kind.predict).parameters
    assert list(parameters) == ["self", "scan", "spacing", "affine", *options]
    for name in options:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default == getattr(Predict, name), name


def test_a_method_takes_the_types_of_the_command_line():
    """What a notebook may pass is what the verb takes, or a sequence where that has a tuple."""
    hints = typing.get_type_hints(SegmentationOptions)
    verb = typing.get_type_hints(Predict)
    assert hints.pop("maps") == Sequence[str]
    assert hints.pop("vote_weights") == Sequence[float] | None
    for name, hint in hints.items():
        assert hint == verb[name], name


def test_an_encoder_embeds_a_scan_as_its_network_does(tmp_path, scan):
    run, network = make_encoder_run(tmp_path)
    encoder = selfvox.load_encoder(run, **CPU)
    prepared = encoder.recipe.apply(read_image(scan)).data
    stride = encoder.network.strides[-1]
    rooms = [-edge % step for edge, step in zip(prepared.shape[1:], stride, strict=True)]
    widths = [(0, 0), *((room - room // 2, room // 2) for room in rooms)]
    mirrored = torch.from_numpy(np.pad(prepared, widths, mode="symmetric"))
    with torch.no_grad():
        expected = network.eval()(mirrored[None])
    levels = encoder.maps(scan)
    for level, map_of_network in zip(levels, expected, strict=True):
        np.testing.assert_allclose(level, map_of_network[0], atol=1e-5)
    np.testing.assert_array_equal(encoder.embed(scan), levels[-1].max((1, 2, 3)))


def test_the_weights_of_an_encoder_load_strictly_into_its_librarys_own_class(tmp_path):
    run, network = make_encoder_run(tmp_path)
    module = selfvox.load_encoder(run, **CPU).module
    fresh = type(network.net)(
        1, 2, [4, 8], nn.Conv3d, 3, [[1] * 3, [2] * 3], 1,
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, return_skips=True,
    )  # fmt: skip
    fresh.load_state_dict(module.state_dict(), strict=True)
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        for level, expected in zip(fresh(image), network(image), strict=True):
            torch.testing.assert_close(level, expected)


def test_an_encoder_of_slices_embeds_each_slice(tmp_path, scan):
    run, _ = make_encoder_run(tmp_path, {"slices": "axial"}, spatial_dims=2)
    encoder = selfvox.load_encoder(run, **CPU)
    embeddings = encoder.embed(scan)
    slices = encoder.recipe.apply(read_image(scan)).data.shape[3]
    assert embeddings.shape == (slices, 8)


def test_the_encoder_of_a_fine_tuning_run_is_loaded_too(tmp_path, scan):
    run = make_run(tmp_path / "run")
    segmenter = selfvox.load_segmenter(run, **CPU)
    encoder = selfvox.load_encoder(run, **CPU)
    for weight, expected in zip(
        encoder.network.parameters(), segmenter.network.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(weight, expected)


class TwoMaps(nn.Module):
    """A network of one's own: two maps."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv3d(1, 4, 3, padding=1)
        self.coarse = nn.Conv3d(4, 8, 3, stride=2, padding=1)

    def forward(self, x):
        fine = self.fine(x)
        return [fine, self.coarse(fine)]


def test_an_encoder_of_ones_own_class_needs_an_object_of_it(tmp_path, scan):
    torch.manual_seed(1)
    module = TwoMaps()
    spec = plan_encoder(module, (16,) * 3, (1.0,) * 3)
    run, _ = make_encoder_run(tmp_path, {"network": spec})
    card = json.loads((run / "encoder" / "encoder.json").read_text())
    save_part(run / "encoder", "encoder", build_encoder(module, 3, 1), card)
    with pytest.raises(UsageError, match=r"Python class .*:TwoMaps; load it in Python.*network="):
        selfvox.load_encoder(run, **CPU)
    encoder = selfvox.load_encoder(run, network=TwoMaps(), **CPU)
    torch.testing.assert_close(encoder.module.state_dict(), module.state_dict())
    assert encoder.embed(scan).shape == (8,)


@pytest.mark.parametrize("load", ["load_encoder", "load_segmenter", "load_classifier"])
def test_a_folder_that_is_no_run_is_refused(load, tmp_path):
    with pytest.raises((WeightsError, SelfvoxError)) as refusal:
        getattr(selfvox, load)(tmp_path, **CPU)
    assert "--" not in str(refusal.value)
