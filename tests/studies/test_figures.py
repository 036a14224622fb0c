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
            axes[0].plot(
                [1, 2], [number, number], label=f"relative_location of other heads {number}"
            )
        figures.draw_legend(figure, axes)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.legends[0].get_window_extent(canvas.get_renderer())
    assert len(figure.legends) == 1
    assert len(figure.legends[0].get_texts()) == count
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert box.y1 <= min(each.get_window_extent().y0 for each in axes)


def test_each_method_has_a_panel_with_its_twin_on_the_scale_of_all_methods_of_that_twin():
    def row(method, twin, fraction, mean):
        return {"method": method, "twin": twin, "score": "dice", "name": "all"} | {
            "fraction": fraction, "labels": int(20 * fraction), "mean": mean, "sd": 0.01}  # fmt: skip

    means = {"scratch": 0.5, "rotation": 0.6, "masked": 0.9, "2D-scratch": 0.1, "2D-rotation": 0.3}
    twins = {"rotation": "scratch", "masked": "scratch", "2D-rotation": "2D-scratch"}
    rows = [
        row(name, twins.get(name, ""), share, mean + share)
        for name, mean in means.items()
        for share in (0.5, 0.1)
    ]
    looks = {name: {"color": "black", "label": name} for name in means}
    panels = {axes.get_title(): axes for axes in figures._by_method(rows, looks).axes}
    assert panels.keys() == twins.keys()
    for method, axes in panels.items():
        drawn = {line.get_label(): line.get_xydata().ravel().tolist() for line in axes.lines}
        assert drawn == {
            name: pytest.approx([0.1, means[name] + 0.1, 0.5, means[name] + 0.5])
            for name in (method, twins[method])
        }
    reach = {method: axes.get_ylim() for method, axes in panels.items()}
    assert reach["rotation"] == reach["masked"]
    assert 0.5 < reach["masked"][0] < 0.59 < 1.41 < reach["masked"][1] < 1.5
    assert reach["2D-rotation"][0] < 0.19 < 0.81 < reach["2D-rotation"][1] < 1
    alone = {name: looks[name] for name in ("scratch", "masked")}
    assert figures._by_method([row for row in rows if row["method"] in alone], alone) is None
