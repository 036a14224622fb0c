"""BIDS: subjects and sessions, one kind of scan or all, and what lies beside."""

from pathlib import Path

import pytest

from selfvox.data import sources
from selfvox.data.preparation import split
from selfvox.errors import DataError, UsageError

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
needs_scans = pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans are not here")


def dataset(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_sessions_are_cases_of_one_subject_and_no_split_parts_them(tmp_path):
    names = [f"sub-{s}/ses-{v}/anat/sub-{s}_ses-{v}_T1w.nii.gz" for s in "abcd" for v in "12"]
    found = sources.find_dataset(dataset(tmp_path, *names))
    assert (found.source, len(found.cases)) == ("bids", 8)
    assert [(each.id, each.subject) for each in found.cases[:2]] == [
        ("sub-a_ses-1_T1w", "sub-a"),
        ("sub-a_ses-2_T1w", "sub-a"),
    ]
    parted = split.make_split({each.subject for each in found.cases}, 1, 1, 0)
    assert sorted((*parted.train, *parted.validation, *parted.test)) == [
        "sub-a",
        "sub-b",
        "sub-c",
        "sub-d",
    ]


def test_only_anatomy_of_the_raw_data_is_read(tmp_path):
    found = sources.find_dataset(
        dataset(
            tmp_path,
            "sub-1/anat/sub-1_T1w.nii.gz",
            "sub-1/anat/sub-1_T1w.json",
            "sub-1/anat/._sub-1_T1w.nii.gz",
            "sub-1/anat/sub-1_mod-T1w_defacemask.nii.gz",
            "sub-1/func/sub-1_task-rest_bold.nii.gz",
            "derivatives/fmriprep/sub-1/anat/sub-1_desc-preproc_T1w.nii.gz",
            "sourcedata/sub-1/anat/sub-1_T1w.nii.gz",
        )
    )
    assert [each.id for each in found.cases] == ["sub-1_T1w"]
    assert found.notes == ("1 mask left out: sub-1_mod-T1w_defacemask.nii.gz",)


def test_one_kind_of_scan_can_be_chosen(tmp_path):
    dataset(
        tmp_path,
        "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-1/anat/sub-1_run-1_T2w.nii.gz",
        "sub-2/anat/sub-2_T2w.nii",
    )
    found = sources.find_dataset(tmp_path)
    assert len(found.cases) == 3
    assert found.notes == (
        "scans of several kinds (2 T2w, 1 T1w); take one kind with --source bids:T2w",
    )
    chosen = sources.find_dataset(tmp_path, "bids:T2w")
    assert [each.id for each in chosen.cases] == ["sub-1_run-1_T2w", "sub-2_T2w"]
    assert chosen.notes == ()
    with pytest.raises(UsageError, match="has no _T1 scans; did you mean 'T1w'"):
        sources.find_dataset(tmp_path, "bids:T1")


@pytest.mark.parametrize("source", ["folder:T1w", "auto:T1w", "bids :T1w"])
def test_only_a_source_with_a_choice_takes_one(tmp_path, source):
    dataset(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
    with pytest.raises(UsageError, match=r"takes no choice|unknown source"):
        sources.find_dataset(tmp_path, source)


def test_participants_are_compared_with_the_folders(tmp_path):
    dataset(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-1\t30\nsub-3\tn/a\n")
    assert sources.find_dataset(tmp_path).notes == (
        "1 subject of participants.tsv without a scan: sub-3",
        "1 subject with scans and not in participants.tsv: sub-2",
    )
    (tmp_path / "participants.tsv").write_bytes(b"\xff\xfe\x00")
    assert "its scans are used all the same" in sources.find_dataset(tmp_path).notes[0]


def test_a_folder_without_anatomy_is_refused(tmp_path):
    dataset(tmp_path, "sub-1/func/sub-1_bold.nii.gz")
    with pytest.raises(DataError, match="looked for sub-"):
        sources.find_dataset(tmp_path, "bids")


@needs_scans
def test_real_subjects_are_those_of_the_table():
    found = sources.find_dataset(SHARED / "ds002748_bids")
    table = (SHARED / "ds002748_bids" / "participants.tsv").read_text().splitlines()[1:]
    assert {each.subject for each in found.cases} == {line.split("\t")[0] for line in table}
    assert sources.find_dataset(SHARED / "ds002748_bids", "bids:T1w") == found
