"""What every pretext task must hold, in 2D and 3D: a new file in tasks/ is tested by being there."""

import contextlib
import dataclasses
import math
import typing

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from selfvox import joint, tasks
from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.settings.options import options

CROPS = {2: (32, 48), 3: (32, 40, 32)}

every_task = pytest.mark.parametrize("name", tasks.task_names())
every_dimension = pytest.mark.parametrize("d", [2, 3], ids=["2D", "3D"])


def suited(name, d, **settings):
    return tasks.task_from_setting({"name": name, **settings}).configure(CROPS[d], (1.0,) * d)


def network(task, d, channels=1, norm="instance"):
    torch.manual_seed(0)
    spec = plan_encoder(
        {"channels": [4, 8, 16], "blocks": 1, "norm": norm}, task.input_size(CROPS[d]), (1.0,) * d
    )
    encoder = build_encoder(spec, d, channels)
    return encoder, task.head(encoder)


def images(d, count=4, channels=1, seed=0):
    return torch.randn(count, channels, *CROPS[d], generator=torch.Generator().manual_seed(seed))


def make_batch(task, x, seed=0):
    return task.make_batch(x, torch.Generator().manual_seed(seed))


def other_settings(name):
    """Each option of the task, changed."""
    for option in options(tasks.find_task(name)):
        choices = [
            choice
            for kind in option.kinds
            for choice in typing.get_args(kind)
            if choice != option.default
        ]
        if isinstance(option.default, bool):
            yield {option.name: not option.default}
        elif isinstance(option.default, int):
            yield from (
                {option.name: value} for value in (option.default + 1, option.default // 2) if value
            )
        elif isinstance(option.default, float):
            yield from ({option.name: option.default * factor} for factor in (0.5, 2.0))
        elif isinstance(option.default, str) and all(isinstance(choice, str) for choice in choices):
            yield from ({option.name: choice} for choice in choices)


@every_task
@every_dimension
def test_an_untrained_encoder_answers_at_chance(name, d):
    task = suited(name, d)
    encoder, head = network(task, d)
    batch = make_batch(task, images(d, 8))
    if "answer" not in batch:
        pytest.skip("asks for no answer out of a fixed number")
    outcome = task.loss(encoder, head, batch)
    answers = 1 / float(outcome.metrics["chance"])
    assert float(outcome.loss.detach()) == pytest.approx(math.log(answers), rel=0.05)


@every_task
@every_dimension
@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_reaches_every_weight_of_encoder_and_head(name, d, channels):
    task = suited(name, d)
    encoder, head = network(task, d, channels)
    outcome = task.loss(encoder, head, make_batch(task, images(d, channels=channels)))
    outcome.loss.backward()
    assert outcome.loss.ndim == 0
    for where, weight in [*encoder.named_parameters(), *head.named_parameters()]:
        assert weight.grad is not None, where
        assert weight.grad.isfinite().all(), where
        # the bias before a normalisation cannot matter, so only weights must
        assert weight.ndim == 1 or weight.grad.any(), where


@every_task
@every_dimension
def test_metrics_are_numbers_without_a_gradient_and_accuracy_has_its_chance(name, d):
    task = suited(name, d)
    metrics = task.loss(*network(task, d), make_batch(task, images(d))).metrics
    assert not any(value.requires_grad or value.ndim for value in metrics.values())
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert ("accuracy" in metrics) == ("chance" in metrics)


@every_task
@every_dimension
def test_the_generator_alone_decides_the_question(name, d):
    task, x = suited(name, d), images(d)
    before, state = x.clone(), torch.get_rng_state()
    one, again, other = make_batch(task, x), make_batch(task, x), make_batch(task, x, seed=1)
    assert one.keys() == again.keys() == other.keys()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
    assert torch.equal(x, before), "changed the images that it was given"


class Draws(TorchDispatchMode):
    """Of every random number drawn: did it come from the generator that was passed in?"""

    def __init__(self, rng):
        super().__init__()
        self.rng, self.found = rng, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded in func.tags:
            used = (kwargs or {}).get("generator")
            # its state moves with every draw, so no other generator has the same
            self.found.append(
                used is not None and torch.equal(used.get_state(), self.rng.get_state())
            )
        return func(*args, **(kwargs or {}))


@every_task
@every_dimension
def test_every_device_is_asked_the_same_since_only_the_cpu_draws(name, d):
    for options_ in [{}, *other_settings(name)]:
        with contextlib.suppress(UsageError):
            task = suited(name, d, **options_)
            make_batch(
                task, images(d)
            )  # jigsaw's set of permutations is drawn once, from a seed of its own
            rng = torch.Generator().manual_seed(0)
            with Draws(rng) as draws:
                task.make_batch(images(d), rng)
            assert draws.found
            assert all(draws.found)


def test_a_draw_from_any_other_generator_would_be_seen():
    rng = torch.Generator().manual_seed(0)
    with Draws(rng) as draws:
        torch.rand(2, generator=rng)
        torch.rand(2)
        torch.empty(2).uniform_(generator=torch.Generator().manual_seed(0))
        torch.nn.functional.dropout(torch.ones(2))
    assert draws.found == [True, False, False, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_task
@every_dimension
def test_a_cuda_device_is_asked_what_the_cpu_is(name, d):
    task = suited(name, d)
    expected, found = make_batch(task, images(d)), make_batch(task, images(d).cuda())
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert found[key].is_cuda
        torch.testing.assert_close(found[key].cpu(), value, rtol=1e-4, atol=1e-4)


@every_task
@every_dimension
def test_what_an_image_is_asked_does_not_depend_on_its_neighbours(name, d):
    task, x = suited(name, d), images(d)
    before = make_batch(task, x.clone())
    x[0] = 5 - x[0]
    for key, after in make_batch(task, x).items():
        changed = (
            (after != before[key]).flatten(1).any(1) if after.ndim > 1 else after != before[key]
        )
        shows = after.ndim == d + 2
        assert int(changed.sum()) == (len(after) // len(x) if shows else 0), key


def reordered(question, order):
    """The question of a batch as it would be with its images in another order."""
    count, found = len(order), {}
    for key, value in question.items():
        if key in ("views", "scan"):  # first views, then second ones
            value = value.view(2, count, *value.shape[1:])[:, order].flatten(0, 1)
        elif len(value) % count == 0:
            value = value.view(count, -1, *value.shape[1:])[order].flatten(0, 1)
        found[key] = order.argsort()[value] if key == "other" else value
    return found


@every_task
@every_dimension
def test_the_order_of_the_batch_does_not_matter(name, d):
    task, order = suited(name, d), torch.tensor([2, 0, 3, 1])
    encoder, head = network(task, d)
    question = make_batch(task, images(d))
    with torch.no_grad():
        expected = task.loss(encoder, head, question)
        found = task.loss(encoder, head, reordered(question, order))
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-5)
    for key, value in expected.metrics.items():
        torch.testing.assert_close(found.metrics[key], value, rtol=1e-3, atol=1e-4)


@every_task
@every_dimension
def test_mixed_precision_asks_the_same_question(name, d):
    task = suited(name, d)
    expected = make_batch(task, images(d))
    with torch.autocast("cpu", torch.bfloat16):
        found = make_batch(task, images(d))
        outcome = task.loss(*network(task, d), found)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert outcome.loss.dtype == torch.float32


@every_task
@every_dimension
def test_the_encoder_is_shown_images_of_the_size_that_the_task_says(name, d):
    task = suited(name, d)
    shown = [
        value.shape[2:] for value in make_batch(task, images(d)).values() if value.ndim == d + 2
    ]
    assert shown
    assert {tuple(shape) for shape in shown} == {task.input_size(CROPS[d])}


@every_task
@every_dimension
def test_the_least_batch_is_asked_a_real_question_and_a_smaller_one_refused(name, d):
    task = suited(name, d)
    assert (
        task.loss(*network(task, d), make_batch(task, images(d, task.min_batch))).loss.detach() > 0
    )
    for too_few in range(1, task.min_batch):
        for refused in (
            lambda: task.check_batch(too_few),  # noqa: B023
            lambda: make_batch(task, images(d, too_few)),  # noqa: B023
        ):
            with pytest.raises(UsageError, match=f"use --batch {task.min_batch} or more"):
                refused()


@every_task
@every_dimension
def test_beside_another_task_its_loss_is_added_and_its_head_learns(name, d):
    names = sorted({name, "rotation" if name != "rotation" else "simclr"})
    both = tasks.task_from_setting("+".join(names), (0.5, 2.0)).configure(CROPS[d], (1.0,) * d)
    encoder, head = network(both, d)
    batch = make_batch(both, images(d))
    outcome = both.loss(encoder, head, batch)
    expected = 0.0
    for each, weight in zip(names, both.weights, strict=True):
        own = {
            key.split("/")[1]: value for key, value in batch.items() if key.split("/")[0] == each
        }
        seed = int(torch.randint(1 << 62, (), generator=torch.Generator().manual_seed(0)))
        alone = suited(each, d).make_batch(images(d), joint.task_generator(seed, each))
        assert own.keys() == alone.keys()
        assert all(torch.equal(own[key], alone[key]) for key in own)
        single = suited(each, d).loss(encoder, head[each], own)
        expected += weight * float(single.loss.detach())
        assert all(
            torch.equal(outcome.metrics[f"{each}/{key}"], value)
            for key, value in single.metrics.items()
        )
        assert torch.equal(outcome.metrics[f"{each}/loss"], single.loss.detach())
    assert float(outcome.loss.detach()) == pytest.approx(expected, rel=1e-6)
    outcome.loss.backward()
    assert all(
        weight.grad.any()
        for weight in (*encoder.parameters(), *head.parameters())
        if weight.ndim > 1
    )
    assert len(both.preview_panels(images(d), batch)) == 2 * len(images(d))


@every_task
def test_settings_survive_yaml(name):
    settings = [{}, *other_settings(name)]
    for options_ in settings:
        refusal = ""
        try:
            task = tasks.task_from_setting({"name": name, **options_})
        except UsageError as error:
            refusal = str(error)
        if refusal:
            assert f"task.{next(iter(options_))}" in refusal
            continue
        written = yaml.safe_dump(tasks.task_to_setting(task))
        assert tasks.task_from_setting(yaml.safe_load(written)) == task
        assert options_.items() <= tasks.task_to_setting(task).items()


@every_task
@every_dimension
def test_every_setting_makes_a_difference_or_is_refused_by_name(name, d):
    def asked(**settings):
        task = suited(name, d, **settings)
        encoder, head = network(task, d)
        for weight in head.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        x = torch.cat([images(d, 3), images(d, 3, seed=1)])
        batch = task.make_batch(
            x, torch.Generator().manual_seed(0), torch.tensor([0, 1, 2, 3, 1, 0])
        )
        loss = task.loss(encoder, head, batch).loss.detach()
        assert loss.isfinite()
        return {**batch, "loss": loss}

    def outcome(**settings):
        try:
            return asked(**settings)
        except UsageError as refusal:
            return str(refusal)

    default, made = asked(), {}
    for settings in other_settings(name):
        option, found = next(iter(settings)), outcome(**settings)
        if isinstance(found, str):
            assert "task" in found
        same = not isinstance(found, str) and found.keys() == default.keys()
        same = same and all(torch.equal(found[key], default[key]) for key in found)
        made[option] = made.get(option, False) or not same
    allows = {option for option, different in made.items() if not different}
    for option in allows:  # what is refused without it
        spacing = (*(1.0,) * (d - 1), 3.0)
        with pytest.raises(UsageError, match=f"task {name}"):
            tasks.task_from_setting({"name": name}).configure(CROPS[d], spacing)
        tasks.task_from_setting({"name": name, option: True}).configure(CROPS[d], spacing)


@every_task
def test_a_bad_option_is_refused_by_name(name):
    with pytest.raises(UsageError, match=r"task\.nonsense"):
        tasks.task_from_setting({"name": name, "nonsense": 1})
    for option in options(tasks.find_task(name)):
        bad = ["nonsense", -1] if isinstance(option.default, int | float) else ["nonsense"]
        for value in bad:
            with pytest.raises(UsageError, match=rf"task\.{option.name}") as refusal:
                suited(name, 3, **{option.name: value})
            assert "\n" not in str(refusal.value)


@every_task
@every_dimension
def test_panels_show_every_image(name, d):
    task, x = suited(name, d), images(d)
    rows = task.preview_panels(x, make_batch(task, x))
    assert len(rows) == len(x)
    assert all(torch.equal(row[0].image, image) for row, image in zip(rows, x, strict=True))
    assert all(panel.image.ndim == d + 1 and panel.caption for row in rows for panel in row)


@every_task
def test_a_task_is_settings_only_and_says_what_each_is(name):
    task = tasks.find_task(name)
    assert dataclasses.is_dataclass(task)
    assert task.__dataclass_params__.frozen
    assert all(option.help for option in options(task))
    with pytest.raises(UsageError, match=f"did you mean '{name}'"):
        tasks.find_task(name[:-1])
