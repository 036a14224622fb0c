"""The page of embeddings: a map of the scans by each property, and which scans are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from selfvox.data.naming import natural_key
from selfvox.data.properties import is_number
from selfvox.evaluation.embedding_files import NEIGHBOURS, PROBES, TABLE, read_embeddings
from selfvox.evaluation.embeddings import plane
from selfvox.reports.bundle import Bundle
from selfvox.reports.charts import MOST_CURVES, Chart, Series, draw_chart, points_of
from selfvox.reports.page import Page, number, read_rows
from selfvox.reports.run_facts import Finding

# columns of the table that are no properties
_OF_SCANS = ("id", "file", "subject", "x", "y", "nearest", "distance")
_UNKNOWN = "not known"
_RANGES = 4  # of a property that is measured; each has as many scans

Row = Mapping[str, str]


def embedding_page(name: str, folder: Path, bundle: Bundle) -> Page:
    """The page of a folder of embeddings.

    Args:
        name: of the page.
        folder: what `embed` wrote.
        bundle: of the report.

    Raises:
        DataError: the files are damaged.
    """
    embeddings = read_embeddings(folder)
    rows = read_rows(folder / TABLE)
    points, shares = plane(embeddings.vectors)
    charts = _maps(rows, points, shares)
    pictures = []
    for path in sorted((folder / "neighbours").glob("*.png")):
        address = bundle.add_picture(f"{name}-{path.stem}", path.read_bytes(), "png")
        pictures.append(
            {"name": "The scans most like the query, the first one", "address": address}
        )
    context = {
        "findings": [*_findings(rows), *_probe_findings(read_rows(folder / PROBES))],
        "charts": charts,
        "points": points_of(charts),
        "tables": {"Scans": _table(rows), "Most like the query": read_rows(folder / NEIGHBOURS)},
        "pictures": pictures,
    }
    return Page(name, f"Embeddings {folder.resolve().name}", "embeddings", context)


def _findings(rows: Sequence[Row]) -> list[Finding]:
    """How many scans there are, and whether those of one subject are alike."""
    subject_of = {row["id"]: row["subject"] for row in rows}
    counts = Counter(subject_of.values())
    lines = [Finding(f"{len(rows)} scans of {len(counts)} subjects.")]
    again = [row for row in rows if counts[row["subject"]] > 1]
    if again:
        same = sum(subject_of.get(row["nearest"]) == row["subject"] for row in again)
        lines.append(
            Finding(
                f"Of {len(again)} scans of subjects with several, {same} have one of the same "
                "subject as the nearest."
            )
        )
    far = max(rows, key=_distance)
    if far["nearest"]:
        lines.append(
            Finding(
                f"{far['id']} is the farthest from any other scan, at a distance of "
                f"{_distance(far):.2f}; two scans of independent features are 1.4 apart."
            )
        )
    return lines


def _probe_findings(rows: Sequence[Row]) -> list[Finding]:
    """How well each property is read from the vectors, and how unequally for groups of scans."""
    gaps = [
        Finding(
            f"The {row['score of']} for {row['property']} differs by "
            f"{float(row['largest gap']):.2f} between groups of {row['groups by']}."
        )
        for row in rows
        if not row["group"] and row["groups by"] != row["property"]
    ]
    return [
        Finding(
            f"A linear probe reads {row['property']} of {row['scans']} scans with a "
            f"{row['score of']} of {float(row['score']):.2f}; a guess has "
            f"{float(row['chance']):.2f}."
        )
        for row in rows
        if not row["group"] and row["groups by"] == row["property"]
    ] + gaps


def _maps(rows: Sequence[Row], points: np.ndarray, shares: np.ndarray) -> list[Chart]:
    """A map for each property, and by subject where colours distinguish them."""
    properties = [name for name in rows[0] if name not in _OF_SCANS]
    subjects = {row["subject"] for row in rows}
    if len(subjects) < len(rows) and len(subjects) <= MOST_CURVES:
        properties.append("subject")
    labels = [
        f"direction {place}, {share:.0%} of the variance" for place, share in enumerate(shares, 1)
    ]
    charts = []
    for place, name in enumerate(properties or [""]):
        groups = _groups([row.get(name, "") for row in rows])
        curves = [
            Series(
                group,
                points[members, 0].tolist(),
                points[members, 1].tolist(),
                texts=[_point_text(rows[member], name) for member in members],
            )
            for group, members in groups.items()
        ]
        title = f"Map of the scans by {name}" if name else "Map of the scans"
        charts.append(draw_chart(f"map-{place}", title, curves, labels[0], labels[1]))
    return charts


def _groups(values: Sequence[str]) -> dict[str, list[int]]:
    """The scans of each value, or of each range of numbers; those without a value are the last."""
    known = [place for place, value in enumerate(values) if value]
    unknown = [place for place, value in enumerate(values) if not value]
    if not known:
        return {"scans": unknown}
    groups: dict[str, list[int]] = {}
    if is_number([values[place] for place in known]):
        order = sorted(known, key=lambda place: float(values[place]))
        for part in np.array_split(order, _RANGES):
            ends = float(values[part[0]]), float(values[part[-1]])
            groups[f"{number(ends[0])} to {number(ends[1])}"] = part.tolist()
    else:
        for place in sorted(known, key=lambda place: natural_key(values[place])):
            groups.setdefault(values[place], []).append(place)
    # colours beyond these would be taken for one another
    rare = sorted(groups, key=lambda group: len(groups[group]))[
        : max(0, len(groups) - MOST_CURVES + 1)
    ]
    if rare:
        groups["others"] = [place for group in rare for place in groups.pop(group)]
    return groups | ({_UNKNOWN: unknown} if unknown else {})


def _point_text(row: Row, name: str) -> str:
    value = f", {name} {row[name] or _UNKNOWN}" if name else ""
    nearest = f"; nearest: {row['nearest']}" if row["nearest"] else ""
    return f"{row['id']}{value}{nearest}"


def _table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Without files, which would say where a person keeps scans; the loneliest scan first."""
    names = [name for name in rows[0] if name not in ("file", "x", "y")]
    ordered = sorted(rows, key=_distance, reverse=True)
    return [
        {name: f"{_distance(row):.2f}" if name == "distance" else row[name] for name in names}
        for row in ordered
    ]


def _distance(row: Row) -> float:
    return float(row["distance"] or 0)
