"""Cues that would give an answer away do not, and would without the protection against them.

The images are noise, so that nothing else can give an answer away. How borders match is tested in
the tasks' own files.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from selfvox.ops import intensity
from selfvox.tasks import exemplar, masked, simclr, task_from_setting
from selfvox.tasks.cpc import CPC
from selfvox.tasks.rotation import Rotation


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed))


def smooth(count, edge):
    """Images without detail, of a level of their own: resampling leaves their texture as it is."""
    coarse = noise(count, 1, 10, 10) + 2 * noise(count, 1, 1, 1, seed=1)
    wide = F.interpolate(coarse, (2 * edge, 2 * edge), mode="bicubic", align_corners=False)
    return wide[..., edge // 2 : -edge // 2, edge // 2 : -edge // 2]


def at_chance(accuracy, answers, trials):
    """Within four standard deviations of a guess."""
    return abs(accuracy - 1 / answers) < 4 * math.sqrt((1 - 1 / answers) / answers / trials)


def roughness(images):
    """(sample, axis): how much voxels differ from the next one along each axis."""
    axes = range(2, images.ndim)
    return torch.stack([images.diff(dim=axis).abs().flatten(1).mean(1) for axis in axes], 1)


def test_rotation_the_resolution_tells_nothing_in_the_planes_of_equal_spacing(probe):
    thick = noise(2000, 1, 8, 8, 2).repeat_interleave(4, 4)

    def accuracy(task):
        batch = task.make_batch(thick, rng(1))
        return probe(roughness(batch["images"]), batch["answer"], len(task.table(3)))

    assert at_chance(
        accuracy(Rotation(planes="in-plane").configure((8, 8, 8), (1.0, 1.0, 4.0))), 4, 1000
    )
    assert accuracy(Rotation()) > 0.25  # of ten answers


def test_rotation_the_border_tells_nothing_of_noise_in_3d_though_it_would_of_anatomy(probe):
    inside = torch.zeros(6, 6, 6, dtype=torch.bool)
    inside[1:-1, 1:-1, 1:-1] = True

    def accuracy(images):
        batch = Rotation().make_batch(images, rng(1))
        return probe(batch["images"][:, 0][:, ~inside], batch["answer"], 10)

    images = noise(3000, 1, 6, 6, 6)
    anatomy = torch.cartesian_prod(*[torch.arange(6.0)] * 3) @ torch.tensor([1, 2, 4.0])
    assert at_chance(accuracy(images), 10, 1500)
    assert accuracy(images + anatomy.view(6, 6, 6)) > 0.5


@pytest.mark.parametrize("name", ["relative_location", "jigsaw"])
def test_relative_location_and_jigsaw_a_brightness_that_runs_through_the_image_tells_nothing(
    probe, name
):
    shaded = noise(3000, 1, 32, 32) + torch.linspace(-1, 1, 32)[:, None]
    options = {"grid": 2, "permutations": 24, "shuffles": 1} if name == "jigsaw" else {"queries": 1}
    answers = 24 if name == "jigsaw" else 8

    def accuracy(**changes):
        task = task_from_setting({"name": name, **options, **changes}).configure(
            (32, 32), (1.0, 1.0)
        )
        batch = task.make_batch(shaded, rng(1))
        tiles = batch["tiles"].flatten(1).view(3000, -1, 64)
        answer = batch["answer"].flatten()
        if name == "jigsaw":
            tiles = tiles[torch.arange(3000)[:, None], task.table(2)[answer]]
        return probe(torch.cat([tiles.mean(2), tiles.std(2)], 1), answer, answers)

    assert at_chance(accuracy(), answers, 1500)
    assert accuracy(colour_jitter=False) > 2 / answers


def slopes(tiles):
    """(sample, cue): least-squares slopes of tiles (sample, tile, edge, edge), by a naive fit."""
    edge = tiles.shape[-1]
    grid = torch.cartesian_prod(torch.arange(edge), torch.arange(edge)).float()
    design = torch.cat([grid, torch.ones(edge**2, 1)], 1)
    fitted = torch.linalg.lstsq(design, tiles.flatten(2).flatten(0, 1).T).solution[:2]
    return fitted.T.reshape(len(tiles), -1).round(decimals=4)


@pytest.mark.parametrize("name", ["relative_location", "jigsaw"])
def test_relative_location_and_jigsaw_the_slope_of_a_coils_brightness_tells_nothing(
    probe, monkeypatch, name
):
    place = torch.linspace(-1, 1, 32)
    field = place[:, None].square() + place.square()
    shaded = noise(3000, 1, 32, 32) + 3 * field
    options = {"grid": 2, "permutations": 24, "shuffles": 1} if name == "jigsaw" else {"queries": 1}
    answers = 24 if name == "jigsaw" else 8

    def accuracy():
        task = task_from_setting({"name": name, **options}).configure((32, 32), (1.0, 1.0))
        batch = task.make_batch(shaded, rng(1))
        tiles = batch["tiles"].view(3000, -1, *batch["tiles"].shape[2:])
        answer = batch["answer"].flatten()
        if name == "jigsaw":
            tiles = tiles[torch.arange(3000)[:, None], task.table(2)[answer]]
        return probe(slopes(tiles), answer, answers)

    assert at_chance(accuracy(), answers, 1500)
    monkeypatch.setattr(intensity, "remove_plane", lambda x: x)
    assert accuracy() > 4 / answers


def test_cpc_the_border_of_what_was_seen_does_not_go_on_in_what_is_asked(smooth_noise, monkeypatch):
    def accuracy():
        task = CPC().configure((32, 32), (1.0, 1.0))
        patches = task.make_batch(smooth_noise[:500], rng())["patches"]
        patches = patches.view(500, 16, *patches.shape[2:])
        above, below = F.normalize(patches[:, :, -1], dim=2), F.normalize(patches[:, :, 0], dim=2)
        # for every patch of the first layer: the patch whose first border is most like its last one
        likeliest = torch.einsum("iav,icv->iac", above[:, :4], below).argmax(2)
        return float((likeliest == torch.arange(8, 12)).float().mean())

    assert at_chance(accuracy(), 16, 2000)
    monkeypatch.setattr(CPC, "stride", lambda self, edge: edge // 2)  # patches touch
    assert accuracy() > 0.3


def marks(views):
    """(sample, cue): how much of each of the four borders is one value, and does it differ?"""
    cues = []
    for axis, end in itertools.product((2, 3), (0, -1)):
        border = views.select(axis, end)
        out = (border.mean((1, 2)) - views.mean((1, 2, 3))) / views.std((1, 2, 3))
        cues += [(border.diff(dim=2).abs() < 1e-5).float().mean((1, 2)), out, out.abs()]
    return torch.stack(cues, 1)


def filled_with_zeros(x, matrices, shifts):
    """What `resample` would do without mirroring; square pictures."""
    scaled = torch.cat([matrices, (2 * shifts / x.shape[2])[:, :, None]], 2)
    theta = torch.cat([scaled[:, :, :2].flip(1, 2), scaled[:, :, 2:].flip(1)], 2)
    return F.grid_sample(
        x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False
    )


def test_exemplar_nothing_at_the_border_marks_a_copy(probe, monkeypatch):
    def accuracy():
        task = task_from_setting("exemplar").configure((24, 24), (1.0, 1.0))
        views = task.make_batch(smooth(2000, 24), rng(3))["views"]
        mixed = torch.randperm(4000, generator=rng(4))
        return probe(marks(views)[mixed], (mixed >= 2000).long(), 2)

    assert at_chance(accuracy(), 2, 2000)
    monkeypatch.setattr(exemplar, "resample", filled_with_zeros)
    assert accuracy() > 0.7


def test_simclr_nothing_at_the_border_marks_a_turned_view(probe, monkeypatch):
    task = task_from_setting(
        {"name": "simclr", "ops": "rotate,colour", "ops_per_view": 1}
    ).configure((24, 24), (1.0, 1.0))

    def accuracy():
        views = task.make_batch(smooth(2000, 24), rng(3))["views"]
        turned = task._choose_ops(2000, rng(3))[:, 0]
        return probe(marks(views), turned.long(), 2)

    assert at_chance(accuracy(), 2, 2000)
    monkeypatch.setattr(simclr, "resample", filled_with_zeros)
    assert accuracy() > 0.7


def test_simclr_how_one_view_was_made_does_not_tell_how_its_partner_was(monkeypatch):
    task = task_from_setting({"name": "simclr", "ops": "rotate", "ops_per_view": 1}).configure(
        (24, 24), (1.0, 1.0)
    )
    monkeypatch.setattr(simclr, "resample", filled_with_zeros)  # the corners now show the angle

    def alike():
        constant = marks(task.make_batch(noise(500, 1, 24, 24), rng(3))["views"])[:, 0]
        return float(torch.corrcoef(constant.view(2, 500))[0, 1])

    assert abs(alike()) < 4 / math.sqrt(500)
    view_maps = simclr.view_maps

    def both_turned_alike(shape, angles, *rest):
        return view_maps(shape, angles[:500].repeat(2, 1), *rest)

    monkeypatch.setattr(simclr, "view_maps", both_turned_alike)
    assert alike() > 0.9


def test_masked_the_mask_and_the_fill_tell_nothing_of_what_is_hidden(probe, monkeypatch):
    task = masked.Masked(block=4)
    images = noise(2000, 1, 16, 16)
    question = task.make_batch(images, rng(1))
    hidden = question["hidden"].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    brighter = (images * hidden).sum((1, 2, 3)) / hidden.sum((1, 2, 3)) > 0

    def accuracy():
        filled = masked.fill(images, hidden)
        visible = torch.where(hidden, 0, filled).sum((1, 2, 3)) / (~hidden).sum((1, 2, 3))
        fill = torch.where(hidden, filled, 0).sum((1, 2, 3)) / hidden.sum((1, 2, 3))
        cues = torch.cat(
            [question["hidden"].flatten(1).float(), visible[:, None], fill[:, None]], 1
        )
        return probe(cues, brighter.long(), 2)

    assert at_chance(accuracy(), 2, 1000)
    monkeypatch.setattr(
        masked, "fill", lambda x, hidden: torch.where(hidden, x.mean((1, 2, 3), keepdim=True), x)
    )
    assert accuracy() > 0.9
