"""The curve of a run shows its scores, whatever the run predicts."""

import pytest
from matplotlib.figure import Figure

from selfvox.training.learning_curve import _draw_scores


@pytest.mark.parametrize(
    ("lines", "shown", "lowest"),
    [
        ([{"step": 1, "skill": -0.4}, {"step": 2, "skill": 0.2}], ["skill"], -0.4),
        ([{"step": 1, "kappa": 0.1, "auc": 0.6}], ["auc", "kappa"], 0),
        ([{"step": 1, "skill": -7.0}], ["skill"], -1),
        ([{"step": 1, "masked/explained": -0.3, "masked/chance": 0.0}], None, -0.3),
    ],
)
def test_scores_below_zero_are_inside_the_picture(lines, shown, lowest):
    axes = Figure().subplots()
    _draw_scores(axes, lines)
    assert axes.get_ylim() == (lowest, 1)
    if shown is not None:
        assert sorted(line.get_label() for line in axes.lines) == shown
