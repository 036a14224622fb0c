"""Several tasks at once: one encoder, and separate heads, draws, options and metrics."""

from dataclasses import replace

import pytest
import torch
import yaml

import selfvox
from selfvox import joint
from selfvox.cli import main
from selfvox.data.sampling.crops import Crops
from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.runs.atomic_files import sha256
from selfvox.runs.run_folder import read_metrics
from selfvox.runs.weights import read_encoder, read_network
from selfvox.tasks import task_from_setting, task_to_setting
from selfvox.training.learning_curve import draw_curve
from selfvox.training.training_log import caption

CROP = (32, 32, 32)


def images(count=3):
    return torch.randn(count, 1, *CROP, generator=torch.Generator().manual_seed(0))


def encoder_for(task):
    torch.manual_seed(0)
    return build_encoder(
        plan_encoder({"channels": [4, 8, 16], "blocks": 1}, task.input_size(CROP), (1.0,) * 3), 3, 1
    )


def suited(name, weights=None, **options):
    return task_from_setting({"name": name, **options}, weights).configure(CROP, (1.0,) * 3)


def batch_of(task, seed=0):
    return task.make_batch(images(), torch.Generator().manual_seed(seed))


def gradients(module):
    return {name: weight.grad for name, weight in module.named_parameters()}


def test_a_weight_of_zero_leaves_the_other_tasks_gradient_alone():
    both = replace(suited("rotation+simclr"), weights=(1.0, 0.0))
    alone = suited("rotation")
    encoder = encoder_for(both)
    head = both.head(encoder)
    batch = batch_of(both)
    both.loss(encoder, head, batch).loss.backward()
    assert not any(grad.any() for grad in gradients(head["simclr"]).values())
    actual = gradients(encoder)
    encoder.zero_grad()
    entries = {
        key.removeprefix("rotation/"): value
        for key, value in batch.items()
        if key.startswith("rotation/")
    }
    alone.loss(encoder, head["rotation"], entries).loss.backward()
    assert all(torch.equal(actual[name], grad) for name, grad in gradients(encoder).items())


def test_a_tasks_question_is_the_same_in_any_order_and_company():
    questions = [
        batch_of(suited(name))
        for name in ("jigsaw+simclr", "simclr+jigsaw", "simclr+rotation+jigsaw")
    ]
    for key in questions[0]:
        assert all(torch.equal(question[key], questions[0][key]) for question in questions)
    assert not torch.equal(
        batch_of(suited("jigsaw+simclr"), seed=1)["jigsaw/answer"], questions[0]["jigsaw/answer"]
    )


def test_no_two_tasks_draw_the_same_numbers():
    drawn = [
        tuple(torch.rand(4, generator=joint.task_generator(seed, name)).tolist())
        for seed in (0, 1)
        for name in "ab"
    ]
    assert len(set(drawn)) == 4


def test_weights_follow_their_tasks_in_any_order():
    assert task_from_setting("simclr+rotation", (0.5, 2)) == task_from_setting(
        "rotation + simclr", (2, 0.5)
    )
    assert task_from_setting("simclr+rotation").weights == (1, 1)


def test_the_encoder_is_planned_for_the_smallest_view():
    both = suited("jigsaw+rotation")
    assert both.input_size(CROP) == suited("jigsaw").input_size(CROP)
    encoder = encoder_for(both)
    assert len(encoder.channels) < len(encoder_for(suited("rotation")).channels)
    smallest = min(
        edge
        for key, x in batch_of(both).items()
        if x.ndim == 5
        for edge in encoder(x)[-1].shape[2:]
    )
    assert smallest >= 4


def test_settings_survive_yaml_and_the_command_line(capsys):
    task = task_from_setting(
        {"name": "rotation+simclr", "simclr.temperature": 0.2, "rotation.versions": 2}, (1, 0.5)
    )
    written = yaml.safe_load(yaml.safe_dump(task_to_setting(task)))
    assert task_from_setting(written, task.weights) == task
    words = ["--task", "rotation+simclr", "--weights", "1,0.5", "--task.simclr.temperature", "0.2"]
    assert (
        main(
            ["pretrain", "s", "--out", "o", *words, "--task.rotation.versions=2", "--print-config"]
        )
        == 0
    )
    printed = yaml.safe_load(capsys.readouterr().out)
    assert task_from_setting(printed["task"], printed["weights"]) == task
    assert main(["pretrain", "--task", "rotation+simclr", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--task.rotation.versions " in shown
    assert "--task.simclr.temperature " in shown


@pytest.mark.parametrize(
    ("task", "weights", "message"),
    [
        (
            "rotation+simclrr",
            None,
            "task: no pretext task is called 'simclrr'; did you mean 'simclr'",
        ),
        ("rotation+", None, "task: no pretext task is called ''"),
        ("rotation+simclr+rotation", None, "task: rotation is named twice; name each task once"),
        (
            "rotation+simclr",
            (1,),
            "weights: are 1 for 2 tasks; give one for each of rotation.simclr",
        ),
        (
            "rotation+simclr",
            (1, 0),
            "weights: with 0 for simclr nothing .*; leave simclr out of the task",
        ),
        ("simclr+rotation", (1, 0), "weights: with 0 for rotation nothing"),
        ("rotation", (1,), "weights: are for several tasks at once, .* leave them out"),
    ],
)
def test_an_impossible_joint_task_is_refused_in_one_line(task, weights, message):
    with pytest.raises(UsageError, match=message) as refusal:
        task_from_setting(task, weights).configure(CROP, (1.0,) * 3)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("task", "option", "value", "message"),
    [
        ("rotation+simclr", "temperature", 1, r"task\.temperature: .* task\.simclr\.temperature$"),
        ("rotation+simclr", "temprature", 1, r"did you mean 'simclr\.temperature'"),
        ("rotation+simclr", "jigsaw.grid", 1, r"task\.jigsaw\.grid: is no option of rotation or"),
        ("rotation+simclr", "simclr.temprature", 1, "temprature: .* did you mean 'temperature'"),
        (
            "rotation+simclr",
            "simclr.ops_per_view",
            9,
            r"^task\.simclr\.ops_per_.*task\.simclr\.ops",
        ),
        ("jigsaw+simclr", "jigsaw.grid", 8, r"^task\.jigsaw\.grid: a crop of"),
    ],
)
def test_an_impossible_option_of_a_joint_task_is_refused_in_one_line(task, option, value, message):
    with pytest.raises(UsageError, match=message) as refusal:
        task_from_setting({"name": task, option: value}, None).configure(CROP, (1.0,) * 3)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("weights", ["1,-1", "1,inf", "1,nan", "1,b"])
def test_weights_are_finite_and_not_negative(weights):
    with pytest.raises(UsageError, match=r"^weights: "):
        selfvox.pretrain("s", out="o", task="rotation+simclr", weights=weights)


@pytest.fixture(scope="module")
def runs(shapes_store, tmp_path_factory):
    """The same run uninterrupted, resumed after a stop at step 4, and with its tasks reordered."""
    folder = tmp_path_factory.mktemp("joint")
    settings = {"steps": 10, "batch": 2, "save_every": 4, "crop": (16, 16, 16), "device": "cpu"}
    settings |= {
        "network": {"channels": [4, 8]},
        "task": {"name": "rotation+simclr", "simclr.temperature": 0.2},
    }
    selfvox.pretrain(shapes_store, out=folder / "alone", weights=(1, 0.5), **settings)
    getitem = Crops.__getitem__
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            Crops, "__getitem__", lambda self, sample: 1 / (sample != 11) and getitem(self, sample)
        )
        with pytest.raises(ZeroDivisionError):
            selfvox.pretrain(shapes_store, out=folder / "resumed", weights=(1, 0.5), **settings)
    selfvox.pretrain(
        shapes_store, out=folder / "resumed", weights=(1, 0.5), resume=True, **settings
    )
    settings["task"] = {"name": "simclr+rotation", "simclr.temperature": 0.2}
    selfvox.pretrain(shapes_store, out=folder / "other order", weights=(0.5, 1), **settings)
    return folder


def test_a_resumed_run_and_one_in_another_order_end_with_the_same_weights(runs):
    digests = {
        sha256(runs / name / "encoder" / "weights.safetensors")
        for name in ("alone", "resumed", "other order")
    }
    assert len(digests) == 1


def test_a_run_keeps_the_metrics_of_each_task_apart(runs):
    last = read_metrics(runs / "alone")[-1]
    assert last["rotation/chance"] == pytest.approx(0.1)
    assert last["loss"] == pytest.approx(
        last["rotation/loss"] + 0.5 * last["simclr/loss"], rel=1e-5
    )
    shown = caption(last)
    assert f"rotation {last['rotation/accuracy']:.2f} (chance 0.10)" in shown
    assert f"simclr {last['simclr/accuracy']:.2f} (chance 0.33)" in shown
    assert "masked explained 0.10 (chance 0.00)" in caption(
        {**last, "masked/loss": 0.9, "masked/explained": 0.1}
    )
    alone = caption({"loss": 0.9, "explained": 0.1, "images_per_s": 1.0, "waiting": 0.0})
    assert alone == "loss 0.900  explained 0.10 (chance 0.00)  1.0 images/s  0 % waiting"
    assert "explained 0.00 " in caption(
        {"loss": 0.9, "explained": -0.001, "images_per_s": 1.0, "waiting": 0.0}
    )


def test_the_card_records_every_task_with_its_options_and_weight(runs):
    card = read_encoder(runs / "alone" / "encoder")[1]
    assert (
        card.task.items()
        >= {"name": "rotation+simclr", "rotation.versions": 1, "simclr.temperature": 0.2}.items()
    )
    task = task_from_setting(card.task, card.weights)
    assert task == task_from_setting(
        {"name": "rotation+simclr", "simclr.temperature": 0.2}, (1, 0.5)
    ).configure((16, 16, 16), (1.0,) * 3)


def test_a_joint_encoder_is_fine_tuned(runs, shapes_store, tmp_path, small):
    run = selfvox.finetune(
        shapes_store,
        out=tmp_path / "seg",
        encoder=str(runs / "alone"),
        steps=2,
        batch=2,
        crop=(16, 16, 16),
        device="cpu",
    )
    assert "rotation+simclr" in read_network(run / "network")[1].encoder


def test_the_curve_shows_the_loss_and_score_of_each_task(runs, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig",
        lambda figure, path, **_: drawn.append(figure) or path.touch(),
    )
    draw_curve(runs / "alone", tmp_path / "curve.png")
    curves = {
        line.get_label(): list(line.get_ydata()) for axes in drawn[0].axes for line in axes.lines
    }
    for name, label in [
        ("rotation/loss", "rotation"),
        ("simclr/loss", "simclr"),
        ("simclr/accuracy", None),
    ]:
        assert curves[label or name] == [line[name] for line in read_metrics(runs / "alone")]


def test_a_preview_shows_the_rows_of_every_task(shapes_store, tmp_path, monkeypatch):
    previews = []
    monkeypatch.setattr(
        "selfvox.commands.preview.draw_preview", lambda rows, *_, **__: previews.append(rows)
    )
    selfvox.preview(
        shapes_store, out=tmp_path / "p.png", task="rotation+simclr", count=1, crop=(16, 16, 16)
    )
    captions = [row[0].caption for row in previews[0]]
    assert captions == ["rotation: scan", "simclr: scan"]
    assert torch.equal(previews[0][0][0].image, previews[0][1][0].image)
