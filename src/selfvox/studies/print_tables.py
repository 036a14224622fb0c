"""What a study prints: its summary and comparisons as tables, and what their columns mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfvox.evaluation.segmentation import EMPTY_RULE
from selfvox.runs.progress import format_seconds
from selfvox.studies.random_effects import FACTORS
from selfvox.studies.results import Result, labels_text

WIDTH = 250  # characters: wider than any row
Row = Mapping[str, Any]


class _Column(NamedTuple):
    """A printed column of a comparison."""

    heading: str
    text: Callable[[Row], str]


def interval_text(low: float | None, high: float | None) -> str:
    """An interval, or a dash where there is none."""
    return "-" if low is None or high is None else f"{low:+.3f} ... {high:+.3f}"


def _saved_text(row: Row) -> str:
    """Labels saved with their interval; its open ends have the words less and more."""
    saved = str(row["labels_saved"])
    low = row["labels_saved_low"]
    high = row["labels_saved_high"]
    if saved.startswith("unknown") or row["low"] is None:
        return saved.partition(":")[0]
    ends = ["less" if low is None else f"{low:+.0f}", "more" if high is None else f"{high:+.0f}"]
    return f"{saved} ({' ... '.join(ends)})"


def _compute_text(row: Row) -> str:
    """Time of a run, and of its pre-training: `3 min + 40 min`."""
    if row["cost_s"] is None:
        return ""
    text = format_seconds(row["cost_s"])
    if row["pretrain_cost_s"] is None:
        text += " + ?"
    elif row["pretrain_cost_s"]:
        text += f" + {format_seconds(row['pretrain_cost_s'])}"
    return text


def _ratio_text(row: Row) -> str:
    return "" if row["cost_ratio"] is None else f"x {row['cost_ratio']:.2f}"


def _memory_text(row: Row) -> str:
    return "" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.0f} MiB"


_DIFFERENCE = (
    _Column("difference", lambda row: f"{row['difference']:+.3f}"),
    _Column("95 %", lambda row: interval_text(row["low"], row["high"])),
    _Column(
        "95 %, all labels",
        lambda row: interval_text(row["low_simultaneous"], row["high_simultaneous"]),
    ),
    _Column(
        "95 %, all methods",
        lambda row: interval_text(row["low_familywise"], row["high_familywise"]),
    ),
    _Column("median", lambda row: f"{row['difference_median']:+.3f}"),
    _Column("wins", lambda row: f"{row['wins']} of {row['twins']}"),
    _Column("labels saved", _saved_text),
)


def print_summary(summary: Sequence[Row], results: Sequence[Result]) -> None:
    """Print the rows of the overall mean, and their differences; all rows are in `summary.csv`."""
    overall = results[0].overall
    key = results[0].key
    score = key.replace("_", " ").capitalize()
    table = _new_table(
        f"{score}, {overall}, {len(results[0].cases())} test cases",
        ("labels", "runs", "rising", "compute", "memory", "mean ± sd"),
    )
    rows = [row for row in summary if row["name"] == overall]
    for labels in sorted({row["labels"] for row in rows}):
        for row in rows:
            if row["labels"] == labels:
                _add_row(table, _summary_cells(row))
        table.add_section()
    _wide_console().print(table)
    print_comparison(
        "Minus the from-scratch baseline: same network, labels and steps",
        [row for row in rows if row["twin"]],
    )


def print_notes(summary: Sequence[Row], result: Result) -> None:
    """Print what the columns of the tables mean, after the last of them."""
    rows = [row for row in summary if row["name"] == result.overall]
    console = Console(highlight=False)
    for note in _notes(rows, result):
        console.print(note, soft_wrap=not console.is_terminal)


def _summary_cells(row: Row) -> list[str]:
    sd = "" if row["sd"] is None else f" ± {row['sd']:.3f}"
    rising = "" if row["rising"] is None else str(row["rising"])
    score = f"{row['mean']:.3f}{sd}"
    compute = _compute_text(row)
    return [_name(row), _labels(row), str(row["runs"]), rising, compute, _memory_text(row), score]


def _notes(rows: Sequence[Row], result: Result) -> list[str]:
    lines = [
        "Labels: subjects that train, + those that choose the weights.",
        "Rising: runs with a validation score (or loss) that improved until the last fifth of the "
        "steps; train longer.",
        "sd: over runs. Differences are paired by seed and case.",
        "95 %: over pre-trainings, draws of labels and subjects, if there are several; all labels: "
        "right at all numbers of labels of a method together; all methods: and of all methods "
        "here.",
        "Wins: baselines that are worse than the mean of the runs paired with them.",
        "Labels saved: how many more the baseline needs for the same score, by its curve; unknown "
        "if that has one point or has not converged (summary.csv has the reason).",
    ]
    units = {row["cost_unit"] for row in rows} - {None}
    if units:
        named = " or ".join(sorted({"cpu": "processor", "gpu": "GPU"}[unit] for unit in units))
        lines += [
            f"Compute: {named} time of a run, + of its pre-training, which may serve several runs; "
            "x: how many times the baseline's, pre-training included.",
            "Memory: the most of a run.",
        ]
    if any(row["low"] is not None and FACTORS[0] not in row["over"] for row in rows):
        lines.append("Of methods with one pre-training, intervals are about this one.")
    if any(row["twin"] and row["low"] is None for row in rows):
        lines.append("-: no interval, of one draw of labels or one subject.")
    if result.answers():
        lines.append("The score is of all test cases of a run together, across its folds if any.")
    if any(row["transductive"] for row in rows):
        lines.append("Transductive: pre-trained on the test scans too, without their labels.")
    if result.key == "dice":
        lines.append(EMPTY_RULE)
    return lines


def print_comparison(title: str, rows: Sequence[Row]) -> None:
    """Print the differences to other methods, if there are any; the title says to which."""
    if not rows:
        return
    texts = {column.heading: [column.text(row) for row in rows] for column in _DIFFERENCE}
    single = texts["95 %"]
    # wider intervals, unless there is a single number of labels, or a single row
    shown = [name for name, cells in texts.items() if name == "95 %" or cells != single]
    table = _new_table(title, ("labels", "compute", *shown))
    for number, row in sorted(enumerate(rows), key=lambda entry: int(entry[1]["labels"])):
        cells = [texts[name][number] for name in shown]
        _add_row(table, [_name(row), _labels(row), _ratio_text(row), *cells])
    _wide_console().print(table)


def _name(row: Row) -> str:
    return str(row["method"]) + (" (transductive)" if row.get("transductive") else "")


def _labels(row: Row) -> str:
    return labels_text(row["labels"], row.get("validation_labels", 0))


def _new_table(title: str, headings: Sequence[str]) -> Table:
    """A table with a column of names and these columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column("", justify="left", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _add_row(table: Table, cells: Sequence[str]) -> None:
    # Text: rich would take a name in brackets for a style
    table.add_row(*(Text(cell) for cell in cells))


def _wide_console() -> Console:
    console = Console(highlight=False)
    # a narrow terminal would cut the cells: long lines are wrapped instead
    console.width = max(console.width, WIDTH)
    return console
