"""Jigsaw: the permutations are far apart, and only the content of the tiles reveals them."""

import collections
import hashlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.ops.tiles import TileGrid
from selfvox.tasks import jigsaw
from selfvox.tasks.jigsaw import Jigsaw, permutation_set

SHAPES = {2: (40, 64), 3: (32, 64, 40)}
every_dimension = pytest.mark.parametrize("d", [2, 3], ids=["2D", "3D"])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def distances(rows):
    """Of every pair of rows, the number of places where they differ."""
    return [
        sum(a != b for a, b in zip(*pair, strict=True))
        for pair in itertools.combinations(rows.tolist(), 2)
    ]


@pytest.mark.parametrize("tiles", [8, 9, 27])
def test_permutations_lie_farther_apart_than_random_ones(tiles):
    smallest = []
    mean = []
    for seed in range(5):
        random = torch.rand(100, tiles, generator=rng(seed)).argsort(1)
        for rows in (permutation_set(tiles, 100, seed), random):
            assert all(sorted(row) == list(range(tiles)) for row in rows.tolist())
            gaps = distances(rows)
            smallest.append(min(gaps))
            mean.append(sum(gaps) / len(gaps))
    ours, theirs = smallest[::2], smallest[1::2]
    assert min(ours) >= {8: 5, 9: 6, 27: 24}[tiles]
    assert sum(ours) / 5 >= sum(theirs) / 5 + 2
    assert min(mean[::2]) > max(mean[1::2])


def test_the_set_is_that_of_a_greedy_loop():
    candidates = list(itertools.permutations(range(4)))
    count = 10
    actual = [tuple(row) for row in permutation_set(4, count, 3).tolist()]
    picked = actual[:1]
    while len(picked) < count:

        def score(order):
            apart = [
                sum(a != b for a, b in zip(order, previous, strict=True)) for previous in picked
            ]
            return min(apart), sum(apart)

        picked.append(max(candidates, key=score))  # the first of equals
    assert actual == picked


def test_a_seed_gives_one_set_everywhere_and_no_row_twice():
    permutation_set.cache_clear()
    first = permutation_set(27, 100, 0)
    permutation_set.cache_clear()
    assert torch.equal(permutation_set(27, 100, 0), first)
    assert permutation_set(27, 100, 0) is permutation_set(27, 100, 0)
    assert not torch.equal(permutation_set(27, 100, 1), first)
    assert len(set(map(tuple, first.tolist()))) == 100
    assert len(set(map(tuple, permutation_set(4, 24, 0).tolist()))) == 24
    # a run that goes on elsewhere must mean the same by its answers
    assert hashlib.sha256(bytes(first.flatten().tolist())).hexdigest()[:16] == "c55e294ee1277ac3"


@every_dimension
@pytest.mark.parametrize("grid", [2, 3])
def test_tiles_are_whole_pieces_of_the_image_in_true_order(d, grid):
    task = Jigsaw(grid=grid, permutations=24, colour_jitter=False)
    shape = SHAPES[d]
    positions = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).float()
    edges = task.input_size(shape)
    batch = task.make_batch(positions.expand(10, *positions.shape), rng())
    cells = list(itertools.product(range(grid), repeat=d))
    for tiles, corners in zip(batch["tiles"].chunk(10), batch["corner"].tolist(), strict=True):
        for tile, corner, cell in zip(tiles, corners, cells, strict=True):
            expected = [
                torch.arange(first, first + edge) for first, edge in zip(corner, edges, strict=True)
            ]
            # neither filled nor mirrored: every position once, in order
            assert torch.equal(tile, torch.stack(torch.meshgrid(*expected, indexing="ij")).float())
            room = [
                size % grid + size // grid - edge for size, edge in zip(shape, edges, strict=True)
            ]
            for first, number, size, free in zip(corner, cell, shape, room, strict=True):
                assert number * (size // grid) <= first <= number * (size // grid) + free


@every_dimension
def test_the_loss_is_that_of_a_loop_that_shuffles_the_tiles_themselves(d):
    task = Jigsaw(shuffles=3, permutations=30)
    shape = SHAPES[d]
    encoder = build_encoder(
        plan_encoder({"channels": [4, 8]}, task.input_size(shape), (1.0,) * d), d, 1
    )
    head = task.head(encoder)
    sizes = []
    torch.nn.init.normal_(head[-1].weight)
    batch = task.make_batch(torch.randn(3, 1, *shape), rng())
    table = task.table(d)
    expected = []
    right = []
    for tiles, answers in zip(batch["tiles"].chunk(3), batch["answer"], strict=True):
        for answer in answers:
            shuffled = torch.stack([tiles[tile] for tile in table[answer]])
            logits = head(torch.cat([encoder.embed(tile[None]) for tile in shuffled], 1))
            expected.append(F.cross_entropy(logits, answer[None]))
            right.append(float(logits.argmax() == answer))
    encoder.register_forward_hook(lambda _, x, __: sizes.append(len(x[0])))
    outcome = task.loss(encoder, head, batch)
    torch.testing.assert_close(outcome.loss, torch.stack(expected).mean())
    assert float(outcome.metrics["accuracy"]) == pytest.approx(sum(right) / len(right))
    assert float(outcome.metrics["chance"]) == pytest.approx(1 / 30)
    assert sizes == [3 * 3**d]


def test_answers_are_uniform_differ_within_an_image_and_are_independent_of_it():
    task = Jigsaw(grid=2, permutations=10, shuffles=4)
    counts = collections.Counter()
    for seed in range(25):
        noise = torch.randn(100, 1, 20, 20, generator=rng(seed))
        answer = task.make_batch(noise, rng(seed))["answer"]
        assert torch.equal(answer, task.make_batch(noise.square(), rng(seed))["answer"])
        assert all(len(set(row)) == 4 for row in answer.tolist())
        counts.update(answer[:, 0].tolist())
    # chi-square with 9 degrees of freedom: above 27.9 once in a thousand
    assert sum((counts[n] - 250) ** 2 / 250 for n in range(10)) < 27.9


def test_border_voxels_tell_nothing_though_they_would_if_tiles_touched(
    border_accuracy, smooth_noise, monkeypatch
):
    task = Jigsaw(grid=2, permutations=24, shuffles=1)
    noise = smooth_noise[..., :24, :24]

    def accuracy():
        batch = task.make_batch(noise, rng(7))
        answer = batch["answer"][:, 0]
        tiles = batch["tiles"].view(len(noise), 4, 8, 8)
        return border_accuracy(
            tiles[torch.arange(len(noise))[:, None], task.table(2)[answer]], answer, 24
        )

    # four standard deviations of a guess
    assert abs(accuracy() - 1 / 24) < 4 * math.sqrt(1 / 24 * 23 / 24 / 2000)
    monkeypatch.setattr(jigsaw, "tile_grid", lambda *_: TileGrid(2, (8, 8), (8, 8), (0, 0)))
    assert accuracy() > 0.3


def test_the_settings_name_the_set():
    assert torch.equal(Jigsaw(grid=2, permutations=20, seed=5).table(3), permutation_set(8, 20, 5))
    assert Jigsaw(permutations=7).table(2).shape == (7, 9)


def test_small_crops_are_refused_with_one_that_does():
    with pytest.raises(
        UsageError, match=r"task\.grid.*32 x 24 x 16 voxels.*--crop 32,32,32"
    ) as refusal:
        Jigsaw().configure((32, 24, 16), (1.0, 1.0, 5.0))
    assert "\n" not in str(refusal.value)
    assert Jigsaw().configure((32, 32, 32), (1.0, 1.0, 5.0)).input_size((32, 32, 32)) == (8, 8, 8)
    assert Jigsaw(grid=2).configure((24, 24, 24), (1.0, 1.0, 5.0)).input_size((24, 24, 24)) == (
        8,
        8,
        8,
    )


def test_more_permutations_than_there_are_is_refused():
    with pytest.raises(UsageError, match=r"task\.permutations.*24"):
        Jigsaw(grid=2).configure((64, 64), (1.0, 1.0))
    assert Jigsaw(grid=2).configure((64, 64, 64), (1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match=r"task\.shuffles"):
        Jigsaw(shuffles=5, permutations=4).configure((64, 64), (1.0, 1.0))


def test_panels_show_the_tiles_in_place_and_as_shuffled():
    images = torch.randn(2, 1, 32, 32)
    task = Jigsaw(colour_jitter=False)
    batch = task.make_batch(images, rng())
    table = task.table(2)
    for image, answer, corners, row in zip(
        images,
        batch["answer"][:, 0],
        batch["corner"],
        task.preview_panels(images, batch),
        strict=True,
    ):
        assert [panel.caption for panel in row] == ["scan", "in place", f"answer {answer} of 100"]
        for place, tile in enumerate(table[answer].tolist()):
            x, y = corners[tile].tolist()
            piece = image[:, x : x + 8, y : y + 8]
            # one dark voxel between tiles
            i = place // 3 * 9
            j = place % 3 * 9
            assert torch.equal(row[1].image[:, x : x + 8, y : y + 8], piece)
            assert torch.equal(row[2].image[:, i : i + 8, j : j + 8], piece)
