"""Relative location: the answer is the tile's place, and only the tile's content reveals it."""

import collections
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.ops.intensity import remove_plane
from selfvox.ops.tiles import TileGrid
from selfvox.tasks import relative_location
from selfvox.tasks.relative_location import RelativeLocation

SHAPES = {2: (40, 64), 3: (32, 64, 40)}
every_dimension = pytest.mark.parametrize("d", [2, 3], ids=["2D", "3D"])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def coordinates(shape, count):
    """(count, d, *shape): channel `a` of every voxel is its position along axis `a`."""
    positions = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).float()
    return positions.expand(count, *positions.shape)


@every_dimension
@pytest.mark.parametrize("queries", [1, 5])
def test_the_answer_is_the_neighbour_that_a_loop_finds(d, queries):
    task = RelativeLocation(queries=queries, colour_jitter=False)
    shape = SHAPES[d]
    batch = task.make_batch(coordinates(shape, 20), rng())
    steps = [step for step in itertools.product((-1, 0, 1), repeat=d) if any(step)]
    assert len(steps) == {2: 8, 3: 26}[d]
    tiles = batch["tiles"].view(20, 1 + queries, d, *task.input_size(shape))
    for image_tiles, answers in zip(tiles, batch["answer"].view(20, queries), strict=True):
        corner = [[int(axis.min()) for axis in tile] for tile in image_tiles]
        for query, answer in zip(corner[1:], answers.tolist(), strict=True):
            cells = [size // 3 for size in shape]
            step = [
                round((a - b) / cell) for a, b, cell in zip(query, corner[0], cells, strict=True)
            ]
            assert steps[answer] == tuple(step)


@every_dimension
def test_tiles_are_whole_pieces_of_the_image(d):
    task = RelativeLocation(queries=8, colour_jitter=False)
    shape = SHAPES[d]
    edges = task.input_size(shape)
    batch = task.make_batch(coordinates(shape, 10), rng())
    for tile, corner in zip(batch["tiles"], batch["corner"].flatten(0, 1).tolist(), strict=True):
        expected = [
            torch.arange(first, first + edge) for first, edge in zip(corner, edges, strict=True)
        ]
        # neither filled nor mirrored: every position once, in order, and inside the image
        assert torch.equal(tile, torch.stack(torch.meshgrid(*expected, indexing="ij")).float())
        assert all(
            0 <= first <= size - edge
            for first, edge, size in zip(corner, edges, shape, strict=True)
        )


def test_the_queries_of_an_image_all_differ():
    answers = (
        RelativeLocation(queries=26)
        .make_batch(torch.randn(3, 1, 32, 32, 32), rng())["answer"]
        .view(3, 26)
    )
    assert all(sorted(row) == list(range(26)) for row in answers.tolist())


def test_answers_are_uniform_and_independent_of_the_images():
    task = RelativeLocation(queries=1)
    counts = collections.Counter()
    for seed in range(40):
        noise = torch.randn(100, 1, 30, 30, generator=rng(seed))
        answer = task.make_batch(noise, rng(seed))["answer"]
        assert torch.equal(answer, task.make_batch(noise.square(), rng(seed))["answer"])
        counts.update(answer.tolist())
    # chi-square with 7 degrees of freedom: above 24.3 once in a thousand
    assert sum((counts[n] - 500) ** 2 / 500 for n in range(8)) < 24.3


def test_border_voxels_tell_nothing_though_they_would_if_tiles_touched(
    border_accuracy, smooth_noise, monkeypatch
):
    def accuracy():
        batch = RelativeLocation(queries=1).make_batch(smooth_noise, rng(7))
        return border_accuracy(batch["tiles"].view(-1, 2, 8, 8), batch["answer"], 8)

    # four standard deviations of a guess
    assert abs(accuracy() - 1 / 8) < 4 * math.sqrt(1 / 8 * 7 / 8 / 2000)
    monkeypatch.setattr(
        relative_location, "tile_grid", lambda *_: TileGrid(3, (8, 8), (8, 8), (0, 0))
    )
    assert accuracy() > 0.2


def test_each_tile_has_a_brightness_and_contrast_of_its_own_and_no_slope_whatever_they_were():
    images = torch.randn(6, 2, 32, 32) * torch.tensor([1.0, 7.0]).view(2, 1, 1) + torch.arange(32.0)
    plain, changed = (
        RelativeLocation(queries=1, colour_jitter=on).make_batch(images, rng())
        for on in (False, True)
    )
    assert torch.equal(plain["corner"], changed["corner"])
    before = remove_plane(plain["tiles"]).flatten(2)
    after = changed["tiles"].flatten(2)
    factor, shift = after.std(2, keepdim=True), after.mean(2, keepdim=True)
    line = (before - before.mean(2, keepdim=True)) / before.std(2, keepdim=True) * factor + shift
    torch.testing.assert_close(line, after, rtol=1e-4, atol=1e-4)
    for strength, low, high in ((factor, 0.6, 1.4), (shift, -0.3, 0.3)):
        torch.testing.assert_close(
            strength[:, 0], strength[:, 1], rtol=0.02, atol=1e-4
        )  # one for all channels
        assert ((strength > low - 0.02) & (strength < high + 0.02)).all()
        assert strength[:, 0].unique().numel() == 12


@every_dimension
def test_the_loss_is_that_of_a_loop_over_pairs_though_all_tiles_are_encoded_at_once(d):
    task = RelativeLocation(queries=3).configure(SHAPES[d], (1.0,) * d)
    shape = SHAPES[d]
    encoder = build_encoder(
        plan_encoder({"channels": [4, 8]}, task.input_size(shape), (1.0,) * d), d, 1
    )
    head = task.head(encoder)
    sizes = []
    torch.nn.init.normal_(head[-1].weight)
    batch = task.make_batch(torch.randn(4, 1, *shape), rng())
    expected = []
    right = []
    answers = iter(batch["answer"])
    for of_image in batch["tiles"].chunk(4):
        for query in of_image[1:]:
            pair = [encoder.embed(tile[None]) for tile in (of_image[0], query)]
            logits = head(torch.cat(pair, 1))
            answer = next(answers)
            expected.append(F.cross_entropy(logits, answer[None]))
            right.append(float(logits.argmax() == answer))
    encoder.register_forward_hook(lambda _, x, __: sizes.append(len(x[0])))
    outcome = task.loss(encoder, head, batch)
    torch.testing.assert_close(outcome.loss, torch.stack(expected).mean())
    assert float(outcome.metrics["accuracy"]) == pytest.approx(sum(right) / len(right))
    assert float(outcome.metrics["chance"]) == pytest.approx(1 / (3**d - 1))
    assert sizes == [4 * (1 + 3)]


def test_small_crops_are_refused_with_one_that_does():
    with pytest.raises(UsageError, match=r"32 x 24 x 16 voxels.*--crop 32,32,32") as refusal:
        RelativeLocation().configure((32, 24, 16), (1.0, 1.0, 1.0))
    assert "\n" not in str(refusal.value)
    assert RelativeLocation().configure((32, 32, 32), (1.0, 1.0, 1.0)).input_size((32, 32, 32)) == (
        8,
        8,
        8,
    )
    with pytest.raises(UsageError, match=r"--crop 48,48"):
        RelativeLocation(jitter=0.5).configure((40, 40), (1.0, 1.0))


def test_more_queries_than_neighbours_are_refused():
    with pytest.raises(UsageError, match=r"task\.queries.*8"):
        RelativeLocation(queries=9).configure((64, 64), (1.0, 1.0))


def test_unequal_spacing_changes_nothing():
    task = RelativeLocation()
    assert task.configure((64, 64, 32), (0.7, 0.7, 5.0)) == task
    shapes = {
        tile.shape for tile in task.make_batch(torch.randn(50, 1, 64, 64, 32), rng())["tiles"]
    }
    assert shapes == {(1, 16, 16, 8)}  # one shape, whatever the answer


def test_panels_name_the_place_and_put_the_tiles_there_of_the_first_three_queries():
    images = torch.randn(2, 1, 32, 32)
    task = RelativeLocation(queries=8, colour_jitter=False)
    batch = task.make_batch(images, rng())
    words = ["-x -y", "-x", "-x +y", "-y", "+y", "+x -y", "+x", "+x +y"]
    for image, answers, corners, row in zip(
        images,
        batch["answer"].view(2, 8),
        batch["corner"],
        task.preview_panels(images, batch),
        strict=True,
    ):
        assert [panel.caption for panel in row[:3]] == ["scan", "in place", "centre"]
        assert [panel.caption for panel in row[3:]] == [
            f"answer {n}: {words[n]}" for n in answers[:3]
        ]
        for (x, y), panel in zip(corners[:4], row[2:], strict=True):
            piece = image[:, x : x + 8, y : y + 8]
            assert torch.equal(panel.image, piece)
            assert torch.equal(row[1].image[:, x : x + 8, y : y + 8], piece)
