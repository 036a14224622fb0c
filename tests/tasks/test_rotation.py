"""Rotation: the question is what it says, and nothing but the anatomy answers it."""

import collections
import math

import numpy as np
import pytest
import torch

from selfvox.errors import UsageError
from selfvox.tasks import task_from_setting
from selfvox.tasks.rotation import Rotation


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("d", "answers", "count"), [(2, "planes", 4), (3, "planes", 10), (3, "group", 24)]
)
def test_the_answer_undoes_the_turn(d, answers, count):
    task = Rotation(answers=answers, versions=3)
    images = torch.randn(5, 2, *(8,) * d)
    batch = task.make_batch(images, rng())
    table = task.table(d)
    assert len(table) == count
    originals = images.repeat_interleave(3, 0)
    for image, turned, answer in zip(originals, batch["images"], batch["answer"], strict=True):
        assert torch.equal(table[answer].inverse().apply(turned), image)


def test_the_versions_of_an_image_all_differ():
    for seed in range(20):
        answers = (
            Rotation(versions=4)
            .make_batch(torch.randn(6, 1, 8, 8, 8), rng(seed))["answer"]
            .view(6, 4)
        )
        assert all(len(set(row)) == 4 for row in answers.tolist())


def test_answers_are_uniform_and_independent_of_the_images():
    task = Rotation()
    counts = collections.Counter()
    for seed in range(100):
        noise = torch.randn(40, 1, 2, 2, 2, generator=rng(seed))
        answer = task.make_batch(noise, rng(seed))["answer"]
        assert torch.equal(answer, task.make_batch(noise.square(), rng(seed))["answer"])
        counts.update(answer.tolist())
    expected = 4000 / 10
    # chi-square with 9 degrees of freedom: above 27.9 once in a thousand
    assert sum((counts[n] - expected) ** 2 / expected for n in range(10)) < 27.9


def accuracy_of_a_linear_probe(images):
    """Its answers come from border voxels alone, on images that the probe was not fitted to."""
    batch = Rotation().make_batch(images, rng(7))
    inside = torch.zeros(images.shape[2:], dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    cues = batch["images"][:, 0][:, ~inside].numpy()
    cues = np.concatenate([cues, np.ones((len(cues), 1))], 1)
    truth = np.eye(4)[batch["answer"].numpy()]
    half = len(cues) // 2
    weights = np.linalg.lstsq(cues[:half], truth[:half], rcond=None)[0]
    return float(((cues[half:] @ weights).argmax(1) == truth[half:].argmax(1)).mean())


def test_a_probe_of_the_border_learns_nothing_from_noise_though_it_could_from_anatomy():
    noise = torch.randn(2000, 1, 8, 8, generator=rng())
    # four standard deviations of a guess
    assert abs(accuracy_of_a_linear_probe(noise) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)
    assert accuracy_of_a_linear_probe(noise + torch.arange(8.0)[:, None]) > 0.9


@pytest.mark.parametrize(
    ("planes", "size"), [("all", (8, 8, 8)), ("xy", (8, 8, 16)), ("yz", (8, 12, 12))]
)
def test_the_shape_tells_nothing(planes, size):
    task = Rotation(planes=planes, versions=4)
    assert task.input_size((8, 12, 16)) == size
    batch = task.make_batch(torch.randn(3, 1, 8, 12, 16), rng())
    assert batch["images"].shape[2:] == size  # one shape, whatever the answer


@pytest.mark.parametrize(
    ("planes", "answers"), [("all", "planes"), ("xz", "planes"), ("all", "group")]
)
def test_uneven_spacing_is_refused_with_the_spacing_and_the_way_out(planes, answers):
    task = Rotation(planes=planes, answers=answers)
    with pytest.raises(
        UsageError, match=r"0\.70 x 0\.70 x 5\.00 mm.*--task\.planes in-plane.*--spacing"
    ) as refusal:
        task.configure((32, 32, 16), (0.7, 0.7, 5.0))
    assert "\n" not in str(refusal.value)


def test_uneven_spacing_is_turned_where_that_is_asked_for():
    task = Rotation(uneven=True).configure((32, 32, 32), (1.1, 1.3, 1.2))
    assert len(task.table(3)) == 10


def test_in_plane_turns_only_between_axes_of_equal_spacing():
    task = Rotation(planes="in-plane").configure((32, 32, 16), (0.7, 0.7, 5.0))
    assert task.planes == "xy"
    assert [rotation.axes[2] for rotation in task.table(3)] == [2] * 4
    assert not any(rotation.flipped[2] for rotation in task.table(3))


def test_in_plane_without_two_equal_axes_is_refused():
    with pytest.raises(UsageError, match=r"task\.planes.*--spacing 5,5,5 or coarser"):
        Rotation(planes="in-plane").configure((32, 32, 16), (0.7, 1.0, 5.0))


def test_a_plane_must_be_of_equal_spacing_in_every_scan_and_those_at_fault_are_named():
    crop = (32, 32, 32)
    thick = (0.5, 0.5, 5.0)
    across = (4.5, 0.5, 0.5)
    assert (
        Rotation(planes="in-plane").configure(crop, (1.0, 1.0, 1.0), thick, (2.0, 2.0, 3.0)).planes
        == "xy"
    )
    spacings = r"4\.50 x 0\.50 x 0\.50 mm and 0\.50 x 0\.50 x 5\.00 mm"
    with pytest.raises(UsageError, match=rf"in every scan \({spacings}\); prepare with --spacing"):
        Rotation(planes="in-plane").configure(crop, thick, across, across)
    with pytest.raises(
        UsageError, match=r"of spacing 4\.50 x 0\.50 x 0\.50 mm, .* in xy away; .*--spacing 5,5,5"
    ):
        Rotation(planes="xy").configure(crop, thick, across, across)
    # of slices or of pictures: how many axes the scans have is not known here
    with pytest.raises(UsageError, match=r"prepare with 3\.3 mm along each axis or coarser"):
        Rotation().configure((32, 32), (1.9, 3.3))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"planes": "none"}, "planes"),
        ({"planes": "xw"}, "planes"),
        ({"versions": 11}, "versions"),
        ({"versions": 5, "planes": "in-plane"}, "versions"),
        ({"answers": "group", "planes": "in-plane"}, "answers"),
        ({"answers": "group", "planes": "xy"}, "answers"),
    ],
)
def test_an_ill_posed_question_is_refused(options, name):
    spacing = (1.0, 1.0, 3.0) if options.get("planes") == "in-plane" else (1.0, 1.0, 1.0)
    with pytest.raises(UsageError, match=rf"task\.{name}"):
        task_from_setting({"name": "rotation", **options}).configure((32, 32, 32), spacing)


def test_no_two_answers_are_the_same_turn_even_when_a_plane_is_named_twice():
    assert (
        len(set(Rotation(planes="xy,yx,xz").table(3)))
        == len(Rotation(planes="xy,yx,xz").table(3))
        == 7
    )


def test_panels_show_each_image_and_its_turns():
    images = torch.randn(2, 1, 8, 8)
    task = Rotation(versions=2)
    batch = task.make_batch(images, rng())
    rows = task.preview_panels(images, batch)
    assert [[panel.caption.split(":")[0] for panel in row] for row in rows] == [
        ["scan", *(f"answer {answer}" for answer in pair)]
        for pair in batch["answer"].view(2, 2).tolist()
    ]
    assert torch.equal(rows[1][2].image, batch["images"][3])
