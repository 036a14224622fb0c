"""CPC: patches, contexts and scores are those of loops; a context never contains its answer."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.tasks import task_from_setting
from selfvox.tasks.cpc import CPC, WIDTH, PyramidConv, pairwise_loss, pyramid

CROPS = {2: (32, 48), 3: (24, 32, 24)}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def suited(d, **options):
    return task_from_setting({"name": "cpc", **options}).configure(CROPS[d], (1.0,) * d)


def network(task, d):
    torch.manual_seed(0)
    spec = plan_encoder({"channels": [4, 8], "blocks": 1}, task.input_size(CROPS[d]), (1.0,) * d)
    encoder = build_encoder(spec, d, 1)
    return encoder, task.head(encoder)


def boxes(task, crop, place):
    """The voxels, along each axis, that a patch covers."""
    index = np.unravel_index(place, (task.grid,) * len(crop))
    edges = task.input_size(crop)
    return [
        range(i * task.stride(edge), i * task.stride(edge) + edge)
        for i, edge in zip(index, edges, strict=True)
    ]


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("grid", [3, 4, 6])
def test_pyramids_are_windows_of_a_mirrored_grid(d, grid):
    numbers = np.pad(
        np.arange(grid**d).reshape((grid,) * d), [(0, 0)] + [(grid, grid)] * (d - 1), mode="reflect"
    )
    for layer in range(grid - 1):
        pyramids = pyramid(grid, d, layer)
        assert len(pyramids) == grid ** (d - 1)
        for centre, places in zip(
            itertools.product(range(grid), repeat=d - 1), pyramids, strict=True
        ):
            expected = []
            for above in range(layer, -1, -1):
                window = tuple(
                    slice(grid + position - above, grid + position + above + 1)
                    for position in centre
                )
                expected += numbers[(layer - above, *window)].flatten().tolist()
            assert places == expected
            assert places[-1] == np.ravel_multi_index((layer, *centre), (grid,) * d)


def test_a_pyramid_is_as_long_as_the_paper_says():
    assert len(pyramid(4, 3, 1)[0]) == 10
    assert len(pyramid(7, 3, 2)[0]) == 35
    assert len(pyramid(7, 2, 2)[0]) == 9


@pytest.mark.parametrize("d", [2, 3])
def test_patches_are_cut_where_loops_would_cut_them(d):
    task = suited(d)
    images = torch.randn(2, 2, *CROPS[d])
    batch = task.make_batch(images, rng())
    patches = batch["patches"].view(2, task.grid**d, 2, *task.input_size(CROPS[d]))
    for image, place in itertools.product(range(2), range(task.grid**d)):
        box = zip(boxes(task, CROPS[d], place), batch["corner"].tolist(), strict=True)
        window = tuple(slice(start + along.start, start + along.stop) for along, start in box)
        assert torch.equal(patches[image, place], images[(image, slice(None), *window)])


@pytest.mark.parametrize("d", [2, 3])
def test_the_corner_lies_anywhere_that_leaves_room(d):
    task = suited(d)
    room = [
        size - task.extent(edge)
        for size, edge in zip(CROPS[d], task.input_size(CROPS[d]), strict=True)
    ]
    drawn = torch.stack(
        [task.make_batch(torch.zeros(1, 1, *CROPS[d]), rng(seed))["corner"] for seed in range(150)]
    )
    assert any(room)
    assert [sorted(set(column.tolist())) for column in drawn.T] == [
        list(range(free + 1)) for free in room
    ]


@pytest.mark.parametrize(
    ("grid", "overlap"), [(4, 0.5), (3, 0.0), (4, 0.3), (6, 0.66), (7, 0.5), (4, 0.1)]
)
@pytest.mark.parametrize("edge", [64, 72, 100, 124])
def test_what_is_asked_for_lies_apart_from_what_was_seen_but_the_layer_before_does_not(
    grid, overlap, edge
):
    task = CPC(grid=grid, overlap=overlap).configure((edge, edge), (1.0, 1.0))
    crop = (edge, edge)
    assert task.extent(task.input_size(crop)[0]) <= edge
    for layer in range(grid - task.first):
        for centre, places in enumerate(pyramid(grid, 2, layer)):
            context = set().union(*(boxes(task, crop, place)[0] for place in places))
            for step in task.ahead(layer):
                target = boxes(task, crop, (layer + step) * grid + centre)[0]
                assert target.start - max(context) - 1 >= max(2, task.input_size(crop)[0] // 12)
            nearer = boxes(task, crop, (layer + task.first - 1) * grid + centre)[0]
            assert not context.isdisjoint(nearer)


def gru_by_hand(gru, sequence):
    """The last state, gate by gate."""
    w, u, b, c = (
        getattr(gru, name) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    )
    state = torch.zeros(WIDTH)
    for latent in sequence:
        x, h = (w @ latent + b).chunk(3), (u @ state + c).chunk(3)
        reset, update = torch.sigmoid(x[0] + h[0]), torch.sigmoid(x[1] + h[1])
        state = (1 - update) * torch.tanh(x[2] + reset * h[2]) + update * state
    return state


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("objective", ["infonce", "pairwise"])
@pytest.mark.parametrize("negatives", ["image", "batch", "batch of one scan"])
def test_loss_and_accuracy_equal_loops(d, objective, negatives):
    negatives, scan = ("batch", torch.zeros(2)) if "scan" in negatives else (negatives, None)
    task = suited(d, objective=objective, negatives=negatives)
    encoder, head = network(task, d)
    torch.nn.init.normal_(head.ahead.weight, std=0.5)
    batch = task.make_batch(torch.randn(2, 1, *CROPS[d], generator=rng()), rng(), scan)
    grid, row = 4, 4 ** (d - 1)
    negatives = (
        "image" if scan is not None else negatives
    )  # another crop of the same scan is no candidate
    with torch.no_grad():
        outcome = task.loss(encoder, head, batch)
        latents = torch.stack(
            [head.latent(encoder.embed(patch[None])[0]) for patch in batch["patches"]]
        )
        latents = latents.view(2, grid**d, WIDTH)
        terms = []
        chosen = []
        right = []
        wrong = []
        for image, layer in itertools.product(range(2), range(3)):
            for centre, places in enumerate(pyramid(grid, d, layer)):
                for number, step in enumerate((2, 3)):
                    if layer + step >= grid:
                        continue
                    context = gru_by_hand(
                        head.context.gru, [latents[image, place] for place in places]
                    )
                    guess = head.ahead(context)[number * WIDTH : (number + 1) * WIDTH]
                    target = (layer + step) * row + centre
                    among = [image] if negatives == "image" else [0, 1]
                    score = {
                        (i, candidate): float(guess @ latents[i, candidate])
                        for i in among
                        for candidate in range(grid**d)
                    }
                    terms.append(
                        math.log(sum(math.exp(s) for s in score.values())) - score[image, target]
                    )
                    chosen.append(max(score, key=score.__getitem__) == (image, target))
                    right.append(math.log1p(math.exp(-score.pop((image, target)))))
                    wrong += [math.log1p(math.exp(s)) for s in score.values()]
    expected = sum(terms) / len(terms)
    if objective == "pairwise":
        expected = (sum(right) / len(right) + sum(wrong) / len(wrong)) / 2
    assert float(outcome.loss) == pytest.approx(expected, rel=1e-4)
    assert float(outcome.metrics["accuracy"]) == pytest.approx(sum(chosen) / len(chosen))
    assert 1 / float(outcome.metrics["chance"]) == pytest.approx(
        grid**d * (2 if negatives == "batch" else 1)
    )


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("context", ["gru", "conv"])
@pytest.mark.parametrize("negatives", ["image", "batch"])
def test_an_untrained_network_is_at_chance(d, context, negatives):
    task = suited(d, context=context, negatives=negatives)
    outcome = task.loss(
        *network(task, d), task.make_batch(torch.randn(4, 1, *CROPS[d], generator=rng()), rng())
    )
    chance = float(outcome.metrics["chance"])
    assert float(outcome.loss.detach()) == pytest.approx(-math.log(chance), rel=0.05)
    assert float(outcome.metrics["accuracy"]) < 10 * chance


@pytest.mark.parametrize("d", [2, 3])
def test_stacked_convolutions_see_the_inverted_pyramid_and_nothing_else(d):
    torch.manual_seed(0)
    grid, layers = 5, 3
    conv = PyramidConv(grid, d, layers)
    latents = torch.randn(1, grid**d, WIDTH, requires_grad=True)
    row = grid ** (d - 1)
    context = conv(latents)[0]
    assert len(context) == layers * row
    for layer, centre in itertools.product(range(layers), range(row)):
        (gradient,) = torch.autograd.grad(
            context[layer * row + centre].sum(), latents, retain_graph=True
        )
        reached = gradient[0].abs().sum(1).nonzero().flatten().tolist()
        assert reached == sorted(set(pyramid(grid, d, layer)[centre]))


def test_pairs_that_cannot_be_told_cost_log_two_and_sure_ones_nothing():
    answer = torch.tensor([0, 2, 1])
    assert float(pairwise_loss(torch.zeros(3, 4), answer)) == pytest.approx(math.log(2))
    assert float(pairwise_loss(80.0 * F.one_hot(answer, 4) - 40, answer)) == pytest.approx(
        0, abs=1e-6
    )


def test_fewer_steps_are_predicted_where_the_grid_ends():
    task = CPC(grid=6, steps=3)
    assert [list(task.ahead(layer)) for layer in range(4)] == [[2, 3, 4], [2, 3, 4], [2, 3], [2]]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"grid": 7}, "grid"),
        ({"grid": 3}, "overlap"),
        ({"grid": 2, "overlap": 0}, "grid"),
        ({"overlap": 0.7}, "overlap"),
        ({"overlap": 1}, "overlap"),
    ],
)
def test_a_grid_without_a_question_is_refused(options, name):
    with pytest.raises(UsageError, match=rf"^task\.{name}:"):
        suited(3, **options)


@pytest.mark.parametrize(
    ("grid", "crop", "remedy"),
    [
        (3, 16, "--task.grid 4 or more"),
        (4, 16, "use a larger --crop"),
        (6, 16, "use a smaller grid or a larger"),
    ],
)
def test_what_one_refusal_says_the_next_does_not_take_back(grid, crop, remedy):
    with pytest.raises(UsageError, match=remedy):
        CPC(grid=grid).configure((crop,) * 3, (1.0,) * 3)
    assert CPC(grid=4).configure((24,) * 3, (1.0,) * 3).grid == 4


@pytest.mark.parametrize("d", [2, 3])
def test_panels_light_up_what_is_seen_and_what_is_asked_and_never_both(d):
    task = suited(d)
    images = torch.rand(2, 1, *CROPS[d]) + 1
    images[:, :, 0] = 0  # the darkest voxels, so that what is dimmed differs
    batch = task.make_batch(images, rng())
    rows = task.preview_panels(images, batch)
    inner = tuple(
        slice(start, start + task.extent(edge))
        for start, edge in zip(batch["corner"].tolist(), task.input_size(CROPS[d]), strict=True)
    )
    for image, row in zip(images, rows, strict=True):
        context, target = ((panel.image == image) & (image > 0) for panel in row[1:])
        assert not (context & target).any()
        for lit in (context, target):
            assert 0 < lit[(0, *inner)].sum() == lit.sum()
