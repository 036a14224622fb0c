"""Which recipe a store gets: required by an encoder, kept, or fitted to the scans."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from selfvox.data.preparation.fit_recipe import fit_recipe
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.sources import Dataset
from selfvox.errors import DataError, UsageError
from selfvox.settings.verbs import PreparationSettings


def choose_recipe(
    dataset: Dataset,
    settings: PreparationSettings,
    required: Recipe | None,
    manifest: Mapping[str, Any] | None,
    grid: Recipe | None = None,
) -> tuple[Recipe, dict[str, Any]]:
    """The required recipe, or the store's if the request is the same, or a new one.

    Args:
        dataset: the scans.
        settings: how to prepare.
        required: of an encoder with the same channels.
        manifest: of the store, if there is one.
        grid: has the size or spacing of a new recipe, in place of those of the settings.

    Returns:
        The recipe, and the request that led to it, which the manifest keeps.

    Raises:
        DataError: the scans have another number of channels than the required recipe.
    """
    if required is not None:
        if len(required.channel_names) != len(dataset.channel_names):
            raise DataError(
                f"{dataset.root}: has {len(dataset.channel_names)} channels "
                f"({', '.join(dataset.channel_names)}) where the encoder was trained with "
                f"{len(required.channel_names)} ({', '.join(required.channel_names)}); name scans "
                "like those it was trained with (`finetune` can adapt it: --first-conv mean)"
            )
        return required, {"recipe": required.to_dict()}
    if grid is not None:
        settings = dataclasses.replace(settings, size=grid.size, spacing=grid.spacing_mm)
    # what was requested, not what was fitted: the same command keeps the same recipe
    request: dict[str, Any] = {
        "channel_names": list(dataset.channel_names),
        "size": None if settings.size is None else list(settings.size),
        "spacing_mm": None if settings.spacing is None else list(settings.spacing),
        "intensity": settings.intensity,
    }
    if grid is not None:
        request["keep_within"] = grid.keep_within
    if manifest is not None:
        fitted_to = manifest["asked"].get("fitted_to", 0)
        is_same = manifest["asked"] == request | {"fitted_to": fitted_to}
        # a window that was fitted to a handful of scans must not stay for ever
        if is_same and len(dataset.cases) <= 2 * fitted_to:
            # of a damaged manifest
            with contextlib.suppress(DataError):
                return Recipe.from_dict(manifest["recipe"]), manifest["asked"]
    recipe = fit_recipe(dataset, settings)
    if grid is not None:
        recipe = recipe.with_grid_of(grid)
    return recipe, request | {"fitted_to": len(dataset.cases)}


def check_options(
    settings: PreparationSettings, recipe: Recipe, prepared: str, remedy: str
) -> None:
    """Refuse options that contradict a recipe which is fixed already.

    Args:
        settings: the options.
        recipe: that is fixed.
        prepared: beginning of the message: what was prepared with it, and `was` or `were`.
        remedy: end of the message.

    Raises:
        UsageError: the first such option.
    """
    # a requested spacing is exact; a fitted one leaves scans near it as they are
    is_exact = recipe.spacing_mm == settings.spacing and recipe.keep_within == 0
    fits = {
        "size": settings.size in (None, recipe.size),
        "spacing": settings.spacing is None or is_exact,
        "intensity": _intensity_fits(settings.intensity, recipe),
    }
    for option, is_fitting in fits.items():
        if not is_fitting:
            raise UsageError(
                f"{option}: {prepared} prepared differently; leave --{option} out, or {remedy}"
            )


def _intensity_fits(requested: str, recipe: Recipe) -> bool:
    """Whether the option names the recipe's kinds, one for all channels or one per channel."""
    kinds = [intensity.kind for intensity in recipe.intensity]
    requests = [kind.strip() for kind in requested.split(",")]
    if len(requests) == 1:
        requests *= len(kinds)
    if len(requests) != len(kinds):
        return False
    return all(request in ("auto", kind) for request, kind in zip(requests, kinds, strict=True))
