"""Charts of a page: curves as SVG by matplotlib, with the values of each point to show on hover."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from selfvox.reports.page import number

# points of a curve that are drawn; the metrics of a long run would make a page of megabytes
MOST_POINTS = 150
_MOST_DOTS = 3000  # of a map, of which each is a scan
_GREY = "#888888"  # of axes and text: seen on light and on dark paper
_STYLE: dict[Any, Any] = {
    # text stays text: it is read aloud, and takes the colour of the page
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "text.color": _GREY,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# distinguished with any colour vision, on light and on dark paper (Okabe and Ito 2008)
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")

_MARKERS = ("o", "s", "^")  # of curves beyond the colours
MOST_CURVES = len(COLOURS) * len(_MARKERS)  # that are distinguished
_MOST_INSIDE = 4  # curves with a legend among them; of more it is next to them


@dataclass(frozen=True)
class Series:
    """A curve: values over a horizontal axis, with intervals where there are some."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    dashed: bool = False  # a level to compare with, such as chance
    names: Sequence[str] = ()  # of single points, which no line joins then
    texts: Sequence[str] = ()  # of single points, in place of names and values
    place: int | None = None  # among the colours; None: that among the curves of the chart


@dataclass(frozen=True)
class Chart:
    """A drawn chart."""

    title: str
    svg: Markup
    alt: str
    points: Mapping[str, Sequence[str]]  # the text of each point, by the id of its curve


def draw_chart(
    identity: str,
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    ticks: Sequence[float] | None = None,
) -> Chart:
    """Draw curves over one horizontal axis.

    Args:
        identity: letters, digits and `-`; of one chart of a page alone.
        title: of the chart.
        series: the curves; values that are not finite are left out.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        y_range: its ends; None: those of the values.
        ticks: of a logarithmic horizontal axis; None: a linear one.
    """
    import matplotlib as mpl  # only here: it takes half a second
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    points: dict[str, Sequence[str]] = {}
    salted = {**_STYLE, "svg.hashsalt": identity}
    with mpl.rc_context(salted):
        has_legend = len(series) > 1
        is_crowded = len(series) > _MOST_INSIDE
        is_map = any(curve.texts for curve in series)
        size = (7.6 if is_crowded else 6.2, 4.6 if is_map else 3.0)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.grid(alpha=0.25)
        solid = 0
        for place, curve in enumerate(map(_thinned, series)):
            if curve.dashed:
                axes.plot(curve.x, curve.y, "--", color=_GREY, label=curve.name, linewidth=1.5)
                continue
            number = solid if curve.place is None else curve.place
            colour = COLOURS[number % len(COLOURS)]
            marker = _MARKERS[number // len(COLOURS) % len(_MARKERS)]
            solid += 1
            if not (curve.names or curve.texts):
                axes.plot(curve.x, curve.y, color=colour, linewidth=1.5)
            gid = f"{identity}-{place}"
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3.5}
            axes.plot(curve.x, curve.y, linestyle="none", gid=gid, **style)
            # of both, for the legend alone
            axes.plot([], [], label=curve.name, **style)
            points[gid] = [_point_text(curve, index, x_label) for index in range(len(curve.x))]
            _draw_intervals(axes, curve, colour)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if y_range is not None:
            axes.set_ylim(*y_range)
        if ticks is not None:
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        if has_legend and is_crowded:
            figure.legend(loc="outside right upper", fontsize=8)
        elif has_legend:
            axes.legend(loc="best", fontsize=8)
        content = io.BytesIO()
        # nothing of when or by what it was drawn: the same curves are the same file
        figure.savefig(
            content,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    return Chart(title, _as_element(content.getvalue().decode()), _alt(title, series), points)


def points_of(charts: Sequence[Chart]) -> dict[str, Sequence[str]]:
    """The text of each point of all charts of a page, by the id of its curve."""
    return {gid: texts for chart in charts for gid, texts in chart.points.items()}


def _thinned(series: Series) -> Series:
    """Finite points alone, and so many that a page stays small; the last one is kept."""
    kept = [place for place, value in enumerate(series.y) if math.isfinite(value)]
    step = -(-len(kept) // (_MOST_DOTS if series.texts else MOST_POINTS)) or 1
    kept = kept[::-1][::step][::-1]
    low, high = (
        [ends[place] for place in kept] if ends else () for ends in (series.low, series.high)
    )
    return Series(
        series.name,
        [series.x[place] for place in kept],
        [series.y[place] for place in kept],
        low,
        high,
        series.dashed,
        [series.names[place] for place in kept] if series.names else (),
        [series.texts[place] for place in kept] if series.texts else (),
        series.place,
    )


def _draw_intervals(axes: Any, curve: Series, colour: str) -> None:
    for x, low, high in zip(curve.x, curve.low, curve.high, strict=False):
        if low is not None and high is not None:
            axes.plot([x, x], [low, high], color=colour, linewidth=1, alpha=0.8)


def _point_text(curve: Series, place: int, x_label: str) -> str:
    if curve.texts:
        return curve.texts[place]
    name = curve.names[place] if curve.names else curve.name
    text = f"{name}: {number(curve.y[place], 4)} at {x_label} {curve.x[place]:g}"
    if curve.low and curve.high and curve.low[place] is not None:
        text += f" ({number(curve.low[place])} to {number(curve.high[place])})"
    return text


def _alt(title: str, series: Sequence[Series]) -> str:
    """The first and the last value of each curve in words, or how many dots it has."""
    texts = [
        f"{curve.name}, {len(curve.y)} dots"
        if curve.texts
        else f"{curve.name} from {number(curve.y[0])} to {number(curve.y[-1])}"
        for curve in series
        if len(curve.y)
    ]
    return f"{title}: {'; '.join(texts)}"


def _as_element(svg: str) -> Markup:
    """The element alone, of a width that the page decides; matplotlib has escaped its texts."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    return Markup(element)  # noqa: S704
