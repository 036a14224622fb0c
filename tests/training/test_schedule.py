"""Learning rates: their shape, which weights they move, and what is left of the pre-training."""

import math
from dataclasses import replace

import pytest
import torch

import selfvox
from selfvox.commands import finetune, pretrain
from selfvox.data.preparation.store import open_store
from selfvox.data.sampling.crops import Crops
from selfvox.models.build import load_encoder
from selfvox.runs.run_folder import Run, read_metrics
from selfvox.training import finetune_length, segmentation_objective
from selfvox.training.schedule import (
    FINETUNE_BUDGETS,
    PRETRAIN_BUDGETS,
    Budget,
    Budgets,
    EncoderSchedule,
    TrainingPlan,
    describe_length,
)

NETWORK = {"name": "plain", "channels": [4, 8, 16], "blocks": 1}
CROP = (16, 16, 16)


def plan(steps=100, encoder=None, **settings):
    defaults = {"batch": 1, "learning_rate": 2.0, "weight_decay": 0.0, "save_every": 10, "seed": 0}
    return TrainingPlan(steps=steps, encoder=encoder, **defaults | settings)


def encoder_schedule(**changed):
    return replace(EncoderSchedule(release=20, factor=0.5, sawtooth=False), **changed)


def cosine(share):
    """Half a cosine, from 1 at a share of 0 down to 0 at a share of 1."""
    return (1 + math.cos(math.pi * share)) / 2


def test_an_encoder_starts_its_own_ramp_when_it_is_released():
    training = plan(encoder=encoder_schedule())
    rates = [training.rates_at(step) for step in range(100)]
    encoder = [rate["encoder_learning_rate"] for rate in rates]
    # half of the rate of 2; a tenth of the 80 steps from the release on
    assert encoder[:20] == [0] * 20
    assert encoder[20:28] == pytest.approx([(number + 1) / 8 for number in range(8)])
    assert encoder[28:] == pytest.approx([cosine(number / 72) for number in range(72)])
    alone = [plan().learning_rate_at(step) for step in range(100)]
    assert [rate["learning_rate"] for rate in rates] == alone


def test_a_sawtooth_has_two_rises_and_two_falls():
    training = plan(encoder=encoder_schedule(factor=1.0, sawtooth=True))
    others = [training.learning_rate_at(step) for step in range(100)]
    # 5 % of the 20 steps of a frozen encoder is 1 step
    assert others[:20] == pytest.approx([2 * cosine(number / 19) for number in [0, *range(19)]])
    assert others[20:28] == pytest.approx([(number + 1) / 4 for number in range(8)])
    assert others[28:] == pytest.approx([2 * cosine(number / 72) for number in range(72)])
    assert [training.encoder_rate_at(step) for step in range(20, 100)] == others[20:]


@pytest.mark.parametrize("sawtooth", [False, True])
def test_an_encoder_that_is_never_released_has_no_rate(sawtooth):
    training = plan(encoder=encoder_schedule(release=100, sawtooth=sawtooth))
    assert {training.encoder_rate_at(step) for step in range(100)} == {0}
    alone = [plan().learning_rate_at(step) for step in range(100)]
    assert [training.learning_rate_at(step) for step in range(100)] == alone


def test_default_lengths_follow_from_the_voxels_and_the_device():
    crop = 64**3
    scan = 128**3
    # 300 scans are 2400 crops; a hundred passes in steps of eight
    assert PRETRAIN_BUDGETS.count(300 * scan, 8 * crop, on_cpu=False) == 2000 + 100 * 300
    assert PRETRAIN_BUDGETS.count(300 * scan, 8 * crop, on_cpu=True) == 1000 + 2 * 300
    counts = [
        FINETUNE_BUDGETS.count(labels * scan, 2 * crop, on_cpu=on_cpu)
        for on_cpu in (False, True)
        for labels in (50, 200)
    ]
    assert counts == [3000 + 20000, 3000 + 80000, 1500 + 1000, 1500 + 4000]
    assert FINETUNE_BUDGETS.count(10**12, 2 * crop, on_cpu=False) == 100_000


def test_a_length_is_printed_as_passes_and_that_of_a_cpu_with_the_full_one():
    line = describe_length(FINETUNE_BUDGETS, 510, 400, 100, cpu_default=True)
    assert line.startswith("510 steps, 128 passes over the voxels")
    assert "on a GPU 3400" in line
    assert "GPU" not in describe_length(FINETUNE_BUDGETS, 510, 400, 100, cpu_default=False)


def test_a_resumed_run_has_the_steps_it_was_started_with(
    shapes_store, tmp_path, pretrained, monkeypatch
):
    """The default is another one on another device."""
    few = Budget(steps=3, passes=0, most=3)
    monkeypatch.setattr(finetune_length, "FINETUNE_BUDGETS", Budgets(full=few, cpu=few))
    run = finetuned(shapes_store, tmp_path / "run", pretrained, steps=None)
    more = Budget(steps=6, passes=0, most=6)
    monkeypatch.setattr(finetune_length, "FINETUNE_BUDGETS", Budgets(full=more, cpu=more))
    finetuned(shapes_store, run, pretrained, steps=None, resume=True)
    assert read_metrics(run)[-1]["step"] == 3


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """Draw no curves: they take longer than the training."""
    with pytest.MonkeyPatch.context() as patched:
        for command in (pretrain, finetune):
            patched.setattr(command, "draw_curve", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def pretrained(shapes_store, tmp_path_factory):
    """An encoder of three levels that has learnt to tell rotations apart for a while."""
    return selfvox.pretrain(
        shapes_store,
        out=tmp_path_factory.mktemp("pretrained") / "run",
        task="rotation",
        steps=60,
        batch=4,
        crop=CROP,
        network=NETWORK,
        learning_rate=3e-3,
        device="cpu",
    )


def finetuned(store, out, encoder, **settings):
    defaults = {"crop": CROP, "steps": 40, "warmup": 0.5, "keep": "last", "device": "cpu"}
    return selfvox.finetune(store, out=out, encoder=str(encoder), **defaults | settings)


def rates(run):
    return [
        (line["learning_rate"], line.get("encoder_learning_rate")) for line in read_metrics(run)
    ]


def test_from_scratch_all_weights_have_the_same_rate_from_the_first_step(
    shapes_store, tmp_path, small
):
    weights = []
    for name, settings in (("plain", {}), ("other", {"encoder_lr": 0.01, "schedule": "sawtooth"})):
        run = finetuned(shapes_store, tmp_path / name, "none", **small, steps=2, **settings)
        assert [encoder for _, encoder in rates(run)] == [None] * len(rates(run))
        weights.append(Run(run, {}).last_checkpoint().tensors)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # the moments of every parameter: none is frozen
    moments = {name.split(".")[1] for name in weights[0] if name.startswith("optimizer")}
    parameters = [name for name in weights[0] if name.startswith("weights.network")]
    assert len(moments) == len(parameters)


def test_a_frozen_encoder_has_no_moments_until_its_release(shapes_store, tmp_path, pretrained):
    count = sum(1 for _ in load_encoder(pretrained)[0].parameters())
    moments = []
    for steps, warmup in ((4, 1.0), (5, 0.8)):
        run = finetuned(shapes_store, tmp_path / str(steps), pretrained, steps=steps, warmup=warmup)
        tensors = Run(run, {}).last_checkpoint().tensors
        moments.append({name for name in tensors if name.endswith("exp_avg")})
    assert len(moments[1]) - len(moments[0]) == count


@pytest.mark.parametrize(("schedule", "stop"), [("ramp", 3), ("ramp", 7), ("sawtooth", 10)])
def test_both_schedules_resume_to_the_same_weights(
    shapes_store, tmp_path, pretrained, monkeypatch, schedule, stop
):
    """From before the release, from the step of it, and from later on."""
    settings = {"steps": 12, "warmup": 0.5, "validate_every": 3, "schedule": schedule}
    alone = finetuned(shapes_store, tmp_path / "alone", pretrained, **settings)
    forward = segmentation_objective.SegmentationObjective.forward

    def crashing(self, batch, step, rng):
        if step == stop:
            raise KeyboardInterrupt
        return forward(self, batch, step, rng)

    with monkeypatch.context() as patched:
        patched.setattr(segmentation_objective.SegmentationObjective, "forward", crashing)
        with pytest.raises(KeyboardInterrupt):
            finetuned(shapes_store, tmp_path / "resumed", pretrained, **settings)
    resumed = finetuned(shapes_store, tmp_path / "resumed", pretrained, resume=True, **settings)
    first, second = (Run(run, {}).last_checkpoint().tensors for run in (alone, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def linear_cka(first, second):
    """Linear CKA of features (sample, channel), by Gram matrices (Kornblith et al. 2019, eq. 3)."""
    grams = []
    for features in (first.double(), second.double()):
        centred = features - features.mean(0)
        grams.append(centred @ centred.T)
    products = [(a * b).sum() for a, b in ((grams[0], grams[1]), *zip(grams, grams, strict=True))]
    return float(products[0] / (products[1] * products[2]).sqrt())


def test_cka_is_1_for_rotated_and_scaled_features_and_small_for_unrelated_ones():
    drawn = torch.Generator().manual_seed(0)
    features = torch.randn(500, 8, generator=drawn)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=drawn))[0]
    assert linear_cka(features, 3 * features @ rotation + 1) == pytest.approx(1)
    assert linear_cka(features, torch.randn(500, 8, generator=drawn)) < 0.1


@torch.no_grad()
def similarities(store, first, second):
    """The linear CKA of each level, over voxels of crops of all scans."""
    opened = open_store(store)
    crops = Crops(opened, opened.cases, CROP, seed=1)
    images = torch.stack([crops[number]["image"] for number in range(16)])
    drawn = torch.Generator().manual_seed(0)
    result = []
    for one, other in zip(first.eval()(images), second.eval()(images), strict=True):
        flat = [maps.movedim(1, -1).flatten(0, -2) for maps in (one, other)]
        chosen = torch.randperm(len(flat[0]), generator=drawn)[:1000]
        result.append(linear_cka(flat[0][chosen], flat[1][chosen]))
    return result


def test_twenty_steps_after_its_release_an_encoder_still_has_what_it_learnt(
    shapes_store, tmp_path, pretrained, monkeypatch
):
    """At the decoder's rate, without a ramp, it loses more than twice as much."""
    before, _ = load_encoder(pretrained)
    run = finetuned(shapes_store, tmp_path / "ramp", pretrained)
    ramp = similarities(shapes_store, before, load_encoder(run)[0])
    monkeypatch.setattr(TrainingPlan, "encoder_rate_at", TrainingPlan.learning_rate_at)
    run = finetuned(shapes_store, tmp_path / "abrupt", pretrained)
    abrupt = similarities(shapes_store, before, load_encoder(run)[0])
    assert min(ramp) > 0.9
    assert all(1 - old > 2 * (1 - new) for old, new in zip(abrupt, ramp, strict=True))
