"""The ranges of the scans that a network was trained on, and how far another scan is outside.

A scan is compared in six respects: its spacing, its extent, and for each channel means of its
sorted normalised values, the share of its own values below 0, the share of the body in its box, and
the detail. For each of their
numbers the distance to the range of the training scans is divided by the standard deviation of
these, or by a least difference where that is larger. The largest of a respect counts, and the
distance of the scan is the root of the sum of their squares: from `NOTED` on the scan is noted,
from `REFUSED` on it is far outside; of few training scans from more on, since they show little of
what scans of their kind are. All were chosen by measurement (docs/results-log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from selfvox.data.naming import printable
from selfvox.data.preparation.scan_profile import AFTER, ChannelProfile, ScanProfile
from selfvox.data.preparation.stored_case import StoredCase

NOTED = 2.0
REFUSED = 4.0
_OTHER_MODALITY = 10.0  # distance of a scan that declares another modality
# few scans show less than their whole range: distances are divided by 1 + _FEW / (number of scans)
_FEW = 2.0
_MOST_NAMED = 3  # differences in one message
_NAMED = 0.4  # share of the largest difference from which another one is named


class Range(NamedTuple):
    """A number over many scans."""

    lowest: float
    median: float
    highest: float
    deviation: float  # standard deviation on the quantity's scale


class _Quantity(NamedTuple):
    """A kind of number by which scans are compared."""

    name: str
    scale: Callable[[float], float]
    # difference on this scale that counts as one standard deviation at least: scans of one kind
    # differ so much, even where those of a training do not
    least: float


def _logit(share: float) -> float:
    # a scan without any background has a share of 1
    bounded = min(max(share, 1e-3), 1 - 1e-3)
    return math.log(bounded / (1 - bounded))


_SPACING = _Quantity("spacing", math.log, math.log(1.5))
_EXTENT = _Quantity("extent", math.log, math.log(1.15))
_AFTER = _Quantity("after", float, 0.15)
_BELOW_ZERO = _Quantity("below_zero", float, 0.12)
_SHARE = _Quantity("share", _logit, 0.3)
_DETAIL = _Quantity("detail", math.log, math.log(1.3))


class Difference(NamedTuple):
    """One respect in which a scan is outside of the range."""

    quantity: str  # such as "spacing"
    distance: float  # beyond the range, in standard deviations
    text: str  # such as "spacing 1 x 1 x 5 mm (theirs 1 x 1 x 1)"


class Comparison(NamedTuple):
    """How a scan compares with a range."""

    distance: float  # 0 within the range
    differences: list[Difference]  # where it is outside, the largest first
    is_far: bool = False  # far outside


@dataclass(frozen=True, kw_only=True)
class ChannelRange:
    """One channel of many scans; the fields are those of `ChannelProfile`."""

    name: str
    before: tuple[Range, ...]
    after: tuple[Range, ...]
    below_zero: Range
    share: Range
    detail: tuple[Range, ...]


@dataclass(frozen=True, kw_only=True)
class ScanRange:
    """What many scans are; the fields are those of `ScanProfile`."""

    count: int  # of the scans
    modalities: tuple[str, ...]  # that they declare
    spacing_mm: tuple[Range, ...]
    extent: tuple[Range, ...]
    channels: tuple[ChannelRange, ...]

    @classmethod
    def of(cls, profiles: Sequence[ScanProfile], channel_names: Sequence[str]) -> ScanRange:
        """The ranges over at least one scan; all have these channels."""
        channels = []
        for index, name in enumerate(channel_names):
            members = [profile.channels[index] for profile in profiles]
            channels.append(
                ChannelRange(
                    name=name,
                    before=_ranges([channel.before for channel in members], float),
                    after=_ranges([channel.after for channel in members], _AFTER.scale),
                    below_zero=_ranges(
                        [(channel.below_zero,) for channel in members], _BELOW_ZERO.scale
                    )[0],
                    share=_ranges([(channel.share,) for channel in members], _SHARE.scale)[0],
                    detail=_ranges([channel.detail for channel in members], _DETAIL.scale),
                )
            )
        return cls(
            count=len(profiles),
            modalities=tuple(sorted({scan.modality for scan in profiles if scan.modality})),
            spacing_mm=_ranges([scan.spacing_mm for scan in profiles], _SPACING.scale),
            extent=_ranges([scan.extent for scan in profiles], _EXTENT.scale),
            channels=tuple(channels),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a range is [lowest, median, highest, deviation]."""
        return {
            "count": self.count,
            "modalities": list(self.modalities),
            "spacing_mm": _to_lists(self.spacing_mm),
            "extent": _to_lists(self.extent),
            "channels": [
                {
                    "name": channel.name,
                    "before": _to_lists(channel.before),
                    "after": _to_lists(channel.after),
                    "below_zero": list(channel.below_zero),
                    "share": list(channel.share),
                    "detail": _to_lists(channel.detail),
                }
                for channel in self.channels
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScanRange:
        """The inverse of `to_dict`."""
        return cls(
            count=int(values["count"]),
            modalities=tuple(str(name) for name in values["modalities"]),
            spacing_mm=_from_lists(values["spacing_mm"]),
            extent=_from_lists(values["extent"]),
            channels=tuple(
                ChannelRange(
                    name=str(channel["name"]),
                    before=_from_lists(channel["before"]),
                    after=_from_lists(channel["after"]),
                    below_zero=_from_lists([channel["below_zero"]])[0],
                    share=_from_lists([channel["share"]])[0],
                    detail=_from_lists(channel["detail"]),
                )
                for channel in values["channels"]
            ),
        )

    def compare(self, profile: ScanProfile) -> Comparison:
        """Compare a scan, of the same channels, with the range."""
        differences = [
            *self._compare_modality(profile),
            self._difference(_SPACING, profile.spacing_mm, self.spacing_mm, _spacing_text),
            self._difference(_EXTENT, profile.extent, self.extent, _extent_text),
        ]
        for channel, ranges in zip(profile.channels, self.channels, strict=True):
            # one channel needs no name
            name = f"{printable(ranges.name)}: " if len(self.channels) > 1 else ""
            differences += [
                self._difference(_AFTER, channel.after, ranges.after, _after_text, name),
                self._difference(
                    _BELOW_ZERO,
                    (channel.below_zero,),
                    (ranges.below_zero,),
                    _below_zero_text,
                    name,
                ),
                self._difference(_SHARE, (channel.share,), (ranges.share,), _share_text, name),
                self._difference(_DETAIL, channel.detail, ranges.detail, _detail_text, name),
            ]
        outside = [difference for difference in differences if difference.distance > 0]
        outside.sort(key=lambda difference: -difference.distance)
        largest: dict[str, float] = {}
        for difference in outside:
            # of several channels the first, which is the largest
            largest.setdefault(difference.quantity, difference.distance)
        distance = round(math.hypot(*largest.values()), 2)
        return Comparison(distance, outside, distance >= self.refused)

    @property
    def refused(self) -> float:
        """The distance from which a scan is far outside: twice `REFUSED` of one training scan."""
        return REFUSED * (1 + 1 / self.count)

    def describe_far(self, profiles: Sequence[ScanProfile]) -> str | None:
        """How many scans are far outside and in what the furthest differs; None if there are none.

        `3 of 5 scans are unlike ...` continues with what these scans are.
        """
        comparisons = [self.compare(profile) for profile in profiles]
        far = [comparison for comparison in comparisons if comparison.is_far]
        if not far:
            return None
        worst = max(far, key=lambda comparison: comparison.distance)
        return f"{len(far)} of {len(profiles)} scans, {describe_differences(worst.differences)}"

    def _compare_modality(self, profile: ScanProfile) -> list[Difference]:
        modality = profile.modality
        if modality is None or not self.modalities or modality in self.modalities:
            return []
        theirs = " or ".join(map(printable, self.modalities))
        text = f"modality {printable(modality)} (theirs {theirs})"
        return [Difference("modality", _OTHER_MODALITY, text)]

    def _difference(
        self,
        quantity: _Quantity,
        values: Sequence[float],
        ranges: Sequence[Range],
        text: Callable[[Sequence[float], Sequence[Range], int], str],
        name: str = "",
    ) -> Difference:
        """How far the numbers of one quantity are outside; `text` gets the furthest one too."""
        widening = 1 + _FEW / self.count
        distances = [
            _distance(value, span, quantity) / widening
            for value, span in zip(values, ranges, strict=True)
        ]
        furthest = int(np.argmax(distances))
        description = f"{name}{text(values, ranges, furthest)}"
        return Difference(quantity.name, distances[furthest], description)


def describe_cases(
    cases: Sequence[StoredCase], channel_names: Sequence[str]
) -> dict[str, Any] | None:
    """The range of prepared cases as plain values for a card; None where no profile is stored."""
    profiles = [case.profile for case in cases if case.profile is not None]
    return ScanRange.of(profiles, channel_names).to_dict() if profiles else None


def describe_differences(differences: Sequence[Difference]) -> str:
    """The largest differences in words, without those that are small compared with the first."""
    large = [item for item in differences if item.distance >= _NAMED * differences[0].distance]
    return "; ".join(difference.text for difference in large[:_MOST_NAMED])


def coordinates(profile: ScanProfile) -> np.ndarray:
    """The numbers by which a scan is compared, in units of the least differences.

    The distance of two scans is the largest difference of their coordinates.
    """
    groups = [(_SPACING, profile.spacing_mm), (_EXTENT, profile.extent)]
    for channel in profile.channels:
        groups += _groups(channel)
    return np.array(
        [quantity.scale(value) / quantity.least for quantity, values in groups for value in values]
    )


def _groups(channel: ChannelProfile) -> list[tuple[_Quantity, tuple[float, ...]]]:
    below_zero = (channel.below_zero,)
    return [
        (_AFTER, channel.after),
        (_BELOW_ZERO, below_zero),
        (_SHARE, (channel.share,)),
        (_DETAIL, channel.detail),
    ]


def _distance(value: float, span: Range, quantity: _Quantity) -> float:
    """How far a number is outside of a range, in standard deviations; 0 inside."""
    place = quantity.scale(value)
    beyond = max(quantity.scale(span.lowest) - place, place - quantity.scale(span.highest), 0.0)
    return beyond / max(span.deviation, quantity.least)


def _ranges(rows: Sequence[Sequence[float]], scale: Callable[[float], float]) -> tuple[Range, ...]:
    """The range of each column."""
    ranges = []
    for column in zip(*rows, strict=True):
        deviation = float(np.std([scale(value) for value in column]))
        ranges.append(
            Range(min(column), float(np.median(column)), max(column), float(f"{deviation:.4g}"))
        )
    return tuple(ranges)


def _to_lists(ranges: Sequence[Range]) -> list[list[float]]:
    return [list(span) for span in ranges]


def _from_lists(rows: Sequence[Sequence[float]]) -> tuple[Range, ...]:
    return tuple(Range(*map(float, row)) for row in rows)


def _spacing_text(values: Sequence[float], ranges: Sequence[Range], _: int) -> str:
    return f"spacing {_product(values)} mm (theirs {_product_of_ranges(ranges)})"


def _extent_text(values: Sequence[float], ranges: Sequence[Range], _: int) -> str:
    unit = "mm" if len(values) == 3 else "pixels"
    return f"extent {_product(values)} {unit} (theirs {_product_of_ranges(ranges)})"


def _after_text(values: Sequence[float], ranges: Sequence[Range], furthest: int) -> str:
    return (
        f"normalised values from the {_ordinal(AFTER[furthest])} to the "
        f"{_ordinal(AFTER[furthest + 1])} percentile are {values[furthest]:.2g} on average "
        f"(theirs {_span(ranges[furthest])})"
    )


def _below_zero_text(values: Sequence[float], ranges: Sequence[Range], furthest: int) -> str:
    return f"{100 * values[furthest]:.0f} % of its range is below 0 (theirs {_percent(ranges)})"


def _share_text(values: Sequence[float], ranges: Sequence[Range], furthest: int) -> str:
    return f"the body fills {100 * values[furthest]:.0f} % of its box (theirs {_percent(ranges)})"


def _detail_text(values: Sequence[float], ranges: Sequence[Range], furthest: int) -> str:
    word = "smoother" if values[furthest] < ranges[furthest].lowest else "rougher"
    return (
        f"{word}: neighbouring voxels differ by {values[furthest]:.2g} "
        f"(theirs {_span(ranges[furthest])})"
    )


def _ordinal(number: float) -> str:
    """`1st`, `10th`; the percentiles in use end in 1, 0 or 9."""
    return f"{number:g}{'st' if number == 1 else 'th'}"


def _percent(ranges: Sequence[Range]) -> str:
    """The only range, of a share, in percent."""
    (span,) = ranges
    return _span(span._replace(lowest=100 * span.lowest, highest=100 * span.highest))


def _product(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)


def _product_of_ranges(ranges: Sequence[Range]) -> str:
    return " x ".join(map(_span, ranges))


def _span(span: Range) -> str:
    low = f"{span.lowest:.3g}"
    high = f"{span.highest:.3g}"
    return low if low == high else f"{low} to {high}"
