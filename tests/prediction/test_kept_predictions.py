"""Which predictions of a folder are kept, and what is left of its ledger."""

import dataclasses
import json

from selfvox.data.sources import Case
from selfvox.prediction.case_files import CaseFiles
from selfvox.prediction.case_ledger import read_ledger, write_ledger
from selfvox.prediction.kept_predictions import keep_finished, scan_digests, with_own_names
from selfvox.runs.typed_json import with_checksum


def test_after_a_replacement_the_records_of_the_others_have_their_checksums(tmp_path):
    scan = tmp_path / "a.nii.gz"
    scan.write_bytes(b"another scan")
    write_ledger(tmp_path, {name: {"id": name, "scan": ["1"], "files": {}} for name in "ab"})
    case = Case(id="a", subject="a", images=(scan,))
    assert with_own_names(CaseFiles(tmp_path), [case], replace=True) == [case]
    assert list(read_ledger(tmp_path)) == ["b"]
    (line,) = (tmp_path / "cases.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert "checksum" in record
    assert record == with_checksum(record)


def test_a_prediction_that_is_made_again_is_removed_first(tmp_path):
    scan = tmp_path / "scans" / "a.nii.gz"
    scan.parent.mkdir()
    scan.write_bytes(b"another scan")
    files = CaseFiles(tmp_path)
    case = Case(id="a", subject="a", images=(scan,))
    for again in (
        lambda: with_own_names(files, [case], replace=True),
        lambda: keep_finished(files, [case]),
    ):
        digests = {"a.nii.gz": "not that of the file"}
        write_ledger(tmp_path, {"a": {"id": "a", "scan": ["1"], "files": digests}})
        files.label_file(case).write_bytes(b"the label of before")
        again()
        # if the scan is refused now, nobody finds the label of another one
        assert not files.label_file(case).exists()
        assert read_ledger(tmp_path) == {}


def test_slices_under_other_names_are_the_same_scan(tmp_path):
    slices = [tmp_path / name for name in ("1.dcm", "2.dcm")]
    for path in slices:
        path.write_bytes(path.name.encode())
    case = Case(id="a", subject="a", images=tuple(slices), stacked=True)
    write_ledger(tmp_path, {"a": {"id": "a", "scan": scan_digests(case)[::-1], "files": {}}})
    assert with_own_names(CaseFiles(tmp_path), [case], replace=False) == [case]
    apart = dataclasses.replace(case, stacked=False)
    assert with_own_names(CaseFiles(tmp_path), [apart], replace=False)[0].id.startswith("a~")
