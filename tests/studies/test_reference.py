"""The papers' own scores are those of the papers, transcribed a second time by other means.

Table 1 was copied from the text of the paper, row by row, in percent. Figure 2 has no numbers in
the text; they are those of the authors' plot script, in its order: by share 10, 25, 50 %.
"""

import pytest

from selfvox.studies.reference import stated_scores

TABLE_1 = """
Model           ET     WT     TC
from scratch    76.38  87.82  83.11
3D-CPC          80.83  89.88  85.11
3D-RPL          81.28  90.71  86.12
3D-Jigsaw       79.66  89.20  82.52
3D-Rotation     80.21  89.63  84.75
3D-Exemplar     79.46  90.80  83.87
"""
FIGURE_2 = {
    "3D-CPC": (0.76, 0.78, 0.82),
    "3D-Jigsaw": (0.71, 0.76, 0.81),
    "3D-Rotation": (0.74, 0.77, 0.80),
    "3D-RPL": (0.74, 0.75, 0.80),
    "3D-Exemplar": (0.75, 0.77, 0.80),
    "from scratch": (0.42, 0.58, 0.72),
}


def scores(region):
    return {(model, share): score for model, share, score in stated_scores("brats2018", region)}


def table_1(region):
    header, *lines = (line.rsplit(maxsplit=3) for line in TABLE_1.strip().splitlines())
    column = header.index(region)
    return {(line[0].strip(), 1.0): float(line[column]) / 100 for line in lines}


@pytest.mark.parametrize("region", ["ET", "TC"])
def test_scores_with_all_labels_are_those_of_table_1(region):
    assert scores(region) == pytest.approx(table_1(region))


def test_whole_tumour_scores_with_few_labels_are_those_of_figure_2():
    few = {
        (model, share): score
        for model, curve in FIGURE_2.items()
        for share, score in zip((0.1, 0.25, 0.5), curve, strict=True)
    }
    assert scores("WT") == pytest.approx(few | table_1("WT"))


@pytest.mark.parametrize(
    ("dataset", "region"), [("brats2018", "oedema"), ("pancreas", "WT"), (None, "WT")]
)
def test_nothing_is_stated_of_other_regions_and_data_sets(dataset, region):
    assert stated_scores(dataset, region) == []
