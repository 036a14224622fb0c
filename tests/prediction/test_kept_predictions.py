"""Which predictions of a folder are kept, and what is left of its ledger."""

import json

from selfvox.data.sources import Case
from selfvox.prediction.case_files import CaseFiles
from selfvox.prediction.case_ledger import read_ledger, write_ledger
from selfvox.prediction.kept_predictions import with_own_names
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
