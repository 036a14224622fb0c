"""Names of cases and subjects: safe, unique, natural."""

import random
from pathlib import Path, PurePath

import pytest

from selfvox.data import naming
from selfvox.errors import DataError

HOSTILE = [
    "..", ".", "", "../../etc/passwd", "a/b", "a\\b", "/etc", "-rf", "~",
    "a\nb", "\x1b[31mred", "a\0b", "a\u202eb",
    "C:x", "name.", "name ", " name", "\udc80", "a..b", "a...",
    "<img src=x>", '"', "x" * 400, "ü" * 200, "%2E", "NUL\x7f",
]  # fmt: skip


@pytest.mark.fault(
    "C15",
    "names with separators, control characters, 400 letters",
    "a safe file name",
)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_stays_in_its_folder_on_one_line_and_in_the_limits_of_a_file_system(text, tmp_path):
    name = naming.safe_name(text)
    assert name.isprintable()
    assert ".." not in name
    assert not name.startswith(("-", "."))
    assert not set(name) & set('/\\:*?"<>|')
    assert len(name.encode()) <= 200
    assert naming.is_safe_name(name)
    (tmp_path / f"{name}.npy").touch()
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.npy"]


@pytest.mark.parametrize("text", [text for text in HOSTILE if naming.safe_name(text) != text])
def test_no_hostile_text_is_itself_a_safe_name(text):
    # other names with %XX are made by an escape, so nobody can tell them from ours
    assert text == "%2E" or not naming.is_safe_name(text)


def test_different_texts_have_different_names():
    rng = random.Random(0)
    texts = {"".join(rng.choices("a.-/%2E \n~", k=rng.randint(0, 6))) for _ in range(20_000)} | set(
        HOSTILE
    )
    assert len({naming.safe_name(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("name", ["sub-01_T1w", "Müller 3", "a.b-c_d~1", "患者7"])
def test_a_plain_name_is_kept(name):
    assert naming.safe_name(name) == name


def test_names_sort_as_people_count():
    names = ["scan10", "scan2", "scan1", "Scan3", "scan", "2b", "10a", "scan٣"]
    assert sorted(names, key=naming.natural_key) == [
        "2b",
        "10a",
        "scan",
        "scan1",
        "scan2",
        "Scan3",
        "scan10",
        "scan٣",
    ]


def named(*paths: str) -> list[str]:
    return naming.case_ids([PurePath(path) for path in paths], [".nii.gz"] * len(paths))


def people(*paths: str) -> list[str]:
    return naming.subject_names([PurePath(path) for path in paths], [".nii.gz"] * len(paths))


def test_a_case_is_called_by_its_stem_and_by_its_path_where_the_stem_repeats():
    assert named("a/x.nii.gz", "b/x.nii.gz", "b/y.nii.gz") == ["a_x", "b_x", "y"]


@pytest.mark.fault("H14", "a second patient in the folder", "the first keeps the name")
def test_a_case_keeps_its_name_when_a_second_patient_arrives():
    assert named("ann/t1.nii.gz") == ["ann_t1"]
    assert named("ann/t1.nii.gz", "bob/t1.nii.gz") == ["ann_t1", "bob_t1"]
    assert named("t1.nii.gz", "ann/scan_7.nii.gz") == ["t1", "scan_7"]


def test_names_stay_unique_where_joined_paths_meet():
    names = named("a_b/c.nii.gz", "a/b_c.nii.gz", "a/c.nii.gz", "a_b_c.nii.gz", "q/b_c.nii.gz")
    assert len({name.casefold() for name in names}) == 5


def test_names_that_differ_only_in_case_are_told_apart_or_refused():
    assert named("a/X.nii.gz", "b/x.nii.gz") == ["a_X", "b_x"]
    with pytest.raises(DataError, match="upper and lower case"):
        named("X.nii.gz", "x.nii.gz")


@pytest.mark.fault(
    "H4",
    "frames, visits, dates, sides and kinds of scan of a person",
    "one subject",
)
@pytest.mark.parametrize(
    ("paths", "subjects"),
    [
        (
            ["sub-07/ses-1/anat/sub-07_ses-1_T1w.nii.gz", "sub-07/ses-2/func/x.nii.gz"],
            ["sub-07", "sub-07"],
        ),
        (["ann_ses-2_run-1_T1w.nii.gz", "ann_FLAIR.nii.gz", "ann.nii.gz"], ["ann", "ann", "ann"]),
        (["ann/t1.nii.gz", "ann/t2.nii.gz", "bob/t1.nii.gz"], ["ann", "ann", "bob"]),
        (["ann/visit_1/ct.nii.gz", "ann/visit_2/ct.nii.gz"], ["ann", "ann"]),
        (
            ["ann_visit1.nii.gz", "ann_visit_2_T1.nii.gz", "ann-ses3.nii.gz", "ann_tp4.nii.gz"],
            ["ann"] * 4,
        ),
        (
            ["10_left.nii.gz", "10_right.nii.gz", "1_OD.nii.gz", "1_OS.nii.gz"],
            ["10", "10", "1", "1"],
        ),
        (["Ann_T1.nii.gz", "ann_T2.nii.gz", "ANN/t1.nii.gz"], ["Ann", "Ann", "Ann"]),
        (
            ["left/7.nii.gz", "right/7.nii.gz", "left/8.nii.gz", "right/8.nii.gz"],
            ["7", "7", "8", "8"],
        ),
        (["visitor_1.nii.gz", "upright.nii.gz", "left.nii.gz"], ["visitor_1", "upright", "left"]),
        (["ann/brain.nii.gz", "bob/brain.nii.gz"], ["ann", "bob"]),
        (["train/001.nii.gz", "train/002.nii.gz", "test/003.nii.gz"], ["001", "002", "003"]),
        (["scan_01/t1.nii.gz", "scan_02/t1.nii.gz"], ["scan_01", "scan_02"]),
        (
            ["hippocampus_001.nii.gz", "hippocampus_0002.nii.gz"],
            ["hippocampus_001", "hippocampus_0002"],
        ),
        (["t1.nii.gz"], ["t1"]),
        (
            ["p1/p1_frame01.nii.gz", "p1/p1_frame12.nii.gz", "p2/p2_7.nii.gz", "p2/p2_8.nii.gz"],
            ["p1", "p1", "p2", "p2"],
        ),
        (
            ["ct_train/ct_train_1.nii.gz", "ct_train/ct_train_2.nii.gz"],
            ["ct_train_1", "ct_train_2"],
        ),
        (["study1/study1_7.nii.gz", "study2/study2_7.nii.gz"], ["study1_7", "study2_7"]),
        (["benign/benign (1).nii.gz", "benign/benign (2).nii.gz"], ["benign (1)", "benign (2)"]),
        (["siteA/1.nii.gz", "siteB/1.nii.gz", "siteB/2.nii.gz"], ["siteA_1", "siteB_1", "siteB_2"]),
        (["p1/1.nii.gz", "p1/2.nii.gz", "p2/1.nii.gz", "p2/3.nii.gz"], ["p1", "p1", "p2", "p2"]),
        (
            ["1_S_2/x/2006-05-02/ADNI_1_S_2_I9.nii.gz", "1_S_3/x/2006-05-02/ADNI_1_S_3_I8.nii.gz"],
            ["1_S_2", "1_S_3"],
        ),
        (["P1/03-23-2003-NA/CT.nii.gz", "P1/04-23-2003-NA/CT.nii.gz"], ["P1", "P1"]),
        (["Oslo/0/pre/FLAIR.nii.gz", "Utrecht/0/pre/FLAIR.nii.gz"], ["Oslo_0", "Utrecht_0"]),
        (
            ["I_01L.nii.gz", "I_01R.nii.gz", "OAS_1_MR1.nii.gz", "OAS_1_MR2.nii.gz"],
            ["I_01"] * 2 + ["OAS_1"] * 2,
        ),
        (
            ["a_20060502.nii.gz", "a_2007-05-02.nii.gz", "a_slice12.nii.gz", "a_ED.nii.gz"],
            ["a"] * 4,
        ),
        *(
            (
                [f"{start}_{end}.nii.gz" for start in ("p1", "p2") for end in ends],
                ["p1"] * 2 + ["p2"] * 2,
            )
            for ends in (
                ("z012", "z013"),
                ("Z_0012", "Z_0013"),
                ("20190212T101112", "2019-02-13_10-11-12"),
                ("m06", "m12"),
                ("bl", "fu"),
                ("v1", "v2_T1w"),
                ("scan1", "scan2_FLAIR"),
                ("portal", "arterial"),
                ("axial", "sagittal"),
                ("acq1", "img_3"),
            )
        ),
        (["p1/2012/t1.nii.gz", "p1/2013/t1.nii.gz", "p2/2012/t1.nii.gz"], ["p1", "p1", "p2"]),
        (["p1/scan_a/t1.nii.gz", "p1/scan_b/t1.nii.gz", "p2/x.nii.gz"], ["p1", "p1", "x"]),
        # a number after what names no person is the person's
        (["img_3.nii.gz", "img_4.nii.gz", "v1.nii.gz"], ["img_3", "img_4", "v1"]),
        (["siteA_scan1.nii.gz", "siteB_scan1.nii.gz"], ["siteA_scan1", "siteB_scan1"]),
        (["benign_img_3.nii.gz", "other_img_3.nii.gz"], ["benign_img_3", "other_img_3"]),
        # what all share is the data set's
        (["FLARE22_img_3.nii.gz", "FLARE22_img_4.nii.gz"], ["FLARE22_img_3", "FLARE22_img_4"]),
        (["2012/t1.nii.gz", "2013/t1.nii.gz"], ["2012", "2013"]),
    ],
)
def test_scans_of_one_person_share_a_subject(paths, subjects):
    assert people(*paths) == subjects


def test_paths_outside_the_root_are_named_from_the_folder_they_share():
    paths = [Path("/home/someone/study/a/t1.nii.gz"), Path("/home/someone/study/b/t1.nii.gz")]
    assert naming.relative_paths(paths, Path("/elsewhere")) == [
        PurePath("a/t1.nii.gz"),
        PurePath("b/t1.nii.gz"),
    ]
