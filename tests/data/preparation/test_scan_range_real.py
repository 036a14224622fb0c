"""On real data sets: none refuses its own scans, and each notices those of every other."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

from selfvox.data.formats.image import Image
from selfvox.data.preparation.fit_recipe import fit_recipe
from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.scan_profile import ScanProfile, measure_profile
from selfvox.data.preparation.scan_range import NOTED, REFUSED, ScanRange
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.errors import DataError
from selfvox.settings.verbs import PreparationSettings

SHARED = Path("../shared/data")
FEW = 4  # training scans of each set

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans are not here")

# name -> folder, and the channel that is taken of several
SETS = {
    "hippocampus": ("Task04_Hippocampus", None),
    "oasis": ("oasis_subcortical/table.csv", None),
    "heads": ("ds002748_bids", None),
    "limbs MR": ("Dataset051_Sarcoma", 0),
    "limbs CT": ("Dataset051_Sarcoma", 1),
    "limbs PET": ("Dataset051_Sarcoma", 2),
    "tumours T2": ("brats_cases", 2),
    "abdomen CT": ("ct_abdomen/ct_3mm.nii.gz", None),
    "thick slices": ("dicom_brain", None),
}
# skull-stripped T1 MRI of heads at 2 mm, both
SAME_KIND = {("oasis", "heads"), ("heads", "oasis")}
# limbs and trunks of all sizes leave room for other bodies in MR of about the same resolution
BORDERLINE = {("limbs MR", "heads"), ("limbs MR", "thick slices")}


@functools.cache
def dataset(name: str) -> Dataset:
    folder, channel = SETS[name]
    whole = find_dataset(SHARED / folder)
    # evenly from all over the set
    cases = whole.cases[:: max(1, len(whole.cases) // (FEW + 1))][: FEW + 1]
    if channel is None:
        return dataclasses.replace(whole, cases=cases)
    single = tuple(dataclasses.replace(case, images=(case.images[channel],)) for case in cases)
    names = (whole.channel_names[channel],)
    return dataclasses.replace(whole, cases=single, channel_names=names)


@functools.cache
def image(case: Case) -> Image:
    scan = read_case(case, 1)
    # every second voxel of large scans, which take seconds with each recipe
    step = 2 if scan.data.size > 4_000_000 else 1
    affine = scan.affine @ np.diag([step, step, step, 1.0])
    return dataclasses.replace(scan, data=scan.data[:, ::step, ::step, ::step], affine=affine)


def profile(case: Case, recipe: Recipe) -> ScanProfile:
    prepared = recipe.apply(image(case))
    return measure_profile(image(case), prepared.data, prepared.geometry, case.modality)


@functools.cache
def training(name: str) -> tuple[Recipe, ScanRange]:
    """The recipe and the range of all but the last scan."""
    chosen = dataset(name)
    # own voxels: resampling heads to 1 mm takes most of the time, and changes the detail alone
    recipe = dataclasses.replace(
        fit_recipe(chosen, PreparationSettings(workers=1)), spacing_mm=None
    )
    profiles = [profile(case, recipe) for case in chosen.cases[:-1]]
    return recipe, ScanRange.of(profiles, recipe.channel_names)


def distance(trained_on: str, predicted: str) -> float:
    recipe, ranges = training(trained_on)
    try:
        return ranges.compare(profile(dataset(predicted).cases[-1], recipe)).distance
    except DataError:
        # the recipe itself refuses it
        return np.inf


TRAINED = [name for name in SETS if name not in ("tumours T2", "abdomen CT", "thick slices")]


@pytest.mark.parametrize("name", TRAINED)
def test_a_scan_of_the_same_set_is_not_refused(name):
    assert distance(name, name) < REFUSED


@pytest.mark.parametrize("trained_on", TRAINED)
def test_a_scan_of_every_other_set_is_refused_or_noted(trained_on):
    expected = SAME_KIND | BORDERLINE
    others = [name for name in SETS if name != trained_on and (trained_on, name) not in expected]
    assert [name for name in others if distance(trained_on, name) < NOTED] == []


@pytest.mark.parametrize("pair", sorted(SAME_KIND))
def test_another_set_of_the_same_kind_is_not_refused(pair):
    assert distance(*pair) < REFUSED


def test_other_channels_and_dimensions_are_refused_by_the_recipe():
    recipe, _ = training("oasis")
    for folder, channels in (("idrid_fundus", 3), ("Dataset051_Sarcoma", 3), ("brats_cases", 4)):
        case = find_dataset(SHARED / folder).cases[0]
        with pytest.raises(DataError):
            recipe.apply(read_case(case, channels))
