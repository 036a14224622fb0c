"""Scans that a recipe was not made for: other units of values or lengths are refused or noted."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

import selfvox
from selfvox.data.formats.image import Image
from selfvox.data.preparation.normalise import Intensity
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError

CT = Intensity(kind="ct", lower=-900.0, upper=300.0, mean=-200.0, std=300.0)
PHOTO = Intensity(kind="photo", mean=0.45, std=0.22)


def ct_recipe(window: Intensity = CT) -> Recipe:
    return Recipe(spatial_dims=3, channel_names=("CT",), intensity=(window,))


def hounsfield(seed: int = 0) -> np.ndarray:
    """Lungs and soft tissue in air, (*space), int16."""
    rng = np.random.default_rng(seed)
    values = np.full((20, 18, 16), -1000.0)
    values[3:17, 3:15, 2:14] = rng.normal(40, 20, (14, 12, 12))
    values[5:9, 5:12, 4:12] = rng.normal(-850, 30, (4, 7, 8))
    return values.round().astype(np.int16)


def of(values: np.ndarray, spacing_mm: float = 1.0) -> Image:
    return Image(values[None], np.diag([*[spacing_mm] * 3, 1.0]), "scan.nii.gz")


def test_a_ct_in_hounsfield_units_needs_no_note() -> None:
    for seed in range(3):
        assert ct_recipe().apply(of(hounsfield(seed))).notes == ()


@pytest.mark.fault("H3", "a CT that is not in Hounsfield units", "refused")
def test_a_ct_with_nothing_in_the_window_is_refused() -> None:
    soft_tissue = Intensity(kind="ct", lower=-100.0, upper=300.0, mean=60.0, std=40.0)
    with pytest.raises(DataError, match=r"nothing of it is in the window from -100 to 300.*-10"):
        ct_recipe(soft_tissue).apply(of(hounsfield() // 100 - 101))
    with pytest.raises(DataError, match="is it in Hounsfield units"):
        ct_recipe(soft_tissue).apply(of(hounsfield() + 3000))


def test_a_ct_with_air_at_zero_is_noted() -> None:
    prepared = ct_recipe().apply(of(hounsfield() + 1024))
    assert ["% of its foreground is outside the window" in note for note in prepared.notes] == [
        True
    ]


@pytest.mark.fault("H3", "a CT windowed to 0 to 255", "a note")
def test_a_ct_that_was_windowed_for_the_screen_is_noted() -> None:
    screen = ((np.clip(hounsfield(), -1000, 400) + 1000) * (255 / 1400)).astype(np.int16)
    prepared = ct_recipe().apply(of(screen))
    assert prepared.notes == (
        "its lowest value is 0, where CT has air near -1000: is it in Hounsfield units?",
    )
    # a window without air says nothing of scans without air
    window = Intensity(kind="ct", lower=-100.0, upper=300.0, mean=60.0, std=40.0)
    assert ct_recipe(window).apply(of(screen)).notes == ()


def picture(values: np.ndarray) -> Image:
    return Image(values[None], np.eye(4), "picture.png")


@pytest.mark.fault("H3", "pictures of 16 bits and fractions as `photo`", "refused")
@pytest.mark.parametrize(
    ("factor", "dtype", "accepted"),
    [
        (1, np.uint8, True),
        (1, np.float32, True),
        (1 / 255, np.float32, False),
        (257, np.uint16, False),
        (16, np.uint16, False),
        (-1, np.float32, False),
    ],
)
def test_a_photo_has_8_bits(factor: float, dtype: type, accepted: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, (30, 40)) * factor
    recipe = Recipe(spatial_dims=2, channel_names=("grey",), intensity=(PHOTO,))
    if accepted:
        assert recipe.apply(picture(values.astype(dtype))).notes == ()
        return
    with pytest.raises(DataError, match=r"where a photo has 0 to 255; save it with 8 bits"):
        recipe.apply(picture(values.astype(dtype)))


def test_a_dark_picture_is_still_a_photo() -> None:
    recipe = Recipe(spatial_dims=2, channel_names=("grey",), intensity=(PHOTO,))
    values = np.random.default_rng(0).integers(0, 2, (30, 40)).astype(np.uint8)
    assert recipe.apply(picture(values)).data.max() < 0


def test_pictures_of_other_ranges_are_rejected_one_by_one(tmp_path: Path) -> None:
    """They landed in the store with 300 to 1055 times the contrast of the others."""
    (tmp_path / "in").mkdir()
    for number in range(8):
        values = np.random.default_rng(number).integers(0, 256, (40, 50)).astype(np.uint8)
        if number == 1:
            Pillow.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "in/p1.png")
        elif number == 2:
            Pillow.fromarray(values.astype(np.float32) / 255).save(tmp_path / "in/p2.tif")
        else:
            Pillow.fromarray(values).save(tmp_path / f"in/p{number}.png")
    selfvox.prepare(tmp_path / "in", out=tmp_path / "store", intensity="photo")
    assert [case.id for case in open_store(tmp_path / "store").cases] == [
        f"p{number}" for number in (0, 3, 4, 5, 6, 7)
    ]
    rejected = (tmp_path / "store/rejected.csv").read_text()
    assert rejected.count("where a photo has 0 to 255") == 2


@pytest.mark.fault("H6", "a spacing that leaves nothing of a scan", "refused with the option")
@pytest.mark.parametrize(
    ("own_mm", "spacing_mm", "size"),
    [
        (0.002, 1.0, "1 x 1 x 1"),
        (2000.0, 1.0, "32000 x 28000 x 28000"),
        (1.0, 12.0, "1 x 1 x 1"),
    ],
)
def test_a_spacing_that_leaves_nothing_or_asks_for_far_too_much_is_refused(
    own_mm: float, spacing_mm: float, size: str
) -> None:
    recipe = Recipe(
        spatial_dims=3,
        channel_names=("CT",),
        intensity=(CT,),
        spacing_mm=(spacing_mm,) * 3,
    )
    with pytest.raises(DataError, match=rf"would be {size} voxels at .*; correct the unit"):
        recipe.apply(of(hounsfield(), own_mm))


@pytest.mark.fault("H6", "scans in metres and micrometres", "prepared as those in mm")
def test_scans_in_other_units_are_prepared_as_those_in_mm(tmp_path: Path) -> None:
    for unit, mm in (("mm", 1.0), ("micron", 1e-3), ("meter", 1e3)):
        (tmp_path / unit).mkdir()
        for number in range(2):
            scan = nib.Nifti1Image(hounsfield(number), np.diag([*[2 / mm] * 3, 1.0]))
            scan.header.set_xyzt_units(unit)
            nib.save(scan, tmp_path / unit / f"{number}.nii.gz")
        selfvox.prepare(tmp_path / unit, out=tmp_path / f"store_{unit}", spacing=(3, 3, 3))
    expected = open_store(tmp_path / "store_mm")
    for unit in ("micron", "meter"):
        store = open_store(tmp_path / f"store_{unit}")
        assert [case.shape for case in store.cases] == [case.shape for case in expected.cases]
        for case in store.cases:
            assert any("converted to mm" in note for note in case.notes)
