"""What a study refuses before it trains, and what a refusal within a cell stops."""

import pytest

import selfvox
from selfvox.errors import UsageError
from selfvox.runs.atomic_files import write_csv
from selfvox.studies import results, run_cell
from selfvox.studies.saved_plan import load_plan

from .conftest import rotation


@pytest.fixture
def graded(tmp_path, study_scans):
    """A table of the scans with a grade each, and no label images."""
    scans = sorted((study_scans / "images").iterdir())
    rows = [[scan, number % 2] for number, scan in enumerate(scans)]
    write_csv(tmp_path / "grades.csv", ["image", "grade"], rows)
    return "grades.csv"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"there": {"predictions": "there/{labels}"}}, "methods.there: segments, but .* has no"),
        (
            rotation(finetune={"unlabelled": "scans", "teacher": "network"}),
            "methods.rotation.finetune.unlabelled: is for segmentation, but .* has grades",
        ),
    ],
)
def test_what_needs_label_images_is_refused_where_there_are_grades(
    methods, message, write_plan, pretended, graded, tmp_path
):
    for labels in ("1", "3"):
        (tmp_path / "there" / labels).mkdir(parents=True)
    plan = write_plan(data=graded, methods={"base": "scratch", **methods})
    with pytest.raises(UsageError, match=message):
        selfvox.study(str(plan), out=tmp_path / "out")
    assert pretended == []


def test_a_refusal_within_a_cell_is_the_failure_of_this_cell(
    write_plan, pretended, tmp_path, monkeypatch
):
    finetune = run_cell.finetune

    def refuses(settings, is_alone=False):
        if settings.out.parent.name == "scratch" and settings.labels == 3:
            raise UsageError("crop: does not fit")
        finetune(settings)

    monkeypatch.setattr(run_cell, "finetune", refuses)
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"1 of 6 cells failed; .*scratch, 3 labels.*does not fit"):
        selfvox.study(str(write_plan(seeds=[0])), out=out)
    assert len(list(out.glob("cells/*/*/done.json"))) == 5
    missing, _ = results.missing_cells(load_plan(out / "plan.yaml"), out)
    assert missing == ["scratch, 3 labels, seed 0: failed (crop: does not fit)"]
