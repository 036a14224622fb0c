"""Ledgers keep every whole record, whatever a killed process left behind."""

import json
import math
import os

import pytest

from selfvox.errors import DataError
from selfvox.runs.ledger import append_record, read_records, write_records
from selfvox.runs.typed_json import with_checksum


def test_records_are_read_in_the_order_they_were_appended(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    assert read_records(ledger) == []
    records = [{"step": step, "note": "ä\n"} for step in range(5)]
    for record in records:
        append_record(ledger, record)
    assert read_records(ledger) == records
    assert ledger.read_bytes().count(b"\n") == 5


def test_a_value_that_is_not_a_number_is_read_back(tmp_path):
    append_record(tmp_path / "ledger.jsonl", {"loss": math.nan})
    assert math.isnan(read_records(tmp_path / "ledger.jsonl")[0]["loss"])


@pytest.mark.fault(
    "F2 K-ledger",
    "half a line at the end of a ledger",
    "left out, later records are read",
)
@pytest.mark.parametrize("length", range(1, 12))
def test_a_half_written_last_line_is_left_out_and_spoils_no_later_record(tmp_path, length):
    ledger = tmp_path / "ledger.jsonl"
    append_record(ledger, {"step": 1})
    half = b'{"step": 2}\n'[:length]
    with ledger.open("ab") as file:
        file.write(half)
    complete = [{"step": 1}, {"step": 2}] if length == 11 else [{"step": 1}]
    assert read_records(ledger) == complete
    append_record(ledger, {"step": 3})
    assert read_records(ledger) == [*complete, {"step": 3}]


def test_lines_that_are_no_objects_are_left_out(tmp_path):
    (tmp_path / "ledger.jsonl").write_bytes(b'[1]\n7\n\xff\n\n{"step": 1}\n')
    assert read_records(tmp_path / "ledger.jsonl") == [{"step": 1}]


def test_a_record_is_on_the_disk_before_append_returns(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    append_record(tmp_path / "ledger.jsonl", {"step": 1})
    assert sizes == [len(b'{"step": 1}\n')]


def test_replaced_records_are_all_there_is(tmp_path):
    append_record(tmp_path / "ledger.jsonl", {"step": 1})
    write_records(tmp_path / "ledger.jsonl", [{"step": 2}, {"step": 3}])
    assert read_records(tmp_path / "ledger.jsonl") == [{"step": 2}, {"step": 3}]
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.jsonl"]


@pytest.mark.fault("X2l", "a link in place of a ledger", "not followed")
def test_a_ledger_is_no_link_to_a_file_that_would_be_changed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "ledger.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        append_record(tmp_path / "ledger.jsonl", {"step": 1})
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.fault(
    "K-ledger F-met",
    "lines of null, other types, not UTF-8",
    "left out with a word",
)
def test_damaged_lines_are_left_out_with_a_word(tmp_path, capsys):
    ledger = tmp_path / "ledger.jsonl"
    whole = with_checksum({"step": 1})
    lines = [whole, {**whole, "step": 2}, None, "x", {"step": 3}]
    ledger.write_text("\n".join(map(json.dumps, lines)) + "\n" + "[" * 100_000 + "\n{}\n")
    assert read_records(ledger) == [{"step": 1}, {"step": 3}, {}]
    assert "line 2 is damaged and left out (4 in all)" in capsys.readouterr().err


@pytest.mark.fault("K1", "a pipe in place of a ledger", "refused")
def test_a_pipe_is_no_ledger(tmp_path):
    os.mkfifo(tmp_path / "ledger.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        read_records(tmp_path / "ledger.jsonl")
