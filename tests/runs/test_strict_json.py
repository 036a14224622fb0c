"""Untrusted JSON: every way of being not quite JSON is refused in one line."""

import os

import pytest

from selfvox.errors import DataError
from selfvox.runs import strict_json


@pytest.mark.fault(
    "C11",
    "duplicate keys, NaN, nesting of 100 000, numbers of 5000 digits, comments",
    "refused in one line",
)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "'a' occurs twice"),
        ('{"a": {"b": [{"c": 1, "c": 1}]}}', "'c' occurs twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e999}', "too large"),
        ('{"a": [1, 2,]}', "line 1"),
        ('{"a": 1,}', "line 1"),
        ('{"a": 1} // a comment', "line 1"),
        ("{'a': 1}", "line 1"),
        ("", "line 1"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 5000, "not strict JSON"),
        ('{"a": "\n"}', "line 1"),
    ],
)
def test_what_is_not_strict_json_is_refused_in_one_line(tmp_path, text, reason):
    path = tmp_path / "dataset.json"
    path.write_text(text)
    with pytest.raises(DataError, match=reason) as refusal:
        strict_json.read_json(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


@pytest.mark.fault("C11", "a huge JSON file", "no more than the limit is read")
def test_of_a_huge_file_no_more_than_the_limit_is_read(tmp_path, record_reads):
    path = tmp_path / "dataset.json"
    with path.open("wb") as file:
        file.truncate(2**30)
    sizes = record_reads(strict_json)
    with pytest.raises(DataError, match="larger than 16 MiB"):
        strict_json.read_json(path)
    assert sum(sizes) == 16 * 2**20 + 1


def test_one_of_many_keys_that_occurs_twice_is_refused(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text("{" + ",".join(f'"{number}":0' for number in [*range(300_000), 299_999]) + "}")
    with pytest.raises(DataError, match="'299999' occurs twice"):
        strict_json.read_json(path)


def test_a_repeated_key_is_found_without_comparing_all_pairs():
    comparisons = []

    class Key(str):
        __hash__ = str.__hash__

        def __eq__(self, key):
            comparisons.append(1)
            return str.__eq__(self, key)

    keys = [Key(number) for number in [*range(2000), 1999]]
    with pytest.raises(ValueError, match="'1999' occurs twice"):
        strict_json._unique_keys([(key, 0) for key in keys])
    assert len(comparisons) < 20  # all pairs are two million


def test_other_encodings_are_refused_and_a_byte_order_mark_is_not(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_bytes('{"a": "ü"}'.encode("utf-16"))
    with pytest.raises(DataError, match="UTF-8"):
        strict_json.read_json(path)
    path.write_bytes('{"a": "ü"}'.encode("utf-8-sig"))
    assert strict_json.read_json(path) == {"a": "ü"}


@pytest.mark.fault("K1 N38", "a pipe in place of JSON", "refused without waiting")
def test_a_pipe_and_a_missing_file_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("pipe.json", "absent.json"):
        with pytest.raises(DataError):
            strict_json.read_json(tmp_path / name)
