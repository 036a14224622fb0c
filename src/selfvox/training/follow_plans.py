"""Trainings by nnU-Net's plans: crop, slices, spacing and intensities follow from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.normalise import Intensity, Kind
from selfvox.data.preparation.recipe import Recipe
from selfvox.errors import DataError, UsageError
from selfvox.models.build import plans_of
from selfvox.models.nnunet_plans import NnunetPlans
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Finetune, Pretrain

S = TypeVar("S", Pretrain, Finetune)

KINDS: dict[str, Kind] = {"ZScoreNormalization": "mri", "CTNormalization": "ct"}  # of nnU-Net


def follow_plans(settings: S, scans: Path) -> tuple[S, Recipe | None]:
    """Settings in which the plans that `network` names decide about what was not given.

    The patch becomes the crop. Of scans that are not prepared yet, the spacing and the kinds of
    intensity are those of the plans, and the numbers of a CT's window too; options about the
    preparation override all of these.

    Args:
        settings: of the verb.
        scans: what it trains on.

    Returns:
        The settings, unchanged if no plans are named; and the recipe of the scans where the plans
        decide about all of it.

    Raises:
        UsageError: `slices` contradicts the plans.
        DataError: the plans are missing or damaged.
    """
    plans = plans_of(settings.network)
    if plans is None:
        return settings, None
    changes: dict[str, Any] = {}
    if plans.slices != settings.slices:
        if settings.slices is not None:
            here = f"on {plans.slices} slices" if plans.slices else "in 3D, or of pictures"
            raise UsageError(
                f"slices: the network of {plans.name} works {here}; leave --slices out, or name "
                "another configuration"
            )
        changes["slices"] = plans.slices
    if settings.crop is None:
        changes["crop"] = plans.patch
    intensity = _intensity_setting(plans.normalization)
    # a resumed run has in its settings what the plans decided
    is_open = (
        settings.size is None
        and settings.spacing in (None, plans.spacing_mm)
        and settings.intensity in ("auto", intensity)
    )
    recipe = None
    if is_open and not is_store(scans):
        changes["intensity"] = intensity
        # 2D plans have no spacing across the slices, along which nnU-Net does not resample
        if plans.spacing_mm is not None:
            changes["spacing"] = plans.spacing_mm
            is_ct = "CTNormalization" in plans.normalization
            recipe = recipe_of_plans(plans) if is_ct else None
    settings = dataclasses.replace(settings, **changes)
    _describe(plans, changes)
    return settings, recipe


def _intensity_setting(schemes: Sequence[str]) -> str:
    """The option `intensity` for the schemes of nnU-Net; auto for those without a counterpart."""
    return ",".join(KINDS.get(scheme, "auto") for scheme in schemes) or "auto"


def recipe_of_plans(plans: NnunetPlans) -> Recipe | None:
    """The recipe of the plans, with their numbers of CT; None where a scheme is unknown.

    Raises:
        DataError: the numbers are missing.
    """
    kinds = [KINDS.get(scheme) for scheme in plans.normalization]
    if None in kinds or not kinds:
        return None
    if "ct" in kinds and len(plans.foreground) != len(kinds):
        raise DataError(
            f"{plans.file}: has the numbers of {len(plans.foreground)} channels where there are "
            f"{len(kinds)}; plan again"
        )
    intensities = []
    for channel, kind in enumerate(kinds):
        if kind == "mri":
            intensities.append(Intensity(kind="mri"))
            continue
        numbers = plans.foreground[channel]
        try:
            # as nnU-Net divides
            std = max(float(numbers["std"]), 1e-8)
            intensities.append(
                Intensity(
                    kind="ct",
                    lower=float(numbers["percentile_00_5"]),
                    upper=float(numbers["percentile_99_5"]),
                    mean=float(numbers["mean"]),
                    std=std,
                )
            )
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{plans.file}: has no window, mean and std of a CT channel; plan again"
            ) from None
    names = [str(kind).upper() for kind in kinds]
    if len(names) > 1:
        names = [f"{name} {number}" for number, name in enumerate(names)]
    return Recipe(
        spatial_dims=3,
        channel_names=tuple(names),
        intensity=tuple(intensities),
        spacing_mm=plans.spacing_mm,
    )


def _describe(plans: NnunetPlans, changes: dict[str, Any]) -> None:
    """Print what the plans decide, in our order of axes."""
    echo(
        f"network of {plans.name}; its axes are turned to x, y, z"
        if plans.axes not in ((0, 1, 2), (0, 1))
        else f"network of {plans.name}"
    )
    decided = []
    if "slices" in changes:
        decided.append(f"{plans.slices} slices")
    if "crop" in changes:
        decided.append(f"crops of {' x '.join(map(str, plans.patch))} voxels")
    if "spacing" in changes:
        decided.append(f"a spacing of {' x '.join(f'{mm:g}' for mm in changes['spacing'])} mm")
    if "intensity" in changes:
        decided.append(f"intensity {changes['intensity']}")
    if decided:
        echo(f"the plans give {', '.join(decided)}")
    if "mri" in changes.get("intensity", ""):
        echo(
            "z-scores are over the foreground of a scan here; nnU-Net takes them over all voxels "
            "of the cropped scan, unless its plans use a mask"
        )
