"""Fills `<!-- insert: NAME -->` in the pages from the code, so that nothing is written down twice."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from selfvox import errors, tasks
from selfvox.cli_help import flag
from selfvox.settings.options import options

ROOT = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    return re.sub(
        r"<!-- insert: ([\w-]+) ?(\w*) -->",
        lambda found: INSERTS[found[1]](*found.groups()[1:]),
        markdown,
    )


def task_options(name: str) -> str:
    """The options of a task, as a table."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for option in options(tasks.find_task(name)):
        default = option.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        rows.append(
            f"| `{flag('task.' + option.name)}` | `{shown}` | {option.help} |".replace(
                "True", "yes"
            )
        )
    return "\n".join(rows).replace("`False`", "`no`")


def exit_codes(_: str) -> str:
    """What the command line returns, and why."""
    rows = ["| code | meaning |", "|---|---|", "| 0 | done |"]
    classes = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and each.__module__ == errors.__name__
    ]
    for each in classes:
        code = each.exit_code
        if each not in (errors.SelfvoxError, errors.Stopped):
            rows.append(f"| {code} | {(each.__doc__ or '').splitlines()[0]} |")
    rows.append("| 130, 143 | Stopped by Ctrl-C or SIGTERM; training saves first. |")
    rows.append("| 1 | An error of ours. Please report it, with what `--debug` shows. |")
    return "\n".join(rows)


def layers(_: str) -> str:
    """Who may import whom, from `pyproject.toml`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return "```text\n" + "\n".join(found) + "\n```"


def tree(_: str) -> str:
    """The annotated file tree, from the README."""
    found = re.search(
        r"```tree\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert found, "README.md has lost its tree"
    return f"```text\n{found[1]}```"


def plan(name: str) -> str:
    """A plan that comes with selfvox."""
    text = (ROOT / "src" / "selfvox" / "studies" / "presets" / f"{name}.yaml").read_text(
        encoding="utf-8"
    )
    return f"```yaml\n{text}```"


INSERTS = {
    "options": task_options,
    "exit-codes": exit_codes,
    "layers": layers,
    "tree": tree,
    "plan": plan,
}
