"""Passes over whole scans: each is one sub-network for all scans, and has one vote."""

import copy
import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import nn

import selfvox
from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.classifier import Classifier
from selfvox.uncertainty import class_votes
from selfvox.uncertainty.class_passes import run_class_passes
from selfvox.uncertainty.ensemble import PassSettings
from selfvox.uncertainty.mc_dropout import Dropout, DropoutMasks, is_activation

from ..conftest import make_run

SMALL = {"network": {"name": "plain", "channels": [4, 8]}, "device": "cpu", "encoder": "none"}
DROPOUT_RATES = {"encoder_dropout": 0.3, "decoder_dropout": 0.2}


def network(d=2, ordinal=True):
    torch.manual_seed(1)
    spec = plan_encoder({"name": "plain", "channels": (4, 8), "blocks": 1}, (16,) * d, (1.0,) * d)
    net = Classifier(build_encoder(spec, d, 1), 3, ordinal).eval()
    nn.init.normal_(net.head[-1].weight, std=0.2)  # at chance, nothing would change its answers
    return net


def images(d=2, count=2):
    return torch.randn(count, 1, 1, *(16,) * d, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def swept(net, dropout, image, passes=range(5)):
    return run_class_passes(net, DropoutMasks(net.encoder, net.head, dropout), image, passes)


class Dropped(nn.Module):
    """An activation and a mask of its channels behind it."""

    def __init__(self, activation, mask):
        super().__init__()
        self.activation = activation
        self.mask = mask

    def forward(self, x):
        return self.activation(x) * self.mask.view(1, -1, *(1,) * (x.ndim - 2))


def sub_network(net, channels, rates, number):
    """A copy of the network with the masks of a pass written into it."""
    sub_net = copy.deepcopy(net)
    site = 0
    for stage, rate in ((sub_net.encoder, rates[0]), (sub_net.head, rates[1])):
        activations = [module for module in stage.modules() if is_activation(module)]
        for layer in activations if rate else ():
            mask = np.random.default_rng((7, number, site)).random(channels[site]) >= rate
            dropped = Dropped(layer, torch.tensor(mask / (1 - rate), dtype=torch.float32))
            for parent in list(stage.modules()):  # some know a layer by two names
                for name in [name for name, child in parent._modules.items() if child is layer]:
                    if not isinstance(parent, Dropped):
                        parent._modules[name] = dropped
            site += 1
    return sub_net


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize(
    ("rates", "channels"), [((0.3, 0.2), (4, 8, 8)), ((0.4, 0.0), (4, 8)), ((0.0, 0.4), (8,))]
)
def test_a_pass_is_one_sub_network_for_all_images(rates, channels, d):
    net = network(d)
    for image in images(d):
        passes = swept(net, Dropout(*rates, "channel", 7), image)
        for number in range(5):
            with torch.inference_mode():
                sub_net = sub_network(net, channels, rates, number)
                expected = net.probabilities(sub_net(image))
            torch.testing.assert_close(passes[number : number + 1], expected, atol=1e-6, rtol=0)
        assert (passes[0] - passes[1]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["channel", "element"])
def test_a_pass_alone_is_that_pass_of_many_bit_for_bit(kind):
    net = network()
    image, _ = images()
    passes = swept(net, Dropout(0.3, 0.2, kind, 0), image)
    for number in range(5):
        assert torch.equal(
            swept(net, Dropout(0.3, 0.2, kind, 0), image, [number])[0], passes[number]
        )
    assert not torch.allclose(swept(net, Dropout(0.3, 0.2, kind, 1), image), passes, atol=1e-4)


PASSES = torch.tensor([[0.6, 0.3, 0.1], [0.52, 0.38, 0.1], [0.1, 0.2, 0.7], [0.0, 0.4, 0.6]])


@pytest.mark.parametrize(
    ("ordinal", "options", "expected", "votes"),
    [
        (False, {}, "a", [2, 0, 2]),  # a tie goes to the first
        (False, {"vote": "mean"}, "c", [2, 0, 2]),  # 0.305, 0.32, 0.375
        (False, {"vote": "weighted", "vote_weights": (1, 1, 2)}, "c", [2, 0, 2]),
        (False, {"vote": "borda"}, "a", [2, 0, 2]),  # points 4, 4, 4
        (False, {"vote": "union", "union_class": "c"}, "c", [2, 0, 2]),
        (True, {"vote": "mean"}, "b", [2, 0, 2]),  # the median of 0.305, 0.32, 0.375
    ],
)
def test_passes_decide_and_are_trusted_as_they_vote(ordinal, options, expected, votes):
    settings = PassSettings(passes=4, **options)
    result = class_votes.count_class_votes(PASSES, ordinal, ("a", "b", "c"), settings)
    assert (result.value, result.votes) == (expected, votes)
    assert result.trust == votes["abc".index(expected)] / 4
    assert result.probabilities == pytest.approx([0.305, 0.32, 0.375])
    assert result.low[2] == pytest.approx(0.1)
    # between the last two of 0.1, 0.1, 0.6, 0.7
    assert result.high[2] == pytest.approx(0.6 + 0.1 * 0.85)
    assert result.entropy == pytest.approx(
        -sum(p * np.log(p) for p in (0.305, 0.32, 0.375)), abs=1e-6
    )


# the verb


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Twelve pictures of three grades, their store, and a run of seed 0 and of seed 1."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    lines = ["image,grade"]
    (folder / "scans").mkdir()
    for number in range(12):
        data = rng.normal(60 + 50 * (number % 3), 20, (16, 16)).clip(0, 255).astype(np.uint8)
        Pillow.fromarray(data).save(folder / "scans" / f"eye_{number:02}.png")
        lines.append(f"eye_{number:02}.png,{number % 3}")
    (folder / "scans" / "grades.csv").write_text("\n".join(lines) + "\n")
    selfvox.prepare(folder / "scans", out=folder / "store", workers=1)
    for seed in (0, 1):
        options = {
            "steps": 12,
            "batch": 4,
            "crop": 16,
            "seed": seed,
            "learning_rate": 1e-2,
            **SMALL,
        }
        selfvox.finetune(folder / "store", out=folder / f"run{seed}", **options)
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_passes_become_a_table_and_a_list_of_what_to_review_the_least_trusted_first(
    work, tmp_path, capsys
):
    options = {"passes": 5, **DROPOUT_RATES}
    (path,) = selfvox.predict(work / "run0", work / "scans", out=tmp_path / "a", **options)
    rows = table(path)
    review = table(tmp_path / "a" / "review.csv")
    for row in rows:
        ballots = [int(row[f"votes_{name}"]) for name in "012"]
        assert sum(ballots) == 5
        assert float(row["trust"]) == max(ballots) / 5 == ballots[int(row["class"])] / 5
        for name in "012":
            assert 0 <= float(row[f"spread_low_{name}"]) <= float(row[f"spread_high_{name}"]) <= 1
        assert sum(float(row[f"probability_{name}"]) for name in "012") == pytest.approx(
            1, abs=1e-5
        )
    assert len({row["entropy"] for row in rows}) > 1
    order = [(float(row["trust"]), -float(row["entropy"])) for row in review]
    assert order == sorted(order)
    assert {(row["case"], row["class"]) for row in review} == {
        (row["id"], row["class"]) for row in rows
    }
    # the same seed says the same, whatever else was asked for; another seed something else
    selfvox.predict(work / "run0", work / "scans" / "eye_07.png", out=tmp_path / "b", **options)
    assert table(tmp_path / "b" / "predictions.csv") == [
        row for row in rows if row["id"] == "eye_07"
    ]
    selfvox.predict(work / "run0", work / "scans", out=tmp_path / "c", seed=1, **options)
    assert table(tmp_path / "c" / "predictions.csv") != rows
    # some are lost, as by a kill, and made again
    ledger = (tmp_path / "a" / "cases.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "cases.jsonl").write_text("".join(ledger[:5]))
    before = path.read_bytes()
    capsys.readouterr()
    selfvox.predict(work / "run0", work / "scans", out=tmp_path / "a", **options)
    assert "5 of 12 predictions exist already" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert selfvox.evaluate(tmp_path / "a", work / "scans" / "grades.csv")


def test_an_ensemble_is_the_mean_of_its_runs(work, tmp_path):
    singles = [
        selfvox.predict(work / f"run{n}", work / "scans", out=tmp_path / str(n))[0] for n in (0, 1)
    ]
    (path,) = selfvox.predict(
        work / "run0", work / "scans", out=tmp_path / "both", ensemble=(work / "run1",)
    )
    for first, second, mean in zip(*map(table, (*singles, path)), strict=True):
        assert [first["id"], second["id"]] == [mean["id"]] * 2
        assert sum(int(mean[f"votes_{name}"]) for name in "012") == 2
        for name in (f"probability_{name}" for name in "012"):
            assert float(mean[name]) == pytest.approx(
                (float(first[name]) + float(second[name])) / 2, abs=1e-6
            )


def test_a_network_that_votes_with_itself_makes_as_many_other_passes(work, tmp_path):
    """Passes are numbered across networks: a network taken twice is one with twice the passes."""
    options = {"run": work / "run0", "scans": work / "scans", **DROPOUT_RATES}
    (doubled,) = selfvox.predict(
        **options, out=tmp_path / "two", ensemble=(work / "run0",), passes=2
    )
    (single,) = selfvox.predict(**options, out=tmp_path / "one", passes=4)
    assert doubled.read_bytes() == single.read_bytes()


def test_what_cannot_vote_together_is_refused(work, tmp_path):
    segmenter = make_run(tmp_path / "segmenter")
    options = {"scans": work / "scans", "out": tmp_path / "out"}
    with pytest.raises(
        UsageError, match=r"segmenter: segments, where .*run0 classifies whole scans; leave it out"
    ):
        selfvox.predict(work / "run0", ensemble=(segmenter,), **options)
    with pytest.raises(
        UsageError, match=r"run0: classifies whole scans, where .*segmenter segments; leave it out"
    ):
        selfvox.predict(segmenter, ensemble=(work / "run0",), **options)
    nominal = selfvox.finetune(
        work / "store", out=tmp_path / "nominal", steps=1, batch=2, crop=16, ordinal=False, **SMALL
    )
    for reason, changes in (
        ("its choice of ordered or unordered classes differs", {"ensemble": (nominal,)}),
        ("classifies whole scans, which have no maps", {"passes": 2, "maps": ("entropy",)}),
        (
            "vote_weights: 2 weights for 3 classes",
            {"passes": 2, "vote": "weighted", "vote_weights": (1, 2)},
        ),
        ("no class is called 'severe'", {"passes": 2, "vote": "union", "union_class": "severe"}),
    ):
        with pytest.raises(UsageError, match=reason):
            selfvox.predict(work / "run0", **options, **changes)


def test_the_error_of_a_share_of_passes_is_that_of_independent_draws():
    rng = np.random.default_rng(0)
    drawn = rng.binomial(40, 0.8, 4000) / 40
    answers = {str(number): {"trust": trust} for number, trust in enumerate(drawn[:200])}
    printed = class_votes.describe_stability(answers, 40)
    error = float(re.search(r"stable to ±([\d.]+) with 40 passes", printed).group(1))
    assert error == pytest.approx(1.96 * drawn.std(), abs=0.01)
    # passes that all agree may be of a share below 1: 11/12, with one more vote each way
    assert "stable to ±0.17 with 10" in class_votes.describe_stability({"a": {"trust": 1.0}}, 10)
