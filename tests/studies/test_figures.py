import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from selfvox.studies import figures


@pytest.mark.parametrize("count", [1, 8, 15])
@pytest.mark.parametrize("panels", [1, 3])
def test_a_legend_lies_within_its_figure_however_many_and_long_its_names_are(count, panels):
    with mpl.style.context(figures.STYLE):
        figure, axes = figures.make_panels(panels, "Dice")
        for number in range(count):
            axes[0].plot([1, 2], [number, number], label=f"relative_location of other heads {number}")
        figures.draw_legend(figure, axes)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.legends[0].get_window_extent(canvas.get_renderer())
    assert len(figure.legends) == 1
    assert len(figure.legends[0].get_texts()) == count
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert box.y1 <= min(each.get_window_extent().y0 for each in axes)
