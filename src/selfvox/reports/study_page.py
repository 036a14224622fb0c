"""The page of a study: what it found, counted; its scores as charts, and its tables to sort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from selfvox.errors import UsageError
from selfvox.reports.bundle import Bundle
from selfvox.reports.charts import Chart, Series, draw_chart, points_of
from selfvox.reports.page import Page, read_rows
from selfvox.reports.run_facts import Finding

SUMMARY = "summary.csv"
COMPARISONS = "comparisons.csv"
_MOST_NAMED = 5  # differences
_OVERALL = ("mean of classes", "mean of regions")

Row = Mapping[str, str]


def is_study(folder: Path) -> bool:
    """Whether a folder is that of a study with tables."""
    return (folder / "plan.yaml").is_file() and (folder / SUMMARY).is_file()


def study_page(name: str, folder: Path, bundle: Bundle) -> Page:
    """The page of a study.

    Args:
        name: of the page.
        folder: of the study, or one with its tables.
        bundle: of the report.

    Raises:
        UsageError: its table has no rows.
    """
    summary = read_rows(folder / SUMMARY)
    if not summary:
        raise UsageError(f"{folder}: has no finished cells yet; make the report when some are done")
    comparisons = read_rows(folder / COMPARISONS)
    charts = _charts(summary)
    pictures = []
    for path in sorted((folder / "figures").glob("*.png")):
        address = bundle.add_picture(f"{name}-{path.stem}", path.read_bytes(), "png")
        pictures.append({"name": path.stem.replace("-", " "), "address": address})
    context = {
        "findings": findings(summary),
        "charts": charts,
        "points": points_of(charts),
        "tables": {"Summary": summary, "Other comparisons": comparisons},
        "pictures": pictures,
    }
    return Page(name, f"Study {folder.resolve().name}", "study", context)


def findings(summary: Sequence[Row]) -> list[Finding]:
    """How many differences to the baselines are beyond chance, and the largest of them.

    Of the overall score where there is one, else of every class. An interval counts that is right
    at all numbers of labels together, where the table has it.
    """
    rows = [row for row in summary if row["name"] in _OVERALL] or list(summary)
    compared = [row for row in rows if row["twin"]]
    if not compared:
        return [Finding("No method is compared with a baseline yet.")]
    with_interval = [row for row in compared if _interval(row) is not None]
    better = [row for row in with_interval if (_interval(row) or (0, 0))[0] > 0]
    worse = [row for row in with_interval if (_interval(row) or (0, 0))[1] < 0]
    lines = [
        Finding(
            f"Of {len(with_interval)} differences to from-scratch baselines with an interval, "
            f"{len(better)} are above 0 and {len(worse)} below 0 with 95 % confidence; "
            f"{len(with_interval) - len(better) - len(worse)} may be chance. One in twenty such "
            "intervals misses the true difference."
        )
    ]
    if len(with_interval) < len(compared):
        missing = len(compared) - len(with_interval)
        lines.append(Finding(f"{missing} differences have no interval: one draw, or one subject."))
    by_size = sorted(better + worse, key=lambda row: -abs(float(row["difference"])))
    lines += [Finding(_in_words(row)) for row in by_size[:_MOST_NAMED]]
    rising = sum(int(row.get("rising") or 0) for row in rows)
    if rising:
        runs = sum(int(row["runs"]) for row in rows)
        lines.append(
            Finding(f"{rising} of {runs} runs still improved at their end: longer runs may differ.")
        )
    return lines


def _in_words(row: Row) -> str:
    low, high = _interval(row) or (0.0, 0.0)
    return (
        f"{row['method']} with {row['labels']} labels, {row['name']}: {row['score']} "
        f"{float(row['difference']):+.3f} compared with {row['twin']} ({low:+.3f} to {high:+.3f})."
    )


def _interval(row: Row) -> tuple[float, float] | None:
    """That which is right at all numbers of labels together, else that of the row."""
    for low, high in (("low_simultaneous", "high_simultaneous"), ("low", "high")):
        if row.get(low) and row.get(high):
            return float(row[low]), float(row[high])
    return None


def _charts(summary: Sequence[Row]) -> list[Chart]:
    """For each class: the score by labels, and the difference to the baseline by labels."""
    charts = []
    methods = list(dict.fromkeys(row["method"] for row in summary))
    names = list(dict.fromkeys(row["name"] for row in summary))
    # the overall score first
    names.sort(key=lambda name: name not in _OVERALL)
    for place, name in enumerate(names):
        rows = [row for row in summary if row["name"] == name]
        score = rows[0]["score"].replace("_", " ")
        levels = sorted({float(row["labels"]) for row in rows})
        charts.append(
            draw_chart(
                f"score-{place}",
                f"{name}: {score}",
                _curves(rows, "mean", methods),
                "labels",
                score,
                ticks=levels,
            )
        )
        compared = [row for row in rows if row["twin"]]
        if compared:
            zero = Series("no difference", levels, [0.0] * len(levels), dashed=True)
            charts.append(
                draw_chart(
                    f"difference-{place}",
                    f"{name}: difference to the baseline",
                    [*_curves(compared, "difference", methods), zero],
                    "labels",
                    "difference",
                    ticks=levels,
                )
            )
    return charts


def _curves(rows: Sequence[Row], column: str, methods: Sequence[str]) -> list[Series]:
    """A curve of each method by its labels; a difference has its interval, a mean its spread.

    A method has the same colour in all charts, by its place among all `methods`.
    """
    curves = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = sorted(
            (row for row in rows if row["method"] == method and row[column]),
            key=lambda row: float(row["labels"]),
        )
        values = [float(row[column]) for row in own]
        if column == "difference":
            ends = [_interval(row) or (None, None) for row in own]
        else:
            spreads = [float(row["sd"]) if row["sd"] else None for row in own]
            ends = [
                (None, None) if spread is None else (value - spread, value + spread)
                for value, spread in zip(values, spreads, strict=True)
            ]
        curves.append(
            Series(
                method,
                [float(row["labels"]) for row in own],
                values,
                [low for low, _ in ends],
                [high for _, high in ends],
                place=methods.index(method),
            )
        )
    return curves
