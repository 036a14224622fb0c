"""A plain folder: what is a scan, what is its label, and what is left out with a note."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from selfvox.data import sources
from selfvox.errors import DataError, UsageError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def labels(dataset):
    return {case.images[0].name: case.label.name if case.label else None for case in dataset.cases}


def notes(dataset):
    return " | ".join(dataset.notes)


def test_every_subfolder_is_searched_and_cases_come_in_natural_order(tmp_path):
    touch(tmp_path, "s10.nii.gz", "a/s2.NII", "a/b/c/s1.nrrd", "s3.mha", "x/s4.mhd", "x/s4.raw")
    dataset = sources.find_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["s1", "s2", "s3", "s4", "s10"]
    assert "ignored: 1 (1 .raw)" in notes(dataset)


def test_hidden_files_and_others_are_counted(tmp_path):
    touch(
        tmp_path,
        "a.nii.gz",
        "._a.nii.gz",
        ".git/b.nii.gz",
        "__MACOSX/c.nii.gz",
        "readme.txt",
        "x.csv",
        "y.csv",
        "LICENSE",
    )
    dataset = sources.find_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["a"]
    assert "hidden files and folders ignored: 3" in notes(dataset)
    assert "4 (2 .csv" in notes(dataset)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/a.nii.gz", "labels/a.nii.gz"),
        ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz"),
        ("imagesTs/a.nii.gz", "labelsTs/a.nii.gz"),
        ("images/a.nii.gz", "masks/a.nii.gz"),
        ("images/a.nii.gz", "segmentations/a.nrrd"),
        ("scans/a.nii.gz", "masks/a_mask.nii.gz"),
        ("a.nii.gz", "labels/a.nii.gz"),
        ("train/images/a.nii.gz", "train/labels/a.nii.gz"),
        ("images/train/a.nii.gz", "labels/train/a.nii.gz"),
        ("a.nii.gz", "a_seg.nii.gz"),
        ("deep/a.nii.gz", "deep/a_label.nii.gz"),
        ("a.nii.gz", "a-mask.nii"),
        ("a.jpg", "a_segmentation.png"),
        ("a.nii.gz", "a_labels.nii.gz"),
        ("images/a.png", "labels/a.png"),
        ("images/a.jpg", "masks/a.png"),
    ],
)
def test_a_label_is_recognised_in_the_usual_places(tmp_path, image, label):
    dataset = sources.find_dataset(touch(tmp_path, image, label))
    assert [(case.images, case.label) for case in dataset.cases] == [
        ((tmp_path / image,), tmp_path / label)
    ]


def test_labels_of_another_folder_or_name_are_not_taken(tmp_path):
    touch(
        tmp_path,
        "one/images/a.nii.gz",
        "two/labels/a.nii.gz",
        "imagesTs/b.nii.gz",
        "labelsTr/b.nii.gz",
        "c.nii.gz",
    )
    dataset = sources.find_dataset(touch(tmp_path, "d_seg.nii.gz", "x/c_seg.nii.gz"))
    assert labels(dataset) == {"a.nii.gz": None, "b.nii.gz": None, "c.nii.gz": None}
    assert "named like labels, but no scan of the same name exists, left out: " in notes(dataset)
    assert "1 more" in notes(dataset)


@pytest.mark.fault("H1", "two candidates for one label", "a question")
def test_two_labels_of_one_scan_are_a_question_that_one_word_answers(tmp_path):
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz", "a_mask.nii.gz", "b.nii.gz", "b_seg.nii.gz")
    with pytest.raises(DataError, match=r"a\.nii\.gz has 2 files that may be its label") as asked:
        sources.find_dataset(tmp_path)
    assert "--source folder:mask or folder:seg, none with folder:none" in str(asked.value)
    answers = {
        "folder:seg": {"a.nii.gz": "a_seg.nii.gz", "b.nii.gz": "b_seg.nii.gz"},
        "folder:mask": {"a.nii.gz": "a_mask.nii.gz", "b.nii.gz": None},
        "folder:none": {"a.nii.gz": None, "b.nii.gz": None},
    }
    for answer, expected in answers.items():
        assert labels(sources.find_dataset(tmp_path, answer)) == expected


def test_a_label_that_fits_several_scans_is_a_question_too(tmp_path):
    touch(tmp_path, "7/CT.nii.gz", "7/PET.nii.gz", "7/SEG.nii.gz", "8/CT.nii.gz", "8/PET.nii.gz")
    with pytest.raises(DataError, match=r"7/SEG\.nii\.gz may be the label of 2 scans") as asked:
        sources.find_dataset(tmp_path)
    assert "folder:CT or folder:PET" in str(asked.value)
    dataset = sources.find_dataset(tmp_path, "folder:PET")
    assert [(case.id, case.label and case.label.name) for case in dataset.cases] == [
        ("7_PET", "SEG.nii.gz"),
        ("8_PET", None),
    ]


@pytest.mark.parametrize("choice", ["folder:absent", "folder:", "folder:seg,absent"])
def test_a_word_that_no_file_answers_to_is_refused(tmp_path, choice):
    with pytest.raises(UsageError, match=r"no file in .* is in a folder"):
        sources.find_dataset(touch(tmp_path, "a.nii.gz", "a_seg.nii.gz"), choice)


@pytest.mark.parametrize("name", ["scans.txt", "a.nii.gz"])
def test_a_choice_needs_a_folder(tmp_path, name):
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz")
    (tmp_path / "scans.txt").write_text("a.nii.gz\n")
    with pytest.raises(UsageError, match="is no folder"):
        sources.find_dataset(tmp_path / name, "folder:seg")


def test_a_folder_of_labels_named_itself_is_a_folder_of_scans(tmp_path):
    dataset = sources.find_dataset(touch(tmp_path / "labelsTr", "a.nii.gz", "b.nii.gz"))
    assert [case.id for case in dataset.cases] == ["a", "b"]


def test_a_folder_with_labels_alone_says_why_it_has_no_scan(tmp_path):
    with pytest.raises(DataError, match="named like labels"):
        sources.find_dataset(touch(tmp_path, "labels/a.nii.gz"))


def test_dimensions_are_never_mixed(tmp_path):
    volumes = [f"{number}.nii.gz" for number in range(8)]
    dataset = sources.find_dataset(touch(tmp_path / "volumes", *volumes, "qc/0.png", "qc/1.jpg"))
    assert len(dataset.cases) == 8
    assert "2 pictures left out next to 8 volumes: 0.png, 1.jpg" in notes(dataset)
    with pytest.raises(DataError, match="8 volumes and 3 pictures"):
        sources.find_dataset(touch(tmp_path / "volumes", "qc/2.png"))
    dataset = sources.find_dataset(
        touch(tmp_path / "pictures", "x.nii", "a.png", "b.tif", "c.tiff", "d.jpeg")
    )
    assert [case.id for case in dataset.cases] == ["a", "b", "c", "d"]
    assert "1 volume left out" in notes(dataset)


def test_a_single_file_is_a_data_set_of_one_even_when_named_like_a_label(tmp_path):
    touch(tmp_path, "a_seg.nii.gz", "b.nii.gz")
    dataset = sources.find_dataset(tmp_path / "a_seg.nii.gz")
    assert [(case.id, case.images) for case in dataset.cases] == [
        ("a_seg", (tmp_path / "a_seg.nii.gz",))
    ]


@pytest.mark.parametrize(
    ("mode", "names"), [("L", 1), ("I;16", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)]
)
def test_a_colour_picture_has_three_channels_and_a_grey_one_has_one(tmp_path, mode, names):
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    assert len(sources.find_dataset(tmp_path).channel_names) == names


def test_links_to_folders_are_not_followed_and_links_to_files_are(tmp_path):
    touch(tmp_path / "elsewhere", "b.nii.gz")
    root = touch(tmp_path / "root", "a.nii.gz")
    (root / "loop").symlink_to(root)
    (root / "away").symlink_to(tmp_path / "elsewhere")
    (root / "b.nii.gz").symlink_to(tmp_path / "elsewhere" / "b.nii.gz")
    dataset = sources.find_dataset(root)
    assert [case.id for case in dataset.cases] == ["a", "b"]
    assert "links to folders not followed: 2" in notes(dataset)


@pytest.mark.fault(
    "C15 X7",
    "line breaks, escapes and markup in file names",
    "escaped, on one line",
)
def test_hostile_file_names_become_safe_ids_and_one_line_notes(tmp_path):
    for name in (
        b"a\nb.nii.gz",
        b"\x1b[31mred.nii.gz",
        b"\xff\xfe.nii.gz",
        b"-rf.nii.gz",
        b"a..b...nii.gz",
        b"x\ny_seg.nii.gz",
    ):
        (tmp_path / os.fsdecode(name)).touch()
    dataset = sources.find_dataset(tmp_path)
    assert len(dataset.cases) == 5
    assert all(
        text.isprintable() and ".." not in text
        for case in dataset.cases
        for text in (case.id, case.subject)
    )
    assert all(note.isprintable() for note in dataset.notes)


@pytest.mark.fault("N38", "a pipe among the pictures", "listing goes on")
def test_a_pipe_named_like_a_picture_does_not_stop_the_listing(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert sources.find_dataset(tmp_path).channel_names == ("image",)


def test_a_list_names_scans_relative_to_itself_or_absolute(tmp_path):
    touch(tmp_path, "study/a/t1.nii.gz", "study/b.nii.gz", "far/c.nii.gz")
    listed = tmp_path / "study" / "scans.txt"
    listed.write_bytes(
        b"\xef\xbb\xbfa/t1.nii.gz\r\n\r\nb.nii.gz\r\n" + f"{tmp_path / 'far/c.nii.gz'}\r\n".encode()
    )
    dataset = sources.find_dataset(listed)
    assert [(case.id, case.subject) for case in dataset.cases] == [
        ("b", "b"),
        ("c", "c"),
        ("study_a_t1", "study_a"),
    ]
    assert {case.images[0].resolve() for case in dataset.cases} == {
        tmp_path / "study/a/t1.nii.gz",
        tmp_path / "study/b.nii.gz",
        tmp_path / "far/c.nii.gz",
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("absent.nii.gz\n", "no such file"),
        ("a.nii.gz\na.nii.gz\n", "more than once"),
        ("a.nii.gz\n./a.nii.gz\n", "more than once"),
        ("\n\n", "lists no scan"),
        ("notes.doc\n", "not a scan"),
        ("../outside.nii.gz\n", "leads out of"),
        ("a.nii.gz\nb.png\n", "volumes and pictures"),
        ("a\\b.nii.gz\n", "not a path"),
        ("a.nii.gz\0\n", "NUL"),
        ("x" * 5000 + ".nii.gz", "cannot be followed"),
    ],
)
def test_a_bad_list_is_refused_in_one_line(tmp_path, content, reason):
    touch(tmp_path, "in/a.nii.gz", "in/b.png", "outside.nii.gz")
    (tmp_path / "in/scans.txt").write_text(content)
    with pytest.raises(DataError, match=reason) as refusal:
        sources.find_dataset(tmp_path / "in/scans.txt")
    assert str(refusal.value).isprintable()
    assert "scans.txt" in str(refusal.value)


def test_the_root_may_be_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz"))
    assert labels(sources.find_dataset(Path("."))) == {"a.nii.gz": "a.nii.gz"}


def test_the_work_grows_with_the_number_of_scans_and_no_faster(tmp_path):
    """Counted in calls of Python functions, of scans with labels and repeated names."""
    calls = {}
    for count in (100, 400):
        names = [f"{number % 20}/{number // 40}.nii.gz" for number in range(count)]
        masks = [name.replace(".nii.gz", "_seg.nii.gz") for name in names]
        root = touch(tmp_path / str(count), *names, *masks)
        events = []
        sys.setprofile(lambda frame, event, argument, events=events: events.append(event))
        try:
            dataset = sources.find_dataset(root, "folder")
        finally:
            sys.setprofile(None)
        assert len(dataset.cases) == len(set(names))
        calls[count] = events.count("call") / len(dataset.cases)
    assert calls[400] < 1.5 * calls[100]
