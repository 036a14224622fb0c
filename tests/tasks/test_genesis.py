"""Genesis: each deformation against loops or a closed form, and what counts as restored."""

import itertools

import pytest
import torch

from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.tasks import genesis, task_from_setting
from selfvox.tasks.genesis import Genesis

SHAPES = [(16, 24), (11, 13), (8, 12, 9)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed))


def bezier(x, control):
    """The curve's height at x, by halving the interval of its parameter."""
    low, high = 0.0, 1.0
    (x1, y1), (x2, y2) = control

    def height(t, first, second):
        return 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3

    for _ in range(50):
        middle = (low + high) / 2
        if height(middle, x1, x2) < x:
            low = middle
        else:
            high = middle
    return height(low, y1, y2)


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_intensities_follow_a_monotone_bezier_curve_between_the_extremes(shape, falling):
    control = torch.rand(2, 2, 2, generator=rng(1))
    images = noise(2, 2, *shape)
    table = genesis.curve_table(control, torch.tensor([falling] * 2))
    curved = genesis.apply_curve(images, table)
    for image, result, points in zip(images, curved, control.tolist(), strict=True):
        for values, mapped in zip(image.flatten(1), result.flatten(1), strict=True):
            low, high = float(values.min()), float(values.max())
            for value, actual in zip(values[:40].tolist(), mapped[:40].tolist(), strict=True):
                height = bezier((value - low) / (high - low), points)
                height = 1 - height if falling else height
                assert actual == pytest.approx(low + height * (high - low), abs=0.02)
            steps = mapped[values.argsort()].diff()
            assert bool((steps <= 1e-5 if falling else steps >= -1e-5).all())
            assert [float(mapped.min()), float(mapped.max())] == pytest.approx([low, high])


def test_the_steepest_curves_are_finite_and_a_straight_one_changes_nothing():
    images = noise(2, 1, 16, 16)
    corners = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    steep = genesis.apply_curve(images, genesis.curve_table(corners, torch.zeros(2).bool()))
    assert steep.isfinite().all()
    straight = torch.tensor([[[1 / 3, 1 / 3], [2 / 3, 2 / 3]]] * 2)
    table = genesis.curve_table(straight, torch.zeros(2).bool())
    torch.testing.assert_close(genesis.apply_curve(images, table), images, atol=1e-4, rtol=0)
    flat = torch.full((2, 1, 8, 8), 3.0)
    assert torch.equal(genesis.apply_curve(flat, table), flat)


@pytest.mark.parametrize("shape", SHAPES)
def test_voxels_are_reordered_within_their_window_as_loops_do(shape):
    d = len(shape)
    images = noise(2, 2, *shape)
    offset = [1, 2, 0][:d]
    starts = [range(first, edge - 3, 4) for first, edge in zip(offset, shape, strict=True)]
    corners = list(itertools.product(*starts))
    order = torch.rand(2, len(corners), 4**d, generator=rng(1)).argsort(2)
    expected = images.clone()
    for image, (number, corner) in itertools.product(range(2), enumerate(corners)):
        window = tuple(slice(start, start + 4) for start in corner)
        for channel in range(2):
            index = (image, channel, *window)
            values = images[index].flatten()[order[image, number]]
            expected[index] = values.view((4,) * d)
    assert torch.equal(genesis.shuffle_windows(images, order, offset), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_painted_region_has_one_value_and_the_rest_stays(shape):
    images = noise(2, 2, *shape)
    boxes = genesis._boxes(shape, 2, genesis.INSIDE, rng(2))
    region = genesis.fill_boxes(boxes, shape)
    for image, voxel in itertools.product(range(2), itertools.product(*map(range, shape))):
        point = torch.tensor(voxel)
        within = ((boxes[image, :, 0] <= point) & (point < boxes[image, :, 1])).all(1).any()
        assert bool(region[(image, 0, *voxel)]) == bool(within)
    painted = genesis.paint(images, region, torch.tensor([0.0, 0.25]))
    for image, channel in itertools.product(range(2), range(2)):
        values = images[image, channel]
        level = 0.25 * image
        expected = values.min() + level * (values.max() - values.min())
        inside = region[image, 0]
        assert torch.allclose(painted[image, channel][inside], expected)
        assert torch.equal(painted[image, channel][~inside], values[~inside])


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_have_the_edges_asked_and_are_inside(shape):
    for share in (genesis.INSIDE, genesis.OUTSIDE):
        boxes = genesis._boxes(shape, 200, share, rng())
        space = torch.tensor(shape)
        edges = (boxes[:, :, 1] - boxes[:, :, 0]) / space
        assert bool((boxes[:, :, 0] >= 0).all() and (boxes[:, :, 1] <= space).all())
        assert bool((edges >= share[0] - 0.5 / 8).all() and (edges <= share[1] + 0.5 / 8).all())
        assert bool((boxes[:, :, 0].amin((0, 1)) == 0).all())
        assert bool((boxes[:, :, 1].amax((0, 1)) == space).all())


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("option", ["shuffled", "curved", "painted"])
def test_each_deformation_alone_changes_the_share_of_images_asked(d, option):
    # of 25 windows and more, half of them shuffled, some always are
    images = noise(200, 1, 24, 24) if d == 2 else noise(100, 1, 16, 16, 16)
    options = {"shuffled": 0.0, "curved": 0.0, "painted": 0.0, option: 0.5}
    inputs = Genesis(**options).make_batch(images, rng())["shown"]
    share = (inputs != images).flatten(1).any(1).float().mean()
    assert float(share) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("d", [2, 3])
def test_as_many_images_are_painted_outside_as_asked_and_more_is_hidden_there(d):
    images = noise(200, 1, *(14,) * d)

    def hidden(outside):
        options = {"shuffled": 0.0, "curved": 0.0, "painted": 1.0, "outside": outside}
        inputs = Genesis(**options).make_batch(images, rng())["shown"]
        return float((inputs != images).float().mean())

    assert hidden(0.0) + 0.05 < hidden(1.0)
    assert hidden(0.5) == pytest.approx((hidden(0.0) + hidden(1.0)) / 2, abs=0.06)


class Drawn(torch.nn.Module):
    """A head that answers with a given image."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, encoder, shown):
        return shown if self.answer is None else self.answer


@pytest.mark.parametrize("d", [2, 3])
def test_the_mean_of_each_channel_explains_nothing_and_the_scan_all(d):
    task = Genesis(painted=1.0)
    images = noise(3, 2, *(16,) * d) + torch.arange(6.0).view(3, 2, *(1,) * d)
    batch = task.make_batch(images, rng())
    unchanged = task.loss(None, Drawn(None), batch)
    error = (batch["shown"] - images).double().square().mean()
    assert float(unchanged.loss) == pytest.approx(float(error), rel=1e-5)
    mean = images.flatten(2).mean(2).view(3, 2, *(1,) * d).expand_as(images)
    nothing = task.loss(None, Drawn(mean), batch)
    assert float(nothing.loss) == pytest.approx(1, abs=0.1)
    assert float(nothing.metrics["explained"]) == pytest.approx(0, abs=1e-5)
    perfect = task.loss(None, Drawn(images), batch)
    assert [float(perfect.loss), float(perfect.metrics["explained"])] == [0, 1]
    half = task.loss(None, Drawn((mean + images) / 2), batch)
    assert float(half.metrics["explained"]) == pytest.approx(0.75, abs=1e-5)
    assert float(task.loss(None, Drawn(images + 99), batch).metrics["explained"]) == -1
    flat = task.make_batch(torch.ones(2, 1, *(16,) * d), rng())
    assert float(task.loss(None, Drawn(flat["target"] + 9), flat).metrics["explained"]) == 0


@pytest.mark.parametrize("d", [2, 3])
def test_a_few_steps_restore_more_than_none(d):
    torch.manual_seed(0)
    task = Genesis(painted=0.0, shuffled=0.0)
    network = {"channels": [8, 16], "blocks": 1}
    encoder = build_encoder(plan_encoder(network, (8,) * d, (1.0,) * d), d, 1)
    head = task.head(encoder)
    torch.nn.init.normal_(head.decoder.seg_layers[-1].weight, std=0.3)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-2)
    images = noise(8, 1, *(8,) * d)
    errors = []
    for step in range(30):
        outcome = task.loss(encoder, head, task.make_batch(images, rng(step)))
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        errors.append(float(outcome.loss.detach()))
    assert sum(errors[-5:]) < 0.85 * sum(errors[:5])


def test_a_task_that_deforms_nothing_is_refused():
    with pytest.raises(UsageError, match=r"^task\.painted: nothing is deformed"):
        task_from_setting({"name": "genesis", "shuffled": 0, "curved": 0, "painted": 0})
