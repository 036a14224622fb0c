"""`suggest`: trust, coverage and who may be suggested."""

import csv

import numpy as np
import pytest

import selfvox
from selfvox.errors import DataError, UsageError

from ..conftest import blob, make_run, write_scan

TRUST = {"new_0": 0.9, "new_1": 0.2, "new_2": 0.5, "new_3": 0.8}


@pytest.fixture
def folders(tmp_path):
    """Embeddings of five scans, and a table of the trust in four of them."""
    for number in range(5):
        write_scan(tmp_path / "new" / f"new_{number}.nii.gz", blob((20, 17, 12), number))
    run = make_run(tmp_path / "run")
    selfvox.embed(run, tmp_path / "new", out=tmp_path / "embeddings", device="cpu")
    (tmp_path / "predictions").mkdir()
    rows = [f"{case},{trust}" for case, trust in TRUST.items()]
    table = tmp_path / "predictions/review.csv"
    table.write_text("\n".join(["case,trust", *rows]) + "\n")
    return tmp_path


def ids(folders, **settings):
    return [row["id"] for row in selfvox.suggest(folders / "embeddings", **settings)]


def test_the_least_trusted_come_first(folders):
    predictions = folders / "predictions"
    assert ids(folders, predictions=predictions, by="trust", count=3) == ["new_1", "new_2", "new_3"]
    # a scan without a prediction has no trust
    assert "new_4" not in ids(folders, predictions=predictions)


def test_both_are_weighed(folders):
    rows = selfvox.suggest(folders / "embeddings", predictions=folders / "predictions", count=4)
    vectors = np.load(folders / "embeddings/embeddings.npz")["vector"]
    z = (vectors - vectors.mean(0)) / np.where(vectors.std(0) > 0, vectors.std(0), 1)
    number = {row["id"]: int(row["id"][-1]) for row in rows}
    chosen = [rows[0]["id"]]
    for row in rows[1:]:

        def gain(case):
            near = min(np.sqrt(((z[number[case]] - z[number[c]]) ** 2).mean()) for c in chosen)
            return near * (1 - TRUST[case])

        assert row["id"] == max(TRUST.keys() - set(chosen), key=gain)
        chosen.append(row["id"])


def test_labelled_scans_and_test_subjects_are_left_out(folders):
    for number in (1, 2):
        name = f"new_{number}.nii.gz"
        write_scan(folders / "old/images" / name, blob((20, 17, 12), number))
        label = (blob((20, 17, 12), number) > 0).astype(np.uint8)
        write_scan(folders / "old/labels" / name, label)
    (folders / "predictions/settings.yaml").write_text(f"run: {folders / 'run'}\n")
    (folders / "run/split.json").write_text(
        '{"train": [], "validation": [], "test": ["new_3"], "seed": 0}'
    )
    found = ids(folders, predictions=folders / "predictions", labelled=folders / "old")
    assert found == ["new_0"]
    table = folders / "next.csv"
    rows = selfvox.suggest(folders / "embeddings", labelled=folders / "old", out=table)
    with table.open(newline="") as lines:
        written = list(csv.DictReader(lines))
    assert [row["id"] for row in written] == [row["id"] for row in rows]
    assert all(float(row["distance"]) > 0 for row in written)


def test_what_is_missing_is_named(folders):
    with pytest.raises(UsageError, match="by: trust is that of predictions"):
        ids(folders, by="trust")
    with pytest.raises(DataError, match=r"has no embeddings\.npz; make it by"):
        selfvox.suggest(folders / "predictions")
    (folders / "predictions/review.csv").write_text("case,entropy\nnew_0,1\n")
    with pytest.raises(DataError, match="has no trust in its scans; predict them by several"):
        ids(folders, predictions=folders / "predictions")
