"""`find_dataset`: the layout is recognised, or named, and everything else is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from selfvox.data import sources
from selfvox.errors import DataError, UsageError

SHARED = Path("../shared/data")
BRATS = {0: "background", 1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}
needs_scans = pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans are not here")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_the_folder_is_the_list():
    folder = Path(sources.__file__).parent
    assert sources.source_names() == sorted(
        path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")
    )
    assert {"decathlon", "folder", "nnunet", "table"} <= set(sources.source_names())


def test_every_source_opens_with_what_it_reads():
    for name in sources.source_names():
        assert sources.open_source(name).__doc__


def test_an_unknown_source_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'decathlon'"):
        sources.find_dataset(tmp_path, "decatlon")


@pytest.mark.parametrize("name", ["__init__", "_files", "../folder", "os", ""])
def test_only_a_source_can_be_opened(tmp_path, name):
    with pytest.raises(UsageError):
        sources.find_dataset(tmp_path, name)


@pytest.mark.parametrize("source", ["auto", *sources.source_names()])
def test_nothing_there_is_refused_in_one_line_whatever_the_source(tmp_path, source):
    for root in (
        tmp_path,
        tmp_path / "absent",
        touch(tmp_path, "file.xyz") / "file.xyz",
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(DataError) as refusal:
            sources.find_dataset(root, source)
        assert "\n" not in str(refusal.value)
        assert str(tmp_path) in str(refusal.value) or root.name in str(refusal.value)


def test_an_empty_folder_names_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"looked for .*\.nii\.gz.*the folder is empty"):
        sources.find_dataset(tmp_path)
    with pytest.raises(DataError, match=r"2 \(2 \.dcm\)"):
        sources.find_dataset(touch(tmp_path, "a.dcm", "b/c.dcm"))


def test_each_layout_is_recognised(tmp_path):
    decathlon = touch(tmp_path / "decathlon", "imagesTr/a_0007.nii.gz")
    (decathlon / "dataset.json").write_text(json.dumps({"training": ["imagesTr/a_0007.nii.gz"]}))
    nnunet = touch(tmp_path / "nnunet", "imagesTr/a_0000.nii.gz")
    older = touch(
        tmp_path / "older", "imagesTr/a_0000.nii.gz"
    )  # nnU-Net's first version kept the decathlon's lists
    (older / "dataset.json").write_text(
        json.dumps({"modality": {"0": "CT"}, "training": ["imagesTr/a.nii.gz"]})
    )
    table = touch(tmp_path / "table", "a.nii.gz")
    (table / "list.csv").write_text("image\na.nii.gz\n")
    folder = touch(tmp_path / "folder", "deep/er/a.nii.gz", "participants.tsv")
    (folder / "participants.tsv").write_text("participant_id\tage\nsub-01\t3\n")
    dataset = {
        root.name: sources.find_dataset(root).source
        for root in (decathlon, nnunet, older, table, folder)
    }
    assert dataset == {
        "decathlon": "decathlon",
        "nnunet": "nnunet",
        "older": "nnunet",
        "table": "table",
        "folder": "folder",
    }


def test_a_place_that_looks_like_two_layouts_says_so(tmp_path):
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "dataset.json").write_text('{"training": ["a.nii.gz"]}')
    (tmp_path / "list.csv").write_text("image\na.nii.gz\n")
    dataset = sources.find_dataset(tmp_path)
    assert dataset.source == "decathlon"
    assert "read as decathlon; it also looks like table: choose with --source" in dataset.notes
    assert sources.find_dataset(tmp_path, "table").source == "table"


def test_a_damaged_dataset_json_is_reported_rather_than_passed_over(tmp_path):
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "dataset.json").write_text('{"training": ["a.nii.gz",]}')
    with pytest.raises(DataError, match="not valid JSON at line 1"):
        sources.find_dataset(tmp_path)


def test_listing_scans_does_not_import_torch():
    code = """
import sys
from selfvox.data import sources
from selfvox.data.preparation import split

for name in sources.source_names():
    sources.open_source(name)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_scans
@pytest.mark.parametrize(
    ("name", "source", "cases", "labels", "channels", "classes"),
    [
        (
            "Task04_Hippocampus",
            "decathlon",
            200,
            200,
            ("MRI",),
            {0: "background", 1: "Anterior", 2: "Posterior"},
        ),
        (
            "Dataset051_Sarcoma",
            "nnunet",
            35,
            35,
            ("T1", "CT", "PET"),
            {0: "background", 1: "tumour"},
        ),
        ("brats_cases", "brats", 2, 2, ("t1", "t1ce", "t2", "flair"), BRATS),
        ("dicom_brain", "dicom", 1, 0, ("MR",), None),
        ("ds002748_bids", "bids", 52, 0, ("image",), None),
        ("idrid_fundus", "table", 405, 0, ("red", "green", "blue"), None),
        ("idrid_fundus/grades.csv", "table", 405, 0, ("red", "green", "blue"), None),
        ("idrid_fundus/images", "folder", 405, 0, ("red", "green", "blue"), None),
    ],
)
def test_real_data_sets_are_found_whole(name, source, cases, labels, channels, classes):
    dataset = sources.find_dataset(SHARED / name)
    assert (dataset.source, len(dataset.cases), dataset.channel_names, dataset.classes) == (
        source,
        cases,
        channels,
        classes,
    )
    assert (
        len({case.id for case in dataset.cases})
        == len({case.subject for case in dataset.cases})
        == cases
    )
    assert sum(case.label is not None for case in dataset.cases) == labels
    assert all(path.is_file() for case in dataset.cases for path in case.images)


@needs_scans
def test_bids_subjects_and_fundus_grades_are_kept():
    bids = sources.find_dataset(SHARED / "ds002748_bids")
    assert all(case.id == f"{case.subject}_T1w" for case in bids.cases)
    assert {case.subject for case in bids.cases} == {
        path.name for path in (SHARED / "ds002748_bids").glob("sub-*")
    }
    grades = {
        case.images[0].name: case.grade
        for case in sources.find_dataset(SHARED / "idrid_fundus").cases
    }
    lines = (SHARED / "idrid_fundus/grades.csv").read_text().split()[1:]
    assert grades == {Path(line.split(",")[0]).name: int(line.split(",")[1]) for line in lines}
