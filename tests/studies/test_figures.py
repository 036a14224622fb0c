"""The figures of a study show the numbers of its tables: read back from what matplotlib drew."""

import dataclasses
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from selfvox.runs.ledger import write_records
from selfvox.studies import figure_parts, figures
from selfvox.studies.results import Result

LOOK = {"color": "black", "label": "method", "marker": "o"}


def row(method, fraction, mean, twin="", sd=0.01, **columns):
    """A row of `summary.csv`."""
    labels = int(20 * fraction)
    return {
        "method": method,
        "twin": twin,
        "score": "dice",
        "name": "all",
        "fraction": fraction,
        "labels": labels,
        "mean": mean,
        "sd": sd,
        **columns,
    }


def band_of(axes):
    """The lower and upper edge of the band that is drawn first, by x."""
    (path,) = axes.collections[0].get_paths()
    edges = {}
    for x, y in path.vertices:
        edges.setdefault(round(float(x), 9), []).append(float(y))
    return {x: (min(values), max(values)) for x, values in edges.items()}


def test_a_band_reaches_one_standard_deviation_to_each_side():
    _, (axes,) = figure_parts.make_panels(1, "Dice")
    rows = [row("m", 0.5, 0.7, sd=0.04), row("m", 0.1, 0.4, sd=0.1), row("m", 1.0, 0.8, sd=None)]
    figures._draw_by_labels(axes, rows, LOOK)
    expected = {0.1: (0.3, 0.5), 0.5: (0.66, 0.74), 1.0: (0.8, 0.8)}
    band = band_of(axes)
    assert list(sorted(band)) == list(expected)
    for x, edges in expected.items():
        assert band[x] == pytest.approx(edges)
    assert axes.lines[0].get_xydata() == pytest.approx(np.array([[0.1, 0.4], [0.5, 0.7], [1, 0.8]]))


def test_an_interval_reaches_from_its_low_to_its_high_end():
    _, (axes,) = figure_parts.make_panels(1, "Dice")
    rows = [
        {"difference": 0.1, "low": -0.2, "high": 0.15},
        {"difference": 0, "low": 0, "high": 0.3},
    ]
    figure_parts.draw_intervals(axes, [5, 10], rows, LOOK)
    _, _, (bars,) = axes.containers[0].lines  # after them, the simultaneous ones
    drawn = [segment.ravel().tolist() for segment in bars.get_segments()]
    assert drawn == [pytest.approx([5, -0.2, 5, 0.15]), pytest.approx([10, 0, 10, 0.3])]


def test_differences_show_how_many_twins_they_rest_on_and_no_interval_of_one_draw():
    _, (axes,) = figure_parts.make_panels(1, "Dice")
    wide = {"low_simultaneous": -0.3, "high_simultaneous": 0.25, "twins": 5}
    rows = [
        {"difference": 0.1, "low": -0.2, "high": 0.15, **wide},
        {"difference": 0.2, "low": None, "high": None, "twins": 1},
    ]
    figure_parts.draw_intervals(axes, [5, 10], rows, LOOK)
    assert [text.get_text() for text in axes.texts] == ["5", "1"]
    for container, ends in zip(axes.containers, ([-0.2, 0.15], [-0.3, 0.25]), strict=True):
        first, second = container.lines[2][0].get_segments()
        assert first[:, 1] == pytest.approx(np.array(ends))
        assert np.isnan(second).any() or not len(second)


def test_differences_of_all_methods_share_a_place_for_each_number_of_labels():
    rows = [
        row(method, share, 0.5, "scratch", difference=value, low=value - 0.1, high=value + 0.2)
        for method, value in (("a", 0.1), ("b", 0.3))
        for share in (0.1, 0.5)
    ]
    looks = {name: {**LOOK, "label": name} for name in ("scratch", "a", "b")}
    axes = figures._differences(rows, looks, "minus its twin's").axes[0]
    points = {
        bars.get_label(): bars.lines[0].get_xydata().ravel().tolist()
        for bars in axes.containers
        if bars.lines[0] is not None  # the simultaneous interval has no point
    }
    assert points == {
        "a": pytest.approx([-0.15, 0.1, 0.85, 0.1]),
        "b": pytest.approx([0.15, 0.3, 1.15, 0.3]),
    }
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "10"]


def test_the_labels_that_choose_the_weights_are_shown_too():
    rows = [
        row("a", share, 0.5, "scratch", difference=0.1, low=0, high=1, validation_labels=number)
        for share, number in ((0.1, 12), (0.5, 12), (1.0, 0))
    ]
    _, (axes,) = figure_parts.make_panels(1, "Dice")
    figure_parts.label_shares(axes, rows)
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["10 %\n2 + 12", "50 %\n10 + 12", "100 %\n20"]
    axes = figures._differences(rows, {"a": LOOK}, "minus its twin's").axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2 + 12", "10 + 12", "20"]


def run_of(folder, seed, lines):
    """A fine-tuned run with these validation scores by step."""
    path = folder / f"seed-{seed}"
    path.mkdir()
    write_records(path / "metrics.jsonl", [{"step": s, "dice_mean": d} for s, d in lines.items()])
    rows = ({"case": "x", "class": "1", "name": "all", "dice": "0.5"},)
    return Result(
        paths=(path,), method="m", twin=None, labels=4, fraction=0.5, seed=seed, pretrain_seed=None,
        transductive=False, slices=None, key="dice", rows=rows,
    )  # fmt: skip


def test_curves_by_steps_are_means_over_the_runs_with_a_band_of_one_standard_deviation(tmp_path):
    results = [run_of(tmp_path, 0, {10: 0.2, 20: 0.6}), run_of(tmp_path, 1, {10: 0.4, 20: 0.9})]
    axes = figures._by_steps(results, {"m": LOOK}).axes[0]
    assert axes.lines[0].get_xydata() == pytest.approx(np.array([[10, 0.3], [20, 0.75]]))
    assert axes.get_xscale() == "log"  # the first validations are a doubling of steps apart
    sd = [np.std([0.2, 0.4], ddof=1), np.std([0.6, 0.9], ddof=1)]
    band = band_of(axes)
    assert band[10] == pytest.approx((0.3 - sd[0], 0.3 + sd[0]))
    assert band[20] == pytest.approx((0.75 - sd[1], 0.75 + sd[1]))


def test_the_legend_by_steps_has_the_methods_that_have_steps(tmp_path):
    trained = run_of(tmp_path, 0, {10: 0.2, 20: 0.6})
    registered = dataclasses.replace(run_of(tmp_path, 1, {}), method="registration")
    looks = {"registration": LOOK | {"label": "registration"}, "m": LOOK | {"label": "m"}}
    figure = figures._by_steps([registered, trained], looks)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["m"]


def test_nothing_is_drawn_by_steps_without_validation_scores(tmp_path):
    assert figures._by_steps([run_of(tmp_path, 0, {})], {"m": LOOK}) is None


@pytest.mark.parametrize(
    ("minutes", "numbers"),
    [((4, 9), {"4", "5", "6", "7", "8", "9"}), ((4, 70), {"5", "10", "20", "50"})],
)
def test_the_axis_of_compute_has_plain_numbers(minutes, numbers):
    costs = dict(zip(("short", "long"), minutes, strict=True))
    rows = [
        row(name, 0.5, 0.8, cost_s=60 * cost, pretrain_cost_s=0, cost_unit="cpu")
        for name, cost in costs.items()
    ]
    figure = figures._by_compute(rows, {name: LOOK for name in costs})
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert {text.get_text() for place, text in ticks if low <= place <= high} == numbers


@pytest.mark.parametrize("count", [1, 8, 15])
@pytest.mark.parametrize("panels", [1, 3])
def test_a_legend_is_within_its_figure_however_many_and_long_its_names_are(count, panels):
    with mpl.style.context(figure_parts.STYLE):
        figure, axes = figure_parts.make_panels(panels, "Dice")
        for number in range(count):
            axes[0].plot(
                [1, 2], [number, number], label=f"relative_location of other heads {number}"
            )
        figure_parts.draw_legend(figure, axes)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.legends[0].get_window_extent(canvas.get_renderer())
    assert len(figure.legends) == 1
    assert len(figure.legends[0].get_texts()) == count
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert box.y1 <= min(panel.get_window_extent().y0 for panel in axes)


def test_methods_of_one_twin_have_panels_of_one_scale():
    means = {"scratch": 0.5, "rotation": 0.6, "masked": 0.9, "2D-scratch": 0.1, "2D-rotation": 0.3}
    twins = {"rotation": "scratch", "masked": "scratch", "2D-rotation": "2D-scratch"}
    rows = [
        row(name, share, mean + share, twins.get(name, ""))
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
    limits = {method: axes.get_ylim() for method, axes in panels.items()}
    assert limits["rotation"] == limits["masked"]
    assert 0.5 < limits["masked"][0] < 0.59 < 1.41 < limits["masked"][1] < 1.5
    assert limits["2D-rotation"][0] < 0.19 < 0.81 < limits["2D-rotation"][1] < 1
    single = {name: looks[name] for name in ("scratch", "masked")}
    assert figures._by_method([row for row in rows if row["method"] in single], single) is None


def test_twins_are_grey_and_a_method_keeps_its_colour_in_2d():
    def result(method, twin=None, slices=None, transductive=False):
        return Result(
            paths=(Path(),), method=method, twin=twin, labels=4, fraction=0.5, seed=0,
            pretrain_seed=None, transductive=transductive, slices=slices, key="dice", rows=(),
        )  # fmt: skip

    results = [
        result("scratch"),
        result("longer", "scratch"),
        result("a", "scratch"),
        result("b", "scratch", transductive=True),
        result("2D-b", "2D-scratch", "axial"),
    ]
    looks = figure_parts.looks_of(results, equal=["longer"])
    assert looks["scratch"]["color"] == looks["longer"]["color"] == figure_parts.GREY
    assert len({looks[name]["color"] for name in ("scratch", "a", "b")}) == 3
    assert looks["2D-b"]["color"] == looks["b"]["color"]
    styles = {name: look["linestyle"] for name, look in looks.items()}
    assert styles == {"scratch": "-", "longer": ":", "a": "-", "b": "-", "2D-b": "--"}
    points = {(look["color"], look["marker"]) for look in looks.values()}
    assert len(points) == len(looks)  # intervals have no line to tell them apart
    assert looks["b"]["label"] == "b (transductive), n = 1"
    more = [*results, result("a", "scratch"), dataclasses.replace(result("a"), labels=8)]
    assert figure_parts.looks_of(more)["a"]["label"] == "a, n = 1 to 2"


def test_networks_from_scratch_that_no_method_is_compared_with_differ_in_colour():
    def result(method, twin=None):
        rows = ({"case": "x", "class": "1", "name": "all", "dice": "0.5"},)
        return Result(
            paths=(Path(),), method=method, twin=twin, labels=4, fraction=0.5, seed=0,
            pretrain_seed=None, transductive=False, slices=None, key="dice", rows=rows,
        )  # fmt: skip

    scratch = [result("scratch"), result("scratch unlabelled"), result("registration")]
    colours = {look["color"] for look in figure_parts.looks_of(scratch).values()}
    assert len(colours) == 3
    assert figure_parts.GREY not in colours
    pretrained = [result("rotation", "scratch"), result("frozen", "scratch unlabelled")]
    looks = figure_parts.looks_of([*scratch, *pretrained])
    greys = [name for name, look in looks.items() if look["color"] == figure_parts.GREY]
    assert greys == ["scratch"]
    assert len({look["color"] for look in looks.values()}) == 5
