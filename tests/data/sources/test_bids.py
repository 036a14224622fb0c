"""BIDS: subjects and sessions, one kind of scan or all, and other folders next to them."""

from pathlib import Path

import pytest

from selfvox.data import sources
from selfvox.data.preparation import split
from selfvox.errors import DataError, UsageError

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
needs_scans = pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans are not here")


def write_dataset(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_sessions_are_cases_of_one_subject_and_no_split_parts_them(tmp_path):
    names = [f"sub-{s}/ses-{v}/anat/sub-{s}_ses-{v}_T1w.nii.gz" for s in "abcd" for v in "12"]
    dataset = sources.find_dataset(write_dataset(tmp_path, *names))
    assert (dataset.source, len(dataset.cases)) == ("bids", 8)
    assert [(case.id, case.subject) for case in dataset.cases[:2]] == [
        ("sub-a_ses-1_T1w", "sub-a"),
        ("sub-a_ses-2_T1w", "sub-a"),
    ]
    parted = split.make_split({case.subject for case in dataset.cases}, 1, 1, 0)
    assert sorted((*parted.train, *parted.validation, *parted.test)) == [
        "sub-a",
        "sub-b",
        "sub-c",
        "sub-d",
    ]


def test_only_anatomy_of_the_raw_data_is_read(tmp_path):
    dataset = sources.find_dataset(
        write_dataset(
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
    assert [case.id for case in dataset.cases] == ["sub-1_T1w"]
    assert dataset.notes == ("1 mask left out: sub-1_mod-T1w_defacemask.nii.gz",)


def test_one_kind_of_scan_can_be_chosen(tmp_path):
    write_dataset(
        tmp_path,
        "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-1/anat/sub-1_run-1_T2w.nii.gz",
        "sub-2/anat/sub-2_T2w.nii",
    )
    dataset = sources.find_dataset(tmp_path)
    assert len(dataset.cases) == 3
    assert dataset.notes == (
        "scans of several kinds (2 T2w, 1 T1w); take one kind with --source bids:T2w",
    )
    chosen = sources.find_dataset(tmp_path, "bids:T2w")
    assert [case.id for case in chosen.cases] == ["sub-1_run-1_T2w", "sub-2_T2w"]
    assert chosen.notes == ()
    with pytest.raises(UsageError, match="has no _T1 scans; did you mean 'T1w'"):
        sources.find_dataset(tmp_path, "bids:T1")


@pytest.mark.parametrize("source", ["brats:T1w", "auto:T1w", "bids :T1w"])
def test_only_a_source_with_a_choice_takes_one(tmp_path, source):
    write_dataset(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
    with pytest.raises(UsageError, match=r"takes no choice|unknown source"):
        sources.find_dataset(tmp_path, source)


def test_participants_are_compared_with_the_folders(tmp_path):
    write_dataset(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-1\t30\nsub-3\tn/a\n")
    assert sources.find_dataset(tmp_path).notes == (
        "1 subject of participants.tsv without a scan: sub-3",
        "1 subject with scans and not in participants.tsv: sub-2",
    )
    (tmp_path / "participants.tsv").write_bytes(b"\xff\xfe\x00")
    assert "its scans are used all the same" in sources.find_dataset(tmp_path).notes[0]


def test_a_folder_without_anatomy_is_refused(tmp_path):
    write_dataset(tmp_path, "sub-1/func/sub-1_bold.nii.gz")
    with pytest.raises(DataError, match="looked for sub-"):
        sources.find_dataset(tmp_path, "bids")


@needs_scans
def test_real_subjects_are_those_of_the_table():
    dataset = sources.find_dataset(SHARED / "ds002748_bids")
    table = (SHARED / "ds002748_bids" / "participants.tsv").read_text().splitlines()[1:]
    assert {case.subject for case in dataset.cases} == {line.split("\t")[0] for line in table}
    assert sources.find_dataset(SHARED / "ds002748_bids", "bids:T1w") == dataset


STROKE = [
    name
    for s in ("1", "2")
    for name in (
        f"sub-{s}/ses-1/anat/sub-{s}_ses-1_FLAIR.nii.gz",
        f"sub-{s}/ses-1/dwi/sub-{s}_ses-1_dwi.nii.gz",
        f"sub-{s}/ses-1/dwi/sub-{s}_ses-1_adc.nii.gz",
        f"derivatives/lesions/sub-{s}/ses-1/sub-{s}_ses-1_msk.nii.gz",
        f"derivatives/fmriprep/sub-{s}/ses-1/anat/sub-{s}_ses-1_desc-brain_mask.nii.gz",
        f"derivatives/fmriprep/sub-{s}/ses-1/anat/sub-{s}_ses-1_space-MNI_dseg.nii.gz",
        f"derivatives/fmriprep/sub-{s}/ses-1/anat/sub-{s}_ses-1_label-GM_probseg.nii.gz",
        f"derivatives/fmriprep/sub-{s}/ses-1/anat/sub-{s}_ses-1_desc-preproc_FLAIR.nii.gz",
    )
]


@pytest.mark.fault("H14", "labels in BIDS derivatives", "counted, and read where named")
def test_labels_in_derivatives_are_counted_and_read_where_they_are_named(tmp_path):
    write_dataset(tmp_path, *STROKE)
    dataset = sources.find_dataset(tmp_path)
    assert [(case.id, case.label) for case in dataset.cases] == [
        ("sub-1_ses-1_FLAIR", None),
        ("sub-2_ses-1_FLAIR", None),
    ]
    (note,) = dataset.notes
    assert "label maps left out (2 mask, 2 dseg, 2 msk)" in note
    assert "take one kind with --source bids:FLAIR,mask (or adc, dwi in place of FLAIR)" in note
    for choice, scan, label in (
        ("bids:FLAIR,mask", "FLAIR", "desc-brain_mask"),
        ("bids:dwi,msk", "dwi", "msk"),
        ("bids:dwi,lesions", "dwi", "msk"),
        ("bids:adc,fmriprep,mask", "adc", "desc-brain_mask"),
    ):
        cases = sources.find_dataset(tmp_path, choice).cases
        assert [(case.images[0].name, case.label.name) for case in cases] == [
            (f"sub-{s}_ses-1_{scan}.nii.gz", f"sub-{s}_ses-1_{label}.nii.gz") for s in "12"
        ]


def test_a_label_in_the_space_of_a_template_is_none_of_a_scan_in_its_own(tmp_path):
    write_dataset(tmp_path, *STROKE)
    assert all(
        case.label is None for case in sources.find_dataset(tmp_path, "bids:FLAIR,dseg").cases
    )


def test_an_unknown_label_and_several_are_refused_with_what_to_write(tmp_path):
    write_dataset(tmp_path, *STROKE)
    with pytest.raises(UsageError, match="has no labels 'msks'; did you mean 'msk'"):
        sources.find_dataset(tmp_path, "bids:dwi,msks")
    write_dataset(tmp_path, "derivatives/second/sub-1/ses-1/sub-1_ses-1_msk.nii.gz")
    with pytest.raises(DataError, match=r"has 2 labels .*; add lesions or second to the words"):
        sources.find_dataset(tmp_path, "bids:dwi,msk")


@pytest.mark.fault("H14", "BIDS phase images", "left out")
def test_phase_images_are_no_scans(tmp_path):
    names = [f"sub-1/anat/sub-1_part-{part}_T2starw.nii.gz" for part in ("mag", "phase")]
    dataset = sources.find_dataset(write_dataset(tmp_path, *names))
    assert [case.id for case in dataset.cases] == ["sub-1_part-mag_T2starw"]
    assert dataset.notes == (
        "1 file of phase, real or imaginary parts left out: sub-1_part-phase_T2starw.nii.gz",
    )
