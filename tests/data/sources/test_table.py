"""A table of cases: the dialects people have, and every row that cannot be meant."""

import csv
import unicodedata

import pytest
from PIL import Image

from selfvox.data import sources
from selfvox.errors import DataError

FILES = ("a.nii.gz", "b.nii.gz", "c.nii.gz", "a_l.nii.gz", "b_l.nii.gz", "x.png")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for name in FILES:
        (root / name).touch()
    (tmp_path / "outside.nii.gz").touch()
    return root


def find(folder, text, name="list.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return sources.find_dataset(folder / name)


def refusal(folder, text, **keywords):
    with pytest.raises(DataError) as caught:
        find(folder, text, **keywords)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert "list.csv" in str(caught.value)
    return str(caught.value)


PLAIN = "image,label,subject,grade\na.nii.gz,a_l.nii.gz,ann,0\nb.nii.gz,b_l.nii.gz,bob,2\n"


def test_every_column_is_read(folder):
    dataset = find(folder, PLAIN)
    assert [(c.id, c.subject, c.images, c.label, c.grade) for c in dataset.cases] == [
        ("a", "ann", (folder / "a.nii.gz",), folder / "a_l.nii.gz", 0),
        ("b", "bob", (folder / "b.nii.gz",), folder / "b_l.nii.gz", 2),
    ]


@pytest.mark.fault("C1", "byte order mark, CRLF, semicolons, tabs", "read alike")
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (PLAIN, "utf-8-sig"),
        (PLAIN.replace("\n", "\r\n"), "utf-8"),
        (PLAIN.replace("\n", "\r\n"), "utf-8-sig"),
        (PLAIN.replace("\n", "\r"), "utf-8"),
        (PLAIN.replace(",", ";"), "utf-8"),
        (PLAIN.replace(",", "\t"), "utf-8"),
        (PLAIN.replace(",", " , "), "utf-8"),
        (PLAIN.replace("image,label", "Image,LABEL"), "utf-8"),
        (PLAIN + "\n,,,\n\n", "utf-8"),
        (PLAIN.replace("ann", '"ann"'), "utf-8"),
        (PLAIN.rstrip("\n"), "utf-8"),
    ],
)
def test_the_dialects_of_tables_mean_the_same(folder, text, encoding):
    assert find(folder, text, encoding=encoding).cases == find(folder, PLAIN).cases


def test_a_column_per_channel_names_the_channels(folder):
    dataset = find(folder, "image_t1,image_t2,subject\na.nii.gz,b.nii.gz,ann\n", name="list.tsv")
    assert dataset.channel_names == ("t1", "t2")
    assert [path.name for path in dataset.cases[0].images] == ["a.nii.gz", "b.nii.gz"]


def test_rows_of_one_subject_share_it_and_may_share_a_label(folder):
    dataset = find(
        folder, "image,label,subject\na.nii.gz,a_l.nii.gz,ann\nb.nii.gz,a_l.nii.gz,ann\n"
    )
    assert [(case.id, case.subject) for case in dataset.cases] == [("a", "ann"), ("b", "ann")]


def test_the_one_table_of_images_in_a_folder_is_found_and_two_are_refused(folder):
    (folder / "participants.tsv").write_text("participant_id\tage\nann\t3\n")
    (folder / "list.csv").write_text(PLAIN)
    assert sources.find_dataset(folder).cases == sources.find_dataset(folder / "list.csv").cases
    (folder / "second.csv").write_text(PLAIN)
    with pytest.raises(
        DataError, match=r"several tables with images \(list\.csv, second\.csv\); name one"
    ):
        sources.find_dataset(folder)


@pytest.mark.fault("C6", "files that the table does not list", "a note")
def test_what_is_empty_unused_or_not_listed_is_noted(folder):
    notes = find(folder, "image,grade,age\na.nii.gz,1,30\nb.nii.gz,,\n").notes
    assert "columns not used: age" in notes
    assert "1 of 2 cases have no grade" in notes
    assert (
        "4 scans next to those of the table not listed: a_l.nii.gz, b_l.nii.gz, c.nii.gz and 1 more"
        in notes
    )
    assert "all grades are 1: nothing to tell apart" in notes


@pytest.mark.fault("C5", "grades NaN, 1.5, negative", "refused with the line")
@pytest.mark.parametrize(
    "grade", ["nan", "NaN", "1.0", "-1", "1e0", "inf", "high", "²", "1000", "0x1", "1 2", "=1+1"]
)
def test_a_grade_that_is_no_whole_number_is_refused_with_its_line(folder, grade):
    message = refusal(folder, f"image,grade\na.nii.gz,1\nb.nii.gz,{grade}\n")
    assert f"line 3 has the grade '{grade}'" in message


@pytest.mark.fault(
    "C2 C4 C6 C10",
    "duplicates, missing columns and files, odd rows, fields of 200 kB, NUL bytes",
    "refused with the line",
)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no column 'image'"),
        ("\n\n", "no column 'image'"),
        ("image,grade\n", "header but no rows"),
        ("image,grade\n\n,\n", "header but no rows"),
        ("file,grade\na.nii.gz,1\n", "no column 'image'; add it (its columns: file, grade)"),
        ("imgae,grade\na.nii.gz,1\n", "no column 'image'; rename 'imgae'"),
        ("image,image\na.nii.gz,b.nii.gz\n", "two columns 'image'"),
        ("image,image_t1\na.nii.gz,b.nii.gz\n", "name every channel"),
        ("image\na.nii.gz\nb.nii.gz\na.nii.gz\n", "line 2 and line 4 both name a.nii.gz"),
        ("image\na.nii.gz\n./a.nii.gz\n", "line 2 and line 3 both name a.nii.gz"),
        ("image_x,image_y\na.nii.gz,a.nii.gz\n", "names one file twice"),
        ("image,label\na.nii.gz,b.nii.gz\nb.nii.gz,\n", "a label that is also an image"),
        ("image\na.nii.gz\nabsent.nii.gz\n", "line 3 names absent.nii.gz, but no such file"),
        ("image\nq.nii.gz\nr.nii.gz\n", "2 scans of the table are absent"),
        ("image,label\na.nii.gz,absent.nii.gz\n", "line 2 names absent.nii.gz"),
        ("image,grade\n,1\n", "line 2 has no image"),
        ("image_x,image_y\na.nii.gz,\n", "line 2 has no image_y"),
        ("image,grade\na.nii.gz,1,2\n", "line 2 has 3 cells under 2 columns"),
        ("image,grade\na.nii.gz\n", "line 2 has 1 cells under 2 columns"),
        ("image\na.doc\n", "not a scan"),
        ("image\na.nii.gz\nx.png\n", "volumes and pictures"),
        ("image\n../outside.nii.gz\n", "leads out of"),
        ("image,label\na.nii.gz,../outside.nii.gz\n", "leads out of"),
        ("image\n~/a.nii.gz\n", "no such file"),
        ("image\n=cmd()\n", "not a scan"),
        ("image\nin\\a.nii.gz\n", "not a path"),
        ("image\na.nii.gz\0\n", "NUL"),
        ("image\n" + "x" * 200_000 + "\n", "field larger than field limit"),
        ("image\n" + "x" * 5_000 + ".nii.gz\n", "cannot be followed"),
        ('image\n"a.nii.gz\n', "unexpected end of data"),
        ("image;grade\na.nii.gz,1\n", "separated by semicolons"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_in_one_line(folder, text, reason):
    assert reason in refusal(folder, text)


@pytest.mark.fault("C1", "UTF-16 and Latin-1", "refused with what to do")
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_another_encoding_is_refused_with_what_to_do(folder, encoding):
    assert "UTF-8" in refusal(folder, PLAIN.replace("ann", "änn"), encoding=encoding)


def test_an_absolute_path_is_the_word_of_a_person_who_names_the_table(folder):
    text = f"image\n{folder.parent / 'outside.nii.gz'}\na.nii.gz\n"
    dataset = find(folder, text)
    assert {case.images[0].name for case in dataset.cases} == {"outside.nii.gz", "a.nii.gz"}
    with pytest.raises(DataError, match="leads out of"):
        sources.find_dataset(folder)


@pytest.mark.fault("X2", "a link that leads out of the folder", "refused")
def test_a_link_out_of_the_folder_is_refused(folder):
    (folder / "link.nii.gz").symlink_to(folder.parent / "outside.nii.gz")
    assert "leads out of" in refusal(folder, "image\nlink.nii.gz\n")


def test_subjects_become_safe_names(folder):
    dataset = find(folder, 'image,subject\na.nii.gz,"../x\n\x1b[31m"\nb.nii.gz,\n')
    assert [case.subject for case in dataset.cases] == ["%2E%2E%2Fx%0A%1B[31m", "b"]


def test_a_written_table_reads_back(folder):
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["image", "subject"], ["a.nii.gz", 'says "a, b"; c'], ["b.nii.gz", "x\ty"]]
        )
    assert [case.subject for case in sources.find_dataset(folder).cases] == [
        "says %22a, b%22; c",
        "x%09y",
    ]


@pytest.mark.fault("H10", "a CSV of grades in a folder of pictures", "the folder is read")
def test_a_table_that_names_no_file_leaves_the_folder_to_other_sources(tmp_path):
    """As those of EyePACS and HAM10000, next to folders of pictures."""
    (tmp_path / "train").mkdir()
    for name in ("10_left.png", "10_right.png"):
        Image.new("L", (4, 4)).save(tmp_path / "train" / name)
    (tmp_path / "trainLabels.csv").write_text("image,level\n10_left,0\n10_right,2\n")
    (tmp_path / "meta.csv").write_text("lesion_id,image_id,dx\nx,ISIC_1,nv\n")
    dataset = sources.find_dataset(tmp_path)
    assert (dataset.source, len(dataset.cases)) == ("folder", 2)
    notes = " | ".join(dataset.notes)
    assert "trainLabels.csv not read: no file '10_left' of its column of images is there" in notes
    assert "meta.csv not read: no file 'ISIC_1'" in notes
    assert "the class of each scan in a column 'grade'" in notes
    with pytest.raises(DataError, match="no CSV or TSV with a column 'image'"):
        sources.find_dataset(tmp_path, "table")


def test_a_table_with_a_wrong_row_is_reported_rather_than_passed_over(folder):
    (folder / "list.csv").write_text("image\nabsent.nii.gz\na.nii.gz\n")
    with pytest.raises(DataError, match=r"line 2 names absent\.nii\.gz.*--source folder"):
        sources.find_dataset(folder)


@pytest.mark.fault("H10", "a table without file endings", "the files are found")
def test_the_ending_of_a_file_may_be_missing_where_one_file_has_that_name(folder):
    expected = find(folder, PLAIN).cases
    assert find(folder, PLAIN.replace(".nii.gz", "")).cases == expected
    (folder / "list.csv").write_text(PLAIN.replace(".nii.gz", ""))
    assert sources.find_dataset(folder).cases == expected
    (folder / "a.nrrd").touch()
    assert "names a, which is not a scan that can be read" in refusal(folder, "image\na\n")


@pytest.mark.fault("H10", "`image,label` with 0 and 1", "says `grade`")
def test_a_label_that_is_a_number_is_probably_a_grade(folder):
    message = refusal(folder, "image,label\na.nii.gz,0\nb.nii.gz,1\n")
    assert "number '0' as a label" in message
    assert "call the column grade" in message


def test_a_column_of_classes_under_another_name_is_pointed_out(folder):
    notes = find(folder, "image,age,level\na.nii.gz,71.5,0\nb.nii.gz,60,4\n").notes
    assert (
        "columns not used: age, level; if level is the class of the scans, call it grade" in notes
    )


def test_one_of_several_columns_of_images_may_be_no_file(folder):
    dataset = find(folder, "image_id,image_path,image_width\n7,a.nii.gz,512\n8,b.nii.gz,512\n")
    assert [case.images[0].name for case in dataset.cases] == ["a.nii.gz", "b.nii.gz"]
    assert dataset.channel_names == ("image",)


@pytest.mark.fault("H14", "Excel's empty columns and `sep=;`", "ignored")
@pytest.mark.parametrize(
    "text",
    [
        "sep=;\n" + PLAIN.replace(",", ";"),
        "SEP=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n"),
        PLAIN.replace("\n", ",,\n"),
        PLAIN.replace("0\n", "0,,\n"),
    ],
)
def test_what_excel_leaves_in_a_table_changes_nothing(folder, text):
    assert find(folder, text).cases == find(folder, PLAIN).cases


def test_lines_are_counted_from_the_first_of_the_file(folder):
    assert "line 4" in refusal(folder, "sep=;\nimage;grade\na.nii.gz;1\nb.nii.gz;high\n")


@pytest.mark.fault("H13", "NFC names in a table, NFD names on disk", "found")
def test_a_name_with_letters_in_two_pieces_finds_its_file(folder):
    (folder / unicodedata.normalize("NFD", "Müller.nii.gz")).touch()
    text = unicodedata.normalize("NFC", "image\nMüller.nii.gz\n")
    (case,) = find(folder, text).cases
    assert case.images[0].is_file()


def classes_of(folder, text):
    (folder / "classes.csv").write_text(text, encoding="utf-8")
    dataset = find(folder, PLAIN)
    assert dataset.classes == sources.find_dataset(folder, "folder:a_l").classes
    return dataset


def test_classes_have_the_names_of_their_table(folder):
    dataset = classes_of(folder, "Value;Name\n2;lesion\n1;organ, whole\n")
    assert dataset.classes == {0: "background", 1: "organ, whole", 2: "lesion"}
    assert classes_of(folder, "value,name\n0,air\n7,bone\n").classes == {0: "air", 7: "bone"}


def test_another_table_of_classes_is_not_read(folder):
    dataset = classes_of(folder, "class,label\n1,organ\n")
    assert dataset.classes is None
    assert any(note.startswith("classes.csv not read") for note in dataset.notes)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("1,a\n1,b\n", "line 3: b or its number is there twice"),
        ("1,a\n2,a\n", "line 3: a or its number is there twice"),
        ("one,a\n", "line 2: 'one', 'a' is no class"),
        ("70000,a\n", "is no class; write a number from 0 to 65535"),
        ("1,\n", "is no class"),
        ("", "names no class; add a row for each"),
    ],
)
def test_a_table_of_classes_with_a_wrong_row_is_refused(folder, rows, reason):
    with pytest.raises(DataError, match=reason):
        classes_of(folder, f"value,name\n{rows}")


def test_channels_of_one_file_have_the_names_of_their_table(folder):
    (folder / "channels.csv").write_text("name\nt1\nflair\n")
    assert find(folder, PLAIN).channel_names == ("t1", "flair")
    # columns of their own say it themselves
    assert find(folder, "image_x,image_y\na.nii.gz,b.nii.gz\n").channel_names == ("x", "y")
    (folder / "channels.csv").write_text("electrode\nF1\n")
    dataset = find(folder, PLAIN)
    assert dataset.channel_names == ("image",)
    assert any(note.startswith("channels.csv not read") for note in dataset.notes)


@pytest.mark.parametrize("names", ["", "t1\nt1\n"])
def test_a_table_of_channels_without_names_or_with_one_twice_is_refused(folder, names):
    (folder / "channels.csv").write_text(f"name\n{names}")
    with pytest.raises(DataError, match=r"channels\.csv: write one name for each channel"):
        find(folder, PLAIN)
