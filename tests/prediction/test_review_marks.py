"""The table of marks is read as it was written; a damaged one is refused, with its reason."""

import pytest

from selfvox.errors import DataError
from selfvox.prediction.review_marks import COLUMNS, Mark, read_marks

HEADER = ",".join(COLUMNS)
DIGEST = "0" * 64


def table(tmp_path, *rows, header=HEADER):
    path = tmp_path / "review_marks.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_marks_are_read_by_case_and_quotes_of_spreadsheets_removed(tmp_path):
    path = table(
        tmp_path,
        f"ann,pass,,2026-01-31T12:00:00Z,{DIGEST},",
        f'bob,,"\'=one, two",2026-01-31T12:00:01Z,{DIGEST},bob.nii.gz',
    )
    assert read_marks(path) == {
        "ann": Mark("pass", "", "2026-01-31T12:00:00Z", DIGEST, ""),
        "bob": Mark("", "=one, two", "2026-01-31T12:00:01Z", DIGEST, "bob.nii.gz"),
    }


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["ann,good,,,,"], "mark of ann is 'good', not pass, fail, artefact"),
        (["ann,pass,,,,", "ann,fail,,,,"], "has ann twice"),
        (["ann,pass,,,abc,"], "label_sha256 of ann is no SHA-256"),
        ([f"ann,pass,,,{DIGEST},../ann.nii.gz"], "corrected of ann is no name of a file"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, rows, reason):
    with pytest.raises(DataError, match=reason):
        read_marks(table(tmp_path, *rows))


def test_a_table_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no column corrected, label_sha256"):
        read_marks(table(tmp_path, header="case,mark,note,marked"))
