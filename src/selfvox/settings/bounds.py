"""Bounds on the numbers that options and tasks take."""

from __future__ import annotations

from typing import Annotated

import pydantic

Positive = pydantic.Field(gt=0, allow_inf_nan=False)
NotNegative = pydantic.Field(ge=0, allow_inf_nan=False)
AtLeastOne = pydantic.Field(ge=1)
Rate = pydantic.Field(ge=0, lt=1, allow_inf_nan=False)
Edges = Annotated[
    tuple[Annotated[int, AtLeastOne], ...], pydantic.Field(min_length=2, max_length=3)
]
# one edge counts for all axes
CropEdges = Annotated[
    tuple[Annotated[int, AtLeastOne], ...], pydantic.Field(min_length=1, max_length=3)
]
Spacing = Annotated[
    tuple[Annotated[float, Positive], ...], pydantic.Field(min_length=2, max_length=3)
]
