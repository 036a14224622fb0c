"""Pages of a report, made from templates: HTML with everything escaped."""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from selfvox.reports.bundle import Bundle
from selfvox.runs.atomic_files import write_text

_ASSETS = resources.files("selfvox.reports") / "assets"
STYLE = "report.css"
VIEWER = "niivue/niivue.umd.js"
LICENCE = "niivue/LICENSE"
# in the order in which a page loads them
_SCRIPTS: Mapping[str, Sequence[str]] = {
    "predictions": (
        VIEWER,
        "data.js",
        "table.js",
        "charts.js",
        "viewer.js",
        "marks.js",
        "brush.js",
        "drawings.js",
        "review.js",
    ),
}
_OTHER_SCRIPTS = ("table.js", "charts.js")


@dataclasses.dataclass(frozen=True)
class Page:
    """A page before it is written."""

    name: str  # safe as a file name
    title: str
    template: str  # without ending
    context: Mapping[str, Any]


def write_pages(pages: Sequence[Page], bundle: Bundle, version: str) -> None:
    """Write the pages, and the assets that they use; the first or a list of them is `index.html`.

    Args:
        pages: at least one.
        bundle: of the report, with all data.
        version: of selfvox.
    """
    scripts = {page.name: _SCRIPTS.get(page.template, _OTHER_SCRIPTS) for page in pages}
    if not bundle.single_file:
        for name in {STYLE, *(script for used in scripts.values() for script in used)}:
            _copy(name, bundle)
        if any(VIEWER in used for used in scripts.values()):
            _copy(LICENCE, bundle)
    links = [{"title": page.title, "file": f"{page.name}.html"} for page in pages]
    for page in pages:
        is_index = len(pages) == 1
        text = (
            _environment()
            .get_template(f"{page.template}.html")
            .render(
                **page.context,
                title=page.title,
                version=version,
                style=_Asset(STYLE, bundle),
                scripts=[_Asset(name, bundle) for name in scripts[page.name]],
                licence=_licence() if VIEWER in scripts[page.name] else None,
                pages=[] if is_index else links,
                file=f"{page.name}.html",
                single_file=bundle.single_file,
                data=bundle.data if bundle.single_file else {},
            )
        )
        write_text(bundle.folder / ("index.html" if is_index else f"{page.name}.html"), text)
    if len(pages) > 1:
        text = (
            _environment()
            .get_template("index.html")
            .render(
                title="Report",
                version=version,
                style=_Asset(STYLE, bundle),
                scripts=[],
                licence=None,
                pages=links,
                file="index.html",
                single_file=bundle.single_file,
                data={},
            )
        )
        write_text(bundle.folder / "index.html", text)


class _Asset:
    """A script or a style sheet: a file next to the page, or its text inside."""

    def __init__(self, name: str, bundle: Bundle):
        self.name = f"assets/{name}"
        self.text = _inline_text(name) if bundle.single_file else None


def _inline_text(name: str) -> Markup:
    text = (_ASSETS / name).read_text(encoding="utf-8")
    # of our own files alone; the end of a script would be taken for that of its element
    return Markup(text.replace("</script", "<\\/script"))  # noqa: S704


def _licence() -> str:
    return (_ASSETS / LICENCE).read_text(encoding="utf-8")


def _copy(name: str, bundle: Bundle) -> None:
    path = bundle.folder / "assets" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((_ASSETS / name).read_bytes())


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("selfvox.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["sort_kind"] = sort_kind
    environment.filters["shortened"] = shortened
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """A number in so many digits, or all of a larger whole one; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{digits}g}"
    # large sizes, such as pixels, are read as whole numbers
    return f"{value:.0f}" if "e+" in text else text


def shortened(cell: str) -> str:
    """A fraction in a table in three digits; other cells as they are."""
    is_fraction = re.fullmatch(r"-?\d+\.\d{3,}(e-?\d+)?", str(cell))
    return number(float(cell)) if is_fraction else cell


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table that selfvox wrote; none where there is no such table."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def sort_kind(rows: Sequence[Mapping[str, str]], column: str) -> str:
    """How a column of a table sorts: by `number` where all of its values are, else by `text`."""
    try:
        for row in rows:
            float(row[column] or 0)
    except ValueError:
        return "text"
    return "number"
