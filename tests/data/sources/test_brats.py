"""BraTS folders: the channels' order, the labels' numbers, and what a case lacks."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import selfvox
from selfvox.data import sources
from selfvox.data.preparation.prepare_case import read_case
from selfvox.errors import DataError

OLDER = ("_t1", "_t1ce", "_t2", "_flair")
NEWER = ("-t1n", "-t1c", "-t2w", "-t2f")
SHARED = Path(__file__).parents[3].parent / "shared" / "data"
needs_scans = pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans are not here")


def volume(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, -1, 1, 1])), path)


def write_case(
    folder, modalities=OLDER, label=(0, 1, 2, 4), shape=(12, 13, 14), lacks=(), ending=".nii.gz"
):
    """A case; a channel's first voxel has its number, so that an exchange shows."""
    rng = np.random.default_rng(0)
    for number, modality in enumerate(modalities):
        values = rng.integers(100, 200, shape).astype(np.int16)
        values[0, 0, 0] = number
        if modality not in lacks:
            volume(folder / f"{folder.name}{modality}{ending}", values)
    if label is not None:
        values = np.resize(np.array(label, np.uint8), shape)
        volume(folder / f"{folder.name}{modalities[0][0]}seg{ending}", values)
    return folder


@pytest.mark.parametrize("modalities", [OLDER, NEWER])
def test_both_ways_of_naming_give_t1_t1ce_t2_flair(tmp_path, modalities):
    write_case(tmp_path / "BraTS20_Training_001", modalities)
    dataset = sources.find_dataset(tmp_path)
    assert (dataset.source, dataset.channel_names) == ("brats", ("t1", "t1ce", "t2", "flair"))
    image = read_case(dataset.cases[0], 4)
    assert image.data[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert dataset.cases[0].label.name.endswith("seg.nii.gz")


def test_grades_may_be_nested_next_to_a_table(tmp_path):
    write_case(tmp_path / "HGG" / "Brats18_A_1")
    write_case(tmp_path / "LGG" / "Brats18_B_1", label=None, ending=".nii")
    (tmp_path / "survival_data.csv").write_text("BraTS18ID,Age,Survival\nBrats18_A_1,60,300\n")
    dataset = sources.find_dataset(tmp_path)
    assert [(case.id, case.label is None) for case in dataset.cases] == [
        ("Brats18_A_1", False),
        ("Brats18_B_1", True),
    ]
    assert dataset.notes == ("1 of 2 cases have no label",)


@pytest.mark.parametrize(
    ("modalities", "labels", "names"),
    [
        (OLDER, [(0, 1, 2)], {1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}),
        (NEWER, [(0, 1, 2), (0, 3)], {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}),
        (NEWER, [(0, 1, 2), (0, 4)], {1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}),
        (
            NEWER,
            [(0, 4), (0, 3)],
            {1: "necrotic core", 2: "oedema", 3: "enhancing tumour", 4: "resection cavity"},
        ),
        (NEWER, [(0,)], {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}),
        (NEWER, [None], None),
    ],
)
def test_the_numbers_of_the_classes_are_those_of_the_year(tmp_path, modalities, labels, names):
    for number, label in enumerate(labels):
        write_case(tmp_path / f"case{number}", modalities, label)
    dataset = sources.find_dataset(tmp_path)
    assert dataset.classes == (None if names is None else {0: "background", **names})
    if names is None:
        assert dataset.regions is None
        return
    enhancing = next(value for value, name in names.items() if name == "enhancing tumour")
    regions = {"WT": (1, 2, enhancing), "TC": (1, enhancing), "ET": (enhancing,)}
    assert dataset.regions == regions | ({"RC": (4,)} if len(names) == 4 else {})


@pytest.mark.parametrize(
    ("older", "newer", "enhancing"),
    [
        ((0, 1, 2, 4), (0, 1, 2, 3), None),
        ((0, 1, 2, 4), (0, 1, 2), None),
        ((0, 1, 2), (0, 3, 4), None),
        ((0, 1, 2, 4), (0, 1, 2, 4), 4),
        ((0, 1, 2), (0, 1, 2, 3), 3),
        ((0, 1, 2, 3), (0, 1, 2, 3), 3),
        (None, (0, 1, 2, 3), 3),
        ((0, 1, 2, 4), None, 4),
    ],
)
def test_years_whose_4_is_not_the_same_are_not_read_together(tmp_path, older, newer, enhancing):
    write_case(tmp_path / "Brats18_A_1", OLDER, older)
    write_case(tmp_path / "BraTS-GLI-00005-000", NEWER, newer)
    if enhancing is None:
        with pytest.raises(DataError, match="put each year in its own folder"):
            sources.find_dataset(tmp_path)
    else:
        assert sources.find_dataset(tmp_path).regions["ET"] == (enhancing,)


def test_two_visits_of_a_patient_are_one_subject(tmp_path):
    for name in (
        "BraTS-GLI-00005-000",
        "BraTS-GLI-00005-001",
        "BraTS-GLI-00006-000",
        "TCGA-DU-7294",
    ):
        write_case(tmp_path / name, NEWER)
    dataset = sources.find_dataset(tmp_path)
    assert [case.subject for case in dataset.cases] == [
        *["BraTS-GLI-00005"] * 2,
        "BraTS-GLI-00006",
        "TCGA-DU-7294",
    ]
    assert len({case.id for case in dataset.cases}) == 4


@pytest.mark.fault("C9", "a BraTS case without a modality", "rejected by name, the others go on")
def test_a_case_that_lacks_a_modality_is_rejected_by_its_name_and_the_others_go_on(tmp_path):
    write_case(tmp_path / "scans" / "whole")
    write_case(tmp_path / "scans" / "part", lacks=("_t1ce",))
    dataset = sources.find_dataset(tmp_path / "scans")
    assert "1 modality file missing, so their cases are rejected: part_t1ce.nii.gz" in dataset.notes
    selfvox.prepare(tmp_path / "scans", out=tmp_path / "store", workers=1)
    with (tmp_path / "store" / "rejected.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["id"] for row in rows] == ["part"]
    assert "part_t1ce.nii.gz: no such file" in rows[0]["reason"]
    assert [path.stem for path in (tmp_path / "store" / "cases").iterdir()] == ["whole"]


def test_one_channel_in_two_files_is_refused(tmp_path):
    write_case(tmp_path / "a")
    write_case(tmp_path / "b")
    (tmp_path / "a" / "a_t1.nii").touch()
    with pytest.raises(DataError, match="one channel of one case; keep one"):
        sources.find_dataset(tmp_path)


def test_two_modalities_of_a_plain_folder_are_no_brats(tmp_path):
    write_case(tmp_path / "ann", lacks=("_t1ce", "_t2"), label=None)
    assert sources.find_dataset(tmp_path).source == "folder"
    for root, reason in (
        (tmp_path / "ann" / "ann_t1.nii.gz", "not a folder"),
        (tmp_path / "none", "no BraTS case"),
    ):
        (tmp_path / "none").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=reason):
            sources.find_dataset(root, "brats")


def test_the_decathlons_brain_tumours_are_one_file_of_four_volumes(tmp_path):
    rng = np.random.default_rng(0)
    for folder, shape in (("imagesTr", (12, 13, 14, 4)), ("labelsTr", (12, 13, 14))):
        values = rng.integers(0, 4, shape).astype(np.uint8)
        volume(tmp_path / folder / "BRATS_001.nii.gz", values)
    (tmp_path / "dataset.json").write_text(
        '{"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},'
        ' "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor",'
        ' "3": "enhancing tumour"}, "training": [{"image": "./imagesTr/BRATS_001.nii.gz",'
        ' "label": "./labelsTr/BRATS_001.nii.gz"}]}'
    )
    dataset = sources.find_dataset(tmp_path)
    assert (dataset.source, len(dataset.channel_names)) == ("decathlon", 4)
    assert dataset.regions == {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}
    image = read_case(dataset.cases[0], 4)
    volumes = nib.load(tmp_path / "imagesTr" / "BRATS_001.nii.gz").get_fdata()
    assert np.array_equal(image.data, np.moveaxis(volumes, -1, 0))


@needs_scans
def test_real_cases_are_found_whole():
    dataset = sources.find_dataset(SHARED / "brats_cases")
    assert (dataset.source, [case.id for case in dataset.cases]) == (
        "brats",
        ["TCGA-DU-7294", "TCGA-FG-6692"],
    )
    assert sorted(dataset.classes) == [0, 1, 2, 4]
    assert [path.name[-11:-7] for path in dataset.cases[0].images] == [
        "-t1n",
        "-t1c",
        "-t2w",
        "-t2f",
    ]
