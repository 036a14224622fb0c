"""What is said of the subjects of a data set, before a split is made of them."""

from pathlib import Path

import pytest

from selfvox.data import sources
from selfvox.data.subjects import identity_notes, subject_notes


def notes(root, *names, source="auto"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return subject_notes(sources.find_dataset(root, source))


def test_the_number_of_subjects_comes_with_an_example(tmp_path):
    assert notes(tmp_path / "single", "ann.nii.gz", "bob.nii.gz") == [
        "subjects: 2, one scan each, such as ann"
    ]
    frames = [f"p{n}/p{n}_frame{frame}.nii.gz" for n in range(6) for frame in ("01", "12")]
    assert notes(tmp_path / "frames", *frames) == [
        "subjects: 6 with 12 scans, such as p0 (p0_frame01, p0_frame12)"
    ]


@pytest.mark.fault("H4", "folders with several subjects", "a question")
def test_folders_of_several_subjects_are_a_question(tmp_path):
    """Each may be one person with scans that are called otherwise than the folder."""
    files = [f"p{n}/{n}{letter}.nii.gz" for n in (1, 2) for letter in "xy"]
    (_, question) = notes(tmp_path, *files)
    assert question.startswith(
        "2 folders have scans of several subjects, such as p1 (1x, 1y): are these different people?"
    )
    assert "columns image, label and subject" in question


def test_one_name_in_several_folders_is_a_question_where_it_counts_as_several_people(tmp_path):
    (_, question) = notes(tmp_path, "here/001.nii.gz", "there/001.nii.gz")
    assert question.startswith("1 names of files are in several folders")
    assert "such as here/001.nii.gz and there/001.nii.gz: are they?" in question
    (_, question) = notes(tmp_path / "visits", "old/p07.nii", "old/p08.nii", "new/p07.nii")
    assert "such as new/p07.nii and old/p07.nii: are they?" in question
    # these count as one person each
    assert len(notes(tmp_path / "people", "ann/t1.nii.gz", "bob/t1.nii.gz")) == 1
    assert len(notes(tmp_path / "slices", "p1/001.png", "p2/001.png")) == 1


@pytest.mark.parametrize("name", ["images", "part_1", "siteA", "train"])
def test_a_folder_for_many_people_is_no_question(tmp_path, name):
    files = [f"{name}{twice}/{n}x.nii.gz" for twice in ("", "_2") for n in range(3)]
    assert len(notes(tmp_path, *[file for file in files if Path(file).parent.name == name])) == 1


@pytest.mark.fault("H4", "a number after a person's", "a question")
@pytest.mark.parametrize(
    "pattern",
    ["case0{n}_0001{m}.nii", "p{n}_201{m}.nii", "ann{n}-x{m}_T1w.nii", "site{n}_scan{m}.nii"],
)
def test_a_number_after_one_of_several_beginnings_is_a_question(tmp_path, pattern):
    files = [pattern.format(n=n, m=m) for n in range(3) for m in range(3)]
    (_, question) = notes(tmp_path, *files)
    assert question.startswith("the names of 9 subjects have 3 beginnings, then a number, such as ")
    assert question.endswith("in a table with the columns image, label and subject")


@pytest.mark.parametrize(
    "pattern", ["hippocampus_{n}{m}.nii", "OAS1_{n}{m}.nii", "{word}_{m}.nii", "p{n}{m}_7.nii"]
)
def test_a_number_after_the_name_of_the_data_set_or_of_a_class_is_no_question(tmp_path, pattern):
    words = ("benign", "other")
    files = {pattern.format(n=n, m=m, word=words[n]) for n in range(2) for m in range(3)}
    assert len(notes(tmp_path, *files)) == 1


def test_a_numbered_scan_of_a_site_or_a_data_set_is_a_question(tmp_path):
    (_, question) = notes(tmp_path, *(f"siteA_scan{n}.nii" for n in range(9)))
    assert question.startswith("the names of 9 subjects have 1 beginning, then a number")


def test_a_table_without_subjects_leaves_the_same_open(tmp_path):
    files = [f"p{n}_{m}.nii" for n in range(2) for m in range(2)]
    notes(tmp_path, *files)
    (tmp_path / "scans.csv").write_text("image\n" + "".join(f"{file}\n" for file in files))
    (_, question) = notes(tmp_path)
    assert "have 2 beginnings" in question
    rows = "".join(f"{file},{Path(file).stem}\n" for file in files)
    (tmp_path / "scans.csv").write_text("image,subject\n" + rows)
    assert notes(tmp_path) == ["subjects: 4, one scan each, such as p0_0"]


def test_a_table_says_it_all(tmp_path):
    files = [f"p{n}/{n}{letter}.nii.gz" for n in (1, 2) for letter in "xy"]
    notes(tmp_path, *files)
    rows = "".join(f"{file},{number}\n" for number, file in enumerate(files))
    (tmp_path / "scans.csv").write_text("image,subject\n" + rows)
    assert notes(tmp_path) == ["subjects: 4, one scan each, such as 0"]


@pytest.mark.parametrize(
    ("name", "is_personal"),
    [
        ("a_19701231.nii.gz", True),
        ("1970-12-31/t1.nii.gz", True),
        ("DOE^JANE.nii.gz", True),
        ("sub-01/sub-01_T1w.nii.gz", False),
        ("case_20251.nii.gz", False),
    ],
)
def test_names_that_say_who_it_is_are_counted_and_not_repeated(tmp_path, name, is_personal):
    for file in (name, "other.nii.gz"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    notes_on_names = identity_notes(sources.find_dataset(tmp_path).cases)
    assert len(notes_on_names) == is_personal
    for note in notes_on_names:
        assert note.startswith("the file names of 1 scan have a date")
        assert "1970" not in note
        assert "DOE" not in note
