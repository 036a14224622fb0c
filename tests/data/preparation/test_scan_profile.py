"""A scan's profile is what a naive measurement gives, and does not depend on how it was stored."""

from __future__ import annotations

import dataclasses
import itertools
import json

import nibabel as nib
import numpy as np
import pytest

from selfvox.data.formats.image import Image
from selfvox.data.preparation import scan_profile
from selfvox.data.preparation.normalise import Intensity
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.scan_profile import AFTER, BEFORE, ScanProfile, measure_profile

RECIPE = Recipe(spatial_dims=3, channel_names=("MR",), intensity=(Intensity(kind="mri"),))


def a_scan(shape=(18, 15, 12), spacing=(1.0, 1.0, 2.5)) -> Image:
    rng = np.random.default_rng(0)
    data = np.zeros(shape)
    data[3:-3, 4:-2, 2:-2] = rng.normal(500, 90, tuple(np.array(shape) - (6, 6, 4)))
    return Image(data[None], np.diag([*spacing, 1.0]), "scan")


def profile_of(image: Image, recipe: Recipe = RECIPE) -> ScanProfile:
    prepared = recipe.apply(image)
    return measure_profile(image, prepared.data, prepared.geometry)


def test_a_profile_is_what_a_naive_measurement_gives() -> None:
    image = a_scan()
    prepared = RECIPE.apply(image)
    profile = profile_of(image)
    (values,) = image.data
    (normalised,) = prepared.data.astype(np.float64)
    low, high = np.percentile(normalised, [0.5, 99.5])
    limit = low + 0.2 * (high - low)
    body = [value for value in normalised.ravel() if value > limit]
    (channel,) = profile.channels
    assert channel.before == pytest.approx(np.percentile(values, BEFORE), rel=1e-4)
    ends = [round(share / 100 * (len(body) - 1)) for share in AFTER]
    means = [
        sum(sorted(body)[first : last + 1]) / (last + 1 - first)
        for first, last in itertools.pairwise(ends)
    ]
    assert channel.after == pytest.approx(means, rel=1e-4)
    assert channel.share == pytest.approx(len(body) / normalised.size, rel=1e-4)
    for axis, detail in enumerate(channel.detail):
        moved = np.moveaxis(normalised, axis, 0)
        pairs = [
            abs(first - second)
            for here, beyond in itertools.pairwise(moved)
            for first, second in zip(here.ravel(), beyond.ravel(), strict=True)
            if first > limit and second > limit
        ]
        assert detail == pytest.approx(np.mean(pairs), rel=1e-3)
    # 12 x 9 x 8 voxels and a margin of one on each side
    assert profile.extent == (14.0, 11.0, 25.0)
    assert profile.spacing_mm == (1.0, 1.0, 2.5)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("factor", [1.0, 300.0])
def test_axes_and_the_scale_of_mr_do_not_change_what_is_compared(axes, factor) -> None:
    image = a_scan()
    volume = nib.Nifti1Image(image.data[0] * factor, image.affine)
    turned = volume.as_reoriented([[axis, -1] for axis in np.argsort(axes)])
    other = profile_of(Image(np.asarray(turned.dataobj)[None], turned.affine, "turned"))
    usual = profile_of(image)
    assert other.extent == usual.extent
    assert other.spacing_mm == usual.spacing_mm
    for field in ("after", "share", "detail"):
        assert getattr(other.channels[0], field) == pytest.approx(
            getattr(usual.channels[0], field), rel=1e-3
        )


def test_a_lattice_of_voxels_is_near_to_all_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    image = a_scan((60, 50, 40))
    exact = profile_of(image)
    monkeypatch.setattr(scan_profile, "_VOXELS", 6000)
    lattice = profile_of(image)
    assert lattice.channels[0].before[0] == exact.channels[0].before[0]
    assert lattice.channels[0].before[-1] == exact.channels[0].before[-1]
    assert lattice.channels[0].after == pytest.approx(exact.channels[0].after, abs=0.15)
    assert lattice.channels[0].detail == pytest.approx(exact.channels[0].detail, rel=0.05)


def test_a_profile_survives_json() -> None:
    profile = dataclasses.replace(profile_of(a_scan()), modality="MR")
    assert ScanProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
