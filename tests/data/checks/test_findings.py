"""Each check names the scans with a mistake of its kind, and none of a sound data set."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from selfvox.data.checks.grids import check_grids
from selfvox.data.checks.labels import check_labels
from selfvox.data.checks.people import check_people, describe_split
from selfvox.data.checks.scan_facts import ScanFacts
from selfvox.data.checks.values import check_values
from selfvox.data.preparation.geometry import Geometry
from selfvox.data.preparation.likeness import coarse_picture
from selfvox.data.preparation.scan_profile import ChannelProfile, ScanProfile

GEOMETRY = Geometry(
    shape=(30, 30, 20),
    orientation=((0, 1), (1, 1), (2, 1)),
    start=(0, 0, 0),
    stop=(30, 30, 20),
    step=(1.0, 1.0, 1.0),
    prepared_shape=(30, 30, 20),
)
CHANNEL = ChannelProfile(
    before=(0.0, 0.0, 50.0, 90.0, 99.0), after=(0.0,) * 6, share=0.5, detail=(0.3,) * 3
)
PROFILE = ScanProfile(spacing_mm=(1.0, 1.0, 1.0), extent=(30.0, 30.0, 20.0), channels=(CHANNEL,))


def a_scan(id, subject=None, **changes):
    facts = ScanFacts(
        id=id,
        subject=subject or id,
        geometry=GEOMETRY,
        profile=PROFILE,
        file_hash=f"file {id}",
        voxel_hash=f"voxels {id}",
        coarse_picture="",
        has_label=False,
        label_values=(),
    )
    return dataclasses.replace(facts, **changes)


def found(findings, check, severity):
    """The scans of each finding of this kind."""
    return [
        set(item.scans) for item in findings if (item.check, item.severity) == (check, severity)
    ]


def test_one_scan_under_two_subjects_is_an_error_and_twice_under_one_a_warning():
    scans = [
        a_scan("a", file_hash="same"),
        a_scan("b", file_hash="same"),
        a_scan("c1", "c", voxel_hash="same"),
        a_scan("c2", "c", voxel_hash="same"),
        a_scan("d"),
    ]
    findings = check_people(scans)
    assert found(findings, "duplicates", "error") == [{"a", "b"}]
    assert found(findings, "duplicates", "warning") == [{"c1", "c2"}]


def test_a_resampled_copy_under_another_subject_is_a_warning():
    rng = np.random.default_rng(0)
    data = ndimage.gaussian_filter(rng.random((40, 40, 30)), 2)
    smaller = ndimage.zoom(data, 0.8, order=1)
    pictures = [coarse_picture(image[None]) for image in (data, smaller, data[::-1, ::-1])]
    scans = [a_scan(id, coarse_picture=text) for id, text in zip("abc", pictures, strict=True)]
    assert found(check_people(scans), "duplicates", "warning") == [{"a", "b"}]
    # of one person they may stay
    of_one = [dataclasses.replace(scan, subject="one") for scan in scans]
    assert found(check_people(of_one), "duplicates", "warning") == []


def test_a_copy_of_a_file_is_reported_once():
    scans = [a_scan(id, file_hash="same", voxel_hash="same") for id in "ab"]
    assert len(found(check_people(scans), "duplicates", "error")) == 1


@pytest.mark.parametrize(
    "names",
    [("sub-01", "sub-1"), ("Anna_B", "anna-b"), ("P01a", "P01b"), ("017-pre", "017-post")],
)
def test_names_that_may_be_one_person_are_asked_about(names):
    scans = [*(a_scan(name) for name in names), a_scan("sub-02"), a_scan("P3"), a_scan("P30")]
    assert found(check_people(scans), "people", "warning") == [set(names)]


def test_different_numbers_are_different_people():
    scans = [a_scan(name) for name in ("sub-1", "sub-10", "sub-100", "hippocampus_001", "IDRiD_01")]
    assert found(check_people(scans), "people", "warning") == []


def test_a_split_keeps_every_scan_of_a_subject_in_one_part_and_misses_no_value_silently():
    scans = [
        a_scan(f"s{person}_{visit}", f"s{person}", has_label=True, label_values=(0, 1))
        for person in range(10)
        for visit in range(2)
    ]
    (note,) = describe_split(scans)
    assert "16 labelled scans of 8 subjects for train" in note.text
    assert "4 labelled scans of 2 subjects for validation" in note.text
    rare = [dataclasses.replace(scans[0], label_values=(0, 1, 7)), *scans[1:]]
    (warning,) = [item for item in describe_split(rare) if item.severity == "warning"]
    assert "has the label values 7" in warning.text


def test_all_scans_of_one_subject_leave_nobody_to_validate_on():
    (warning,) = describe_split([a_scan("a1", "a"), a_scan("a2", "a")])
    assert "all scans are of one subject, a" in warning.text


def labelled(*labels):
    return [
        a_scan(f"s{number}", has_label=bool(values), label_values=values)
        for number, values in enumerate(labels)
    ]


def test_one_structure_with_two_numbers_is_a_warning_and_an_error_where_prepare_refuses_it():
    findings = check_labels(labelled((0, 1), (0, 1), (0, 2)), None)
    assert found(findings, "labels", "warning") == [{"s2"}]
    two_numbers = labelled((0, 1), (0, 1), (0, 255))
    assert found(check_labels(two_numbers, None), "labels", "error") == [{"s2"}]
    declared = check_labels(two_numbers, {0: "background", 1: "cyst", 255: "tumour"})
    assert found(declared, "labels", "error") == []
    assert found(declared, "labels", "warning") == [{"s2"}]


def test_values_of_few_labels_and_classes_of_none_are_named():
    scans = labelled(*[(0, 1, 2)] * 20, (0, 1, 9))
    findings = check_labels(scans, {0: "background", 1: "a", 2: "b", 3: "c", 9: "d"})
    assert found(findings, "labels", "warning") == [{"s20"}, set()]
    assert "3 (c)" in findings[-1].text


def test_empty_labels_grey_values_and_missing_labels_are_distinguished():
    scans = labelled((0, 1), (0,), tuple(range(256)), ())
    findings = check_labels(scans, None)
    assert {"s1"} in found(findings, "labels", "warning")
    assert found(findings, "labels", "error") == [{"s2"}]
    assert found(findings, "labels", "note") == [{"s3"}]


def test_sound_labels_have_no_findings():
    assert check_labels(labelled(*[(0, 1, 2)] * 9), {0: "background", 1: "a", 2: "b"}) == []


def with_profile(id, **changes):
    return a_scan(id, profile=dataclasses.replace(PROFILE, **changes))


def test_odd_grids_are_named():
    usual = [a_scan(str(number)) for number in range(6)]
    metres = with_profile("metres", spacing_mm=(0.001, 0.001, 0.001))
    thick = with_profile("thick", spacing_mm=(1.0, 1.0, 5.0))
    thicker = with_profile("thicker", spacing_mm=(1.0, 1.0, 1.5))
    slab = a_scan("slab", geometry=dataclasses.replace(GEOMETRY, shape=(30, 30, 4)))
    empty = a_scan("empty", geometry=dataclasses.replace(GEOMETRY, stop=(5, 5, 5)))
    flipped = a_scan(
        "lps",
        geometry=dataclasses.replace(GEOMETRY, orientation=((0, -1), (1, -1), (2, 1))),
    )
    findings = check_grids([*usual, metres, thick, thicker, slab, empty, flipped])
    assert found(findings, "unit", "error") == [{"metres"}]
    assert found(findings, "spacing", "warning") == [{"metres", "thick"}]
    assert found(findings, "spacing", "note") == [{"thicker"}]
    assert found(findings, "size", "warning") == [{"slab"}]
    assert found(findings, "empty", "warning") == [{"empty"}]
    assert found(findings, "orientation", "note") == [{"lps"}]
    assert check_grids(usual) == []


def test_a_border_that_few_scans_reach_is_named_and_one_of_all_scans_is_not():
    inside = dataclasses.replace(GEOMETRY, start=(0, 5, 2), stop=(30, 25, 18))
    scans = [a_scan(str(number), geometry=inside) for number in range(10)]
    assert check_grids(scans) == []
    high = a_scan("high", geometry=dataclasses.replace(inside, stop=(30, 25, 20)))
    findings = check_grids([*scans, high])
    assert found(findings, "border", "note") == [{"high"}]
    assert "the superior border of the image, where 10 others are not" in findings[0].text
    # of few scans nothing is usual
    assert check_grids([*scans[:8], high]) == []
    low = a_scan("low", geometry=dataclasses.replace(inside, start=(0, 0, 0)))
    texts = {finding.text.split(" border")[0] for finding in check_grids([*scans, low])}
    assert texts == {"filled up to the posterior", "filled up to the inferior"}


def test_modalities_that_are_mixed_and_ct_without_units_are_errors():
    def values(low):
        return (dataclasses.replace(CHANNEL, before=(low, low, 0.0, 900.0, 2000.0)),)

    ct = [with_profile(f"ct{number}", channels=values(-1000.0)) for number in range(3)]
    shifted = with_profile("shifted", channels=values(24.0))
    # without air in the picture
    cropped = with_profile("cropped", channels=values(-150.0))
    assert found(check_values([*ct, shifted, cropped], ["CT"]), "values", "error") == [{"shifted"}]
    mixed = [with_profile(name, modality=name[:2]) for name in ("MR1", "MR2", "CT1")]
    assert found(check_values(mixed, ["image"]), "modality", "error") == [{"CT1"}]
    assert check_values([a_scan(str(number)) for number in range(3)], ["MR"]) == []


def test_a_scan_of_another_scale_is_named_and_the_spread_of_mr_is_not():
    def highest(value):
        return (dataclasses.replace(CHANNEL, before=(0.0, 0.0, value / 9, value, 1.2 * value)),)

    # the hippocampi of the decathlon differ by 8 times, without those of another scale
    values = [110.0, 300.0, 500.0, 877.0, 900.0, 1000.0, 1500.0, 2000.0]
    mr = [with_profile(f"mr{n}", channels=highest(value)) for n, value in enumerate(values)]
    assert check_values(mr, ["image"]) == []
    high = with_profile("high", channels=highest(877_000.0))
    low = with_profile("low", channels=highest(0.877))
    assert found(check_values([*mr, high, low], ["image"]), "values", "note") == [{"high", "low"}]


def test_orientations_are_spelt_as_nibabel_does():
    affine = np.array([[0, -2, 0, 0], [0, 0, 3, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
    orientation = tuple(
        (int(axis), int(sign)) for axis, sign in nib.orientations.io_orientation(affine)
    )
    turned = a_scan("a", geometry=dataclasses.replace(GEOMETRY, orientation=orientation))
    assert turned.orientation == "".join(nib.aff2axcodes(affine))
