"""`predict --bids` writes derivatives that tools of BIDS read, and refuses other names."""

import csv
import json

import pytest

import selfvox
from selfvox.errors import UsageError
from selfvox.runs.weights import read_network_card

from ..conftest import CLASSES, blob, write_scan


def test_labels_have_the_names_tables_and_records_of_bids(run, tmp_path):
    scans = tmp_path / "KANARIA"
    for name in ("sub-01/anat/sub-01_acq-fast_T1w", "sub-02/ses-a/anat/sub-02_ses-a_T1w"):
        write_scan(scans / f"{name}.nii.gz", blob((20, 17, 12), len(name)))
    labels = selfvox.predict(run, scans, out=tmp_path / "out", bids=True, device="cpu")
    root = tmp_path / "out" / "bids"
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    bases = [
        "sub-01/anat/sub-01_acq-fast_space-orig_desc-selfvox_dseg",
        "sub-02/ses-a/anat/sub-02_ses-a_space-orig_desc-selfvox_dseg",
    ]
    endings = (".nii.gz", ".tsv", ".json")
    assert files == {
        "dataset_description.json",
        *(f"{base}{ending}" for base in bases for ending in endings),
    }
    for base, label in zip(bases, labels, strict=True):
        assert (root / f"{base}.nii.gz").read_bytes() == label.read_bytes()
        with (root / f"{base}.tsv").open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert {row["index"]: row["name"] for row in rows} == CLASSES
        details = json.loads((root / f"{base}.json").read_text())
        assert details["Selfvox"]["work"]["seconds"] >= 0
        assert details["Selfvox"]["network_sha256"] == read_network_card(run).sha256
        assert details["Sources"] == [f"bids:raw:{base.partition('_space')[0]}_T1w.nii.gz"]
    description = json.loads((root / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    for path in root.rglob("*"):
        assert not path.is_file() or b"KANARIA" not in path.read_bytes()
    # once more: the same files, none twice
    selfvox.predict(run, scans, out=tmp_path / "out", bids=True, device="cpu")
    assert files == {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert not list((tmp_path / "out").glob(".*part*"))


def test_two_kinds_of_scans_of_a_person_have_two_labels(run, tmp_path):
    for seed, kind in enumerate(("T1w", "T2w")):
        path = tmp_path / "scans" / "sub-01" / "anat" / f"sub-01_{kind}.nii.gz"
        write_scan(path, blob((20, 17, 12), seed))
    selfvox.predict(run, tmp_path / "scans", out=tmp_path / "out", bids=True, device="cpu")
    names = {path.name for path in (tmp_path / "out" / "bids").rglob("*.nii.gz")}
    assert names == {f"sub-01_space-orig_desc-selfvox{kind}_dseg.nii.gz" for kind in ("T1w", "T2w")}


def test_other_names_and_formats_are_refused(run, scans, tmp_path):
    with pytest.raises(UsageError, match=r"scan_0\.nii\.gz is no BIDS name"):
        selfvox.predict(run, scans, out=tmp_path / "out", bids=True, device="cpu")
    with pytest.raises(UsageError, match="its labels are NIfTI files"):
        selfvox.predict(run, scans, out=tmp_path / "out", bids=True, format="mha", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_scan_that_is_a_derivative_keeps_its_space(run, tmp_path):
    name = "sub-01_space-MNI152NLin2009cAsym_res-2_desc-preproc_T1w"
    write_scan(tmp_path / "scans" / "sub-01" / "anat" / f"{name}.nii.gz", blob((20, 17, 12), 1))
    selfvox.predict(run, tmp_path / "scans", out=tmp_path / "out", bids=True, device="cpu")
    (label,) = (tmp_path / "out" / "bids").rglob("*.nii.gz")
    assert label.name == "sub-01_space-MNI152NLin2009cAsym_res-2_desc-selfvox_dseg.nii.gz"
    details = json.loads(label.with_name(label.name.replace(".nii.gz", ".json")).read_text())
    assert "SpatialReference" not in details
    assert details["Sources"] == [f"bids:raw:sub-01/anat/{name}.nii.gz"]
