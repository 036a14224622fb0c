"""How far a scan is outside of a range is a ratio that one can work out by hand."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from selfvox.data.preparation.scan_profile import AFTER, BEFORE, ChannelProfile, ScanProfile
from selfvox.data.preparation.scan_range import ScanRange, coordinates

CHANNEL = ChannelProfile(
    before=(0.0,) * len(BEFORE),
    after=tuple(-1 + 0.3 * number for number in range(len(AFTER) - 1)),
    share=0.5,
    detail=(0.4, 0.4, 0.4),
)


def a_profile(
    extent=(100.0, 120.0, 90.0), spacing=(1.0, 1.0, 1.0), modality=None, **channel
) -> ScanProfile:
    return ScanProfile(
        spacing_mm=spacing,
        extent=extent,
        channels=(dataclasses.replace(CHANNEL, **channel),),
        modality=modality,
    )


def distance(training: list[ScanProfile], profile: ScanProfile) -> float:
    return ScanRange.of(training, ("MR",)).compare(profile).distance


MANY = [a_profile()] * 1000  # so that the range is hardly widened


def test_within_the_range_nothing_differs() -> None:
    training = [a_profile((80.0, 120.0, 90.0)), a_profile((120.0, 130.0, 99.0))]
    assert distance(training, a_profile((100.0, 125.0, 95.0))) == 0


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (a_profile((200.0, 120.0, 90.0)), math.log(2) / math.log(1.15)),
        (a_profile((100.0, 120.0, 45.0)), math.log(2) / math.log(1.15)),
        (a_profile(spacing=(1.0, 1.0, 5.0)), math.log(5) / math.log(1.5)),
        (a_profile(after=tuple(value - 0.6 for value in CHANNEL.after)), 0.6 / 0.15),
        (a_profile(share=0.9), math.log(9) / 0.3),
        # of CT with air; the extremes do not count
        (a_profile(before=(-2000.0, -1000.0, 0.0, 250.0, 3000.0)), 0.8 / 0.12),
        (a_profile(before=(-100.0, 1.0, 50.0, 250.0, 300.0)), 0.0),
        (a_profile(detail=(0.4, 0.1, 0.4)), math.log(4) / math.log(1.3)),
    ],
)
def test_a_distance_counts_the_least_differences_beyond_the_range(profile, expected) -> None:
    assert distance(MANY, profile) == pytest.approx(expected, abs=0.02)
    # and the same between the two scans, in the coordinates of the checks
    assert abs(coordinates(profile) - coordinates(a_profile())).max() == pytest.approx(expected)


def test_scans_that_differ_allow_others_to_differ() -> None:
    lengths = [50.0, 100.0, 200.0, 400.0] * 250
    training = [a_profile((length, 120.0, 90.0)) for length in lengths]
    # the logarithms of powers of two have this deviation; 1600 is two doublings beyond
    deviation = math.log(2) * math.sqrt(1.25)
    expected = 2 * math.log(2) / deviation
    assert distance(training, a_profile((1600.0, 120.0, 90.0))) == pytest.approx(expected, abs=0.02)


def test_differences_of_several_kinds_add_up_like_the_sides_of_a_box() -> None:
    wider = a_profile((200.0, 120.0, 90.0))
    brighter = a_profile(after=tuple(value + 0.3 for value in CHANNEL.after))
    both = a_profile((200.0, 120.0, 90.0), after=brighter.channels[0].after)
    expected = math.hypot(distance(MANY, wider), distance(MANY, brighter))
    assert distance(MANY, both) == pytest.approx(expected, abs=0.02)


def test_a_second_channel_counts_only_where_it_is_further_outside() -> None:
    two = [dataclasses.replace(scan, channels=scan.channels * 2) for scan in MANY]
    usual = ScanRange.of(two, ("T1", "T2"))
    far, near = (
        dataclasses.replace(CHANNEL, after=tuple(value + shift for value in CHANNEL.after))
        for shift in (0.6, 0.45)
    )
    comparison = usual.compare(dataclasses.replace(two[0], channels=(near, far)))
    assert comparison.distance == pytest.approx(0.6 / 0.15, abs=0.02)
    assert [difference.text.partition(":")[0] for difference in comparison.differences] == [
        "T2",
        "T1",
    ]


def test_few_scans_widen_the_range() -> None:
    other = a_profile((200.0, 120.0, 90.0))
    assert distance([a_profile()], other) == pytest.approx(distance(MANY, other) / 3, abs=0.02)


@pytest.mark.parametrize(("count", "refused"), [(1, 8.0), (2, 6.0), (4, 5.0), (1000, 4.004)])
def test_of_few_training_scans_a_scan_is_far_outside_from_more_on(count, refused) -> None:
    ranges = ScanRange.of([a_profile()] * count, ("MR",))
    assert ranges.refused == pytest.approx(refused)
    widening = 1 + 2 / count
    for distance, is_far in ((refused - 0.1, False), (refused + 0.1, True)):
        wide = a_profile((100.0 * 1.15 ** (distance * widening), 120.0, 90.0))
        comparison = ranges.compare(wide)
        assert comparison.distance == pytest.approx(distance, abs=0.01)
        assert comparison.is_far == is_far


def test_far_scans_are_counted_and_the_furthest_is_described() -> None:
    ranges = ScanRange.of(MANY, ("MR",))
    wide = [a_profile((100.0 * factor, 120.0, 90.0)) for factor in (1.0, 2.0, 4.0)]
    assert ranges.describe_far(wide[:1]) is None
    text = ranges.describe_far(wide)
    assert text == "2 of 3 scans, extent 400 x 120 x 90 mm (theirs 100 x 120 x 90)"


def test_a_declared_modality_that_is_another_one_is_far_outside() -> None:
    training = [a_profile(modality="MR")] * 3
    assert distance(training, a_profile(modality="CT")) >= 4
    assert distance(training, a_profile(modality="MR")) == 0
    # many formats declare none
    assert distance(training, a_profile()) == 0
    assert distance([a_profile()] * 3, a_profile(modality="CT")) == 0


def test_the_message_names_both_numbers_of_the_largest_difference_first() -> None:
    training = [a_profile((90.0, 120.0, 90.0)), a_profile((110.0, 120.0, 90.0))] * 50
    other = a_profile((400.0, 120.0, 90.0), spacing=(1.0, 1.0, 2.0))
    differences = ScanRange.of(training, ("MR",)).compare(other).differences
    assert [difference.text for difference in differences] == [
        "extent 400 x 120 x 90 mm (theirs 90 to 110 x 120 x 90)",
        "spacing 1 x 1 x 2 mm (theirs 1 x 1 x 1)",
    ]


def test_a_range_survives_json() -> None:
    ranges = ScanRange.of([a_profile(modality="MR"), a_profile((9.0, 9.0, 9.0))], ("MR",))
    assert ScanRange.from_dict(json.loads(json.dumps(ranges.to_dict()))) == ranges
