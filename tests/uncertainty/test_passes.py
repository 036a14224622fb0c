"""A pass is one sub-network for the whole scan, whatever is computed together with it."""

import csv
import json
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from selfvox.commands.predict import predict
from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.segmenter import Segmenter
from selfvox.models.sliding_window import segment_scan
from selfvox.settings.verbs import Predict
from selfvox.uncertainty import passes as module
from selfvox.uncertainty.mc_dropout import Dropout, is_activation
from selfvox.uncertainty.passes import SubNetworks, run_passes

from ..conftest import blob, content, make_run, write_scan

WINDOW = (16, 16, 16)
KINDS = pytest.mark.parametrize("kind", ["channel", "element"])


def network(name="plain", norm="instance", d=3, **options):
    torch.manual_seed(0)
    options = options or {"channels": (4, 8), "blocks": 1, "norm": norm}
    spec = plan_encoder({"name": name, **options}, (16,) * d, (1.0,) * d)
    return Segmenter(build_encoder(spec, d, 1), 3, norm).eval()


def volume(shape=(40, 13, 27), seed=0):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def swept(net, dropout, image, window=WINDOW, passes=range(5), slice_axis=None):
    """Probabilities (pass, class, *space), each voxel written once."""
    probabilities = torch.full((len(passes), net.classes, *image.shape[1:]), torch.nan)

    def take(number, space, planes):
        index = (list(passes).index(number), slice(None), *space)
        assert probabilities[index].isnan().all()
        probabilities[index] = planes

    with SubNetworks(net, dropout) as networks:
        run_passes(networks, image, window, 0.5, passes, take, slice_axis)
    return probabilities


@KINDS
@pytest.mark.parametrize("rates", [(0.3, 0.0), (0.0, 0.3), (0.3, 0.2)])
@pytest.mark.parametrize("shape", [(40, 13, 27), (9, 9, 9)])
def test_a_pass_is_the_plain_prediction_of_its_sub_network(kind, rates, shape):
    net = network()
    image = volume(shape)
    dropout = Dropout(*rates, kind, 0)
    actual = swept(net, dropout, image)
    with torch.inference_mode(), SubNetworks(net, dropout) as networks:
        for number in (0, 4):

            def alone(x, number=number):
                return torch.cat(
                    [
                        networks.logits(networks.shared(window[None]), [number], window.shape[1:])
                        for window in x
                    ]
                )

            torch.testing.assert_close(
                actual[number], segment_scan(alone, image, WINDOW), atol=1e-5, rtol=0
            )
    assert (actual[0] - actual[1]).abs().max() > 1e-3


@KINDS
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_pass_over_slices_is_the_plain_prediction_of_one_sub_network_for_all_of_them(
    kind, axis, monkeypatch
):
    net = network(d=2)
    image = volume((20, 13, 18))
    window = (16, 16)
    dropout = Dropout(0.3, 0.2, kind, 0)
    actual = swept(net, dropout, image, window, range(3), axis)
    with torch.inference_mode(), SubNetworks(net, dropout) as networks:
        for number in range(3):

            def alone(x, number=number):
                return torch.cat(
                    [
                        networks.logits(networks.shared(plane[None]), [number], plane.shape[1:])
                        for plane in x
                    ]
                )

            plain = segment_scan(alone, image, window, slice_axis=axis)
            torch.testing.assert_close(actual[number], plain, atol=1e-5, rtol=0)
    assert (actual[0] - actual[1]).abs().max() > 1e-3
    # a slice gets the same alone and among others
    lone = swept(net, dropout, image.narrow(1 + axis, 7, 1), window, [2], axis)
    torch.testing.assert_close(lone[0], actual[2].narrow(1 + axis, 7, 1), atol=0, rtol=0)
    monkeypatch.setitem(module.SLAB_BYTES, "cpu", 1)
    torch.testing.assert_close(
        swept(net, dropout, image, window, range(3), axis), actual, atol=1e-5, rtol=0
    )


@KINDS
def test_dropout_is_what_torch_drops(kind, monkeypatch):
    """A mask is 0 as often as the rate says, else 1 / (1 - rate); a channel is dropped whole."""
    monkeypatch.setattr(
        module, "split_network", lambda *_: None
    )  # so that hooks see what is dropped
    net = network()
    rate = 0.4
    layer = next(candidate for candidate in net.encoder.modules() if is_activation(candidate))
    layer.register_forward_hook(lambda _, inputs, output: undropped.append(output.clone()))
    undropped = []
    dropped = []
    with torch.inference_mode(), SubNetworks(net, Dropout(rate, 0.0, kind, 3)) as networks:
        layer.register_forward_hook(lambda _, inputs, output: dropped.append(output.clone()))
        for start in range(0, 300, 50):
            networks.logits(networks.shared(volume(WINDOW)[None]), range(start, start + 50), WINDOW)
    before = torch.cat(undropped)
    after = torch.cat(dropped)
    ratio = after / before
    assert ((ratio.abs() < 1e-6) | ((ratio - 1 / (1 - rate)).abs() < 1e-4)).all()
    survived = (ratio > 0.5).float()
    assert abs(survived.mean() - (1 - rate)) < 0.06
    per_channel = survived.flatten(2).mean(2)
    assert bool(((per_channel == 0) | (per_channel == 1)).all()) == (kind == "channel")
    # two passes at one position are independent of each other
    together = (survived[::2] * survived[1::2]).mean()
    assert abs(together - (1 - rate) ** 2) < 0.06


@KINDS
def test_a_pass_does_not_depend_on_what_is_computed_with_it(kind, monkeypatch):
    net = network()
    image = volume()
    dropout = Dropout(0.3, 0.2, kind, 0)
    expected = swept(net, dropout, image)
    torch.testing.assert_close(
        swept(net, dropout, image, passes=[3])[0], expected[3], atol=0, rtol=0
    )
    monkeypatch.setitem(module.PASSES_AT_ONCE, "cpu", 3)
    torch.testing.assert_close(swept(net, dropout, image), expected, atol=1e-5, rtol=0)
    monkeypatch.setitem(module.SLAB_BYTES, "cpu", 1)
    torch.testing.assert_close(swept(net, dropout, image), expected, atol=1e-5, rtol=0)


@KINDS
def test_seed_and_number_make_a_pass(kind):
    net = network()
    image = volume()
    first, second = (swept(net, Dropout(0.3, 0.0, kind, seed), image) for seed in (0, 1))
    assert (first - second).abs().max() > 1e-3
    assert all((first[a] - first[b]).abs().max() > 1e-3 for a in range(5) for b in range(a))


def test_running_statistics_stay_and_the_network_is_left_as_it_was():
    net = network(norm="batch")
    image = volume()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plain = segment_scan(net, image, WINDOW)
    swept(net, Dropout(0.3, 0.3, "channel", 0), image)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(segment_scan(net, image, WINDOW), plain)


def calls(layer):
    """The batches that a layer is given from now on."""
    batches = []
    layer.register_forward_hook(lambda _, inputs, output: batches.append(len(output)))
    return batches


def convolutions(net):
    return [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv3d)]


def test_layers_before_the_first_dropout_are_computed_once_for_all_passes():
    # two windows, each together with its copy
    net = network()
    image = volume((24, 16, 16))
    first, second = (calls(layer) for layer in convolutions(net.encoder)[:2])
    swept(net, Dropout(0.3, 0.3, "channel", 0), image, passes=range(4))
    assert (first, second) == ([2] * 2, [2] * 4)  # then two passes at a time
    net = network()
    last = calls(convolutions(net.encoder)[-1])
    decoders = [calls(layer) for layer in convolutions(net.decoder)]
    swept(net, Dropout(0.0, 0.3, "channel", 0), image, passes=range(4))
    assert last == decoders[0] == [2] * 2
    assert decoders[1] == [2] * 4


def test_a_network_that_cannot_be_traced_gives_the_same_passes(capsys, monkeypatch):
    net = network()
    image = volume((24, 16, 16))
    for rates in ((0.3, 0.0), (0.0, 0.3)):
        dropout = Dropout(*rates, "element", 0)
        expected = swept(net, dropout, image)
        assert "torch.fx" not in capsys.readouterr().err
        with monkeypatch.context() as patch:
            # as in a network with code that asks for a value
            patch.setattr(
                net.encoder,
                "forward",
                lambda x: list(net.encoder.net(x * bool(x.sum() == x.sum()))),
            )
            untraced = swept(net, dropout, image)
        assert "UNetEncoder: torch.fx cannot trace it" in capsys.readouterr().err
        torch.testing.assert_close(untraced, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "options", "d"),
    [
        ("residual", {"channels": (4, 8), "blocks": 1}, 3),
        ("plain", {"channels": (4, 8), "blocks": 1, "norm": "batch"}, 3),
        ("monai:ResNetFeatures", {"model_name": "resnet10", "pretrained": False}, 2),
        # its activation is MONAI's own
        ("monai:EfficientNetBNFeatures", {"model_name": "efficientnet-b0", "pretrained": False}, 2),
    ],
)
def test_other_encoders_drop_too(name, options, d, monkeypatch):
    net = network(name, d=d, **options)
    image = volume((40, 32) if d == 2 else (20, 16, 16))
    arguments = (Dropout(0.3, 0.0, "element", 0), image, (32, 32) if d == 2 else WINDOW, range(3))
    expected = swept(net, *arguments)
    monkeypatch.setattr(module, "split_network", lambda *_: None)
    torch.testing.assert_close(swept(net, *arguments), expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-4
    torch.testing.assert_close(expected.sum(1), torch.ones(3, *image.shape[1:]))


def test_a_full_device_computes_fewer_passes_at_a_time(monkeypatch):
    net = network()
    image = volume()
    dropout = Dropout(0.3, 0.0, "channel", 0)
    expected = swept(net, dropout, image)
    real = SubNetworks.logits

    def small(self, shared, passes, size):
        if len(set(passes)) > 1:
            raise torch.OutOfMemoryError
        return real(self, shared, passes, size)

    monkeypatch.setattr(SubNetworks, "logits", small)
    torch.testing.assert_close(swept(net, dropout, image), expected, atol=1e-5, rtol=0)


# the verb


def label(path):
    return np.asarray(nib.load(path).dataobj)


MANY = {"passes": 3, "dropout_kind": "channel"}
VOTES = [
    {"vote": "majority"},
    {"vote": "weighted", "vote_weights": (1, 2, 2)},
    {"vote": "borda"},
    {"vote": "union", "union_class": "lesion"},
    {"vote": "mean"},
]


@pytest.mark.parametrize("vote", VOTES, ids=[vote["vote"] for vote in VOTES])
@pytest.mark.parametrize(
    "options", [{}, {"spacing_mm": (1.5, 1.5, 1.5)}], ids=["same grid", "resampled"]
)
def test_every_vote_is_written_on_the_scans_grid(tmp_path, vote, options):
    run = make_run(tmp_path / "run", **options)
    scan = write_scan(tmp_path / "a.nii.gz", blob((20, 17, 12)))
    (path,) = predict(Predict(run=run, scans=scan, out=tmp_path / "out", **MANY, **vote))
    assert label(path).shape == (20, 17, 12)
    np.testing.assert_array_equal(nib.load(path).affine, nib.load(scan).affine)
    with (tmp_path / "out" / "review.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == "a"
    assert float(row["organ spread low"]) <= float(row["organ spread high"])
    assert 0 <= float(row["trust"]) <= 1


def test_one_pass_writes_what_was_written_without_passes(run, scans, tmp_path):
    predict(Predict(run=run, scans=scans, out=tmp_path / "one", passes=1, seed=4))
    predict(Predict(run=run, scans=scans, out=tmp_path / "plain"))
    assert content(tmp_path / "one") == content(tmp_path / "plain")
    assert set(json.loads((tmp_path / "plain" / "predictions.json").read_text())) == {
        *("format", "network_sha256", "channel_names", "overlap", "precision", "checksum")
    }


def test_a_scan_is_predicted_alike_alone_and_among_others(run, scans, tmp_path):
    predict(Predict(run=run, scans=scans, out=tmp_path / "all", probabilities=True, **MANY))
    predict(
        Predict(
            run=run, scans=scans / "scan_2.nii.gz", out=tmp_path / "one", probabilities=True, **MANY
        )
    )
    for name in ("scan_2.nii.gz", "scan_2_probabilities.nii.gz"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_an_ensemble_is_the_mean_of_its_plain_predictions(run, scans, tmp_path):
    second_run = make_run(tmp_path / "other", seed=1)
    scan = scans / "scan_0.nii.gz"
    options = {"scans": scan, "probabilities": True, "precision": "fp32"}
    for name, member in (("a", run), ("b", second_run)):
        predict(Predict(run=member, out=tmp_path / name, **options))
    (path,) = predict(
        Predict(run=run, ensemble=(second_run,), out=tmp_path / "out", vote="mean", **options)
    )
    first, second, mean = (
        nib.load(tmp_path / n / "scan_0_probabilities.nii.gz").get_fdata()
        for n in ("a", "b", "out")
    )
    np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)
    np.testing.assert_array_equal(label(path), mean.argmax(-1))
    assert "ensemble_sha256" in json.loads((tmp_path / "out" / "predictions.json").read_text())


def test_a_network_that_votes_with_itself_makes_as_many_other_passes(run, scans, tmp_path):
    """Passes are numbered across networks: a network taken twice is one with twice the passes."""
    options = {"run": run, "scans": scans / "scan_0.nii.gz", "probabilities": True}
    predict(Predict(**options, out=tmp_path / "two", ensemble=(run,), passes=2))
    predict(Predict(**options, out=tmp_path / "one", passes=4))
    for name in ("scan_0.nii.gz", "scan_0_probabilities.nii.gz", "review.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_the_mean_vote_of_a_resampled_scan_is_decided_on_the_scans_own_grid(tmp_path):
    run = make_run(tmp_path / "run", spacing_mm=(2.5, 2.5, 2.5))
    scan = write_scan(tmp_path / "a.nii.gz", blob((20, 17, 12)))
    out = tmp_path / "out"
    (path,) = predict(
        Predict(run=run, scans=scan, out=out, vote="mean", probabilities=True, **MANY)
    )
    probabilities = nib.load(out / "a_probabilities.nii.gz").get_fdata()
    np.testing.assert_array_equal(label(path), probabilities.argmax(-1))


def test_where_all_passes_agree_weights_move_no_border_of_a_resampled_scan(tmp_path):
    """Shares of the votes are resampled, not the weighted scores, which would push the border."""
    run = make_run(tmp_path / "run", spacing_mm=(1.5, 1.5, 1.5))
    scan = write_scan(tmp_path / "a.nii.gz", blob((20, 17, 12)))
    options = {"run": run, "scans": scan, "ensemble": (run,)}
    (plain,) = predict(Predict(**options, out=tmp_path / "plain"))
    (weighted,) = predict(
        Predict(**options, out=tmp_path / "weighted", vote="weighted", vote_weights=(1, 5, 9))
    )
    np.testing.assert_array_equal(label(weighted), label(plain))


def test_runs_of_other_classes_or_recipes_cannot_vote_together(run, scans, tmp_path):
    classes = make_run(tmp_path / "classes", classes={"0": "background", "1": "organ", "2": "cyst"})
    recipe = make_run(tmp_path / "recipe", spacing_mm=(2.0, 2.0, 2.0))
    for wrong_run, difference in ((classes, "classes"), (recipe, "recipe")):
        with pytest.raises(
            UsageError, match=f"{wrong_run.name}: its .*{difference}.* leave it out"
        ):
            predict(Predict(run=run, ensemble=(wrong_run,), scans=scans, out=tmp_path / "out"))


def test_votes_that_cannot_be_are_refused(run, scans, tmp_path):
    options = {"run": run, "scans": scans, "out": tmp_path / "out"}
    # the decoder's rate is that of the training, which had none
    with pytest.raises(UsageError, match="passes: without dropout all passes would be the same"):
        predict(Predict(**options, passes=2, encoder_dropout=0.0))
    for bad, match in (
        (
            {"passes": 2, "encoder_dropout": 0.0, "decoder_dropout": 0.0},
            "passes: all passes would be equal",
        ),
        ({"encoder_dropout": 0.5}, "encoder_dropout: a single pass has no dropout"),
        (
            {"decoder_dropout": 0.3, "ensemble": (run,)},
            "decoder_dropout: a single pass has no dropout",
        ),
        ({"dropout_kind": "channel"}, "dropout_kind: a single pass has no dropout"),
        ({"passes": 2, "maps": ("entropi",)}, "did you mean 'entropy'"),
        ({"passes": 2, "vote": "weighted"}, "vote_weights: belongs to"),
        ({"passes": 2, "union_class": "lesion"}, "union_class: belongs to"),
    ):
        with pytest.raises(ValueError, match=match):
            Predict(**options, **bad)
    for bad, match in (
        ({"vote": "borda"}, "vote: needs several predictions"),
        ({"maps": ("entropy",)}, "maps: needs several predictions"),
    ):
        with pytest.raises(UsageError, match=match):
            predict(Predict(**options, **bad))
    for bad, match in (
        ({"vote": "weighted", "vote_weights": (1, 2)}, "vote_weights: 2 weights for 3 classes"),
        ({"vote": "union", "union_class": "lesions"}, "did you mean 'lesion'"),
    ):
        with pytest.raises(UsageError, match=match):
            predict(Predict(**options, passes=2, **bad))
    assert not (tmp_path / "out").exists()


def test_a_folder_made_with_passes_is_not_gone_on_in_without(run, scans, tmp_path):
    out = tmp_path / "out"
    predict(Predict(run=run, scans=scans, out=out, **MANY))
    for changes in ({}, {**MANY, "passes": 4}, {**MANY, "seed": 1}, {**MANY, "vote": "mean"}):
        with pytest.raises(UsageError, match="was predicted with"):
            predict(Predict(run=run, scans=scans, out=out, **changes))


KILLED_AFTER_A_SCAN = """
import os, signal, sys
import selfvox
from selfvox.prediction.output_folder import OutputFolder

record = OutputFolder.record

def killed(self, case, work, **more):
    record(self, case, work, **more)
    os.kill(os.getpid(), signal.SIGKILL)

OutputFolder.record = killed
selfvox.predict(sys.argv[1], sys.argv[2], out=sys.argv[3], passes=3)
"""


@pytest.mark.fault("F31", "SIGKILL after half of the passes", "the same maps")
def test_passes_killed_half_way_go_on_to_the_same_bytes(run, scans, tmp_path):
    settings = {"run": run, "scans": scans, "passes": 3}
    predict(Predict(**settings, out=tmp_path / "whole"))
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED_AFTER_A_SCAN, str(run), str(scans), str(out)]
    process = subprocess.run(command, capture_output=True)
    assert process.returncode == -signal.SIGKILL
    assert len((out / "cases.jsonl").read_text().splitlines()) == 1
    assert not (out / "review.csv").exists()
    predict(Predict(**settings, out=out))
    assert content(out) == content(tmp_path / "whole")


def test_the_least_trusted_scan_comes_first(run, scans, tmp_path):
    predict(Predict(run=run, scans=scans, out=tmp_path / "out", **MANY))
    with (tmp_path / "out" / "review.csv").open() as file:
        rows = list(csv.DictReader(file))
    trusts = [float(row["trust"]) for row in rows]
    assert trusts == sorted(trusts)
    assert {row["case"] for row in rows} == {"scan_0", "scan_1", "scan_2"}
