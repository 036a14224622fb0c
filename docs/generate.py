"""Fill the generated parts of the pages from the code: `python docs/generate.py`.

A page marks such a part by `<!-- begin: NAME ARGUMENT -->` and `<!-- end: NAME -->`. The text in
between is replaced, so a page is complete as a file, and nothing is written twice.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import selfvox
from selfvox import errors, tasks
from selfvox.cli import VERBS
from selfvox.settings.options import Option, options
from selfvox.settings.verbs import DEFAULT_TASK

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "selfvox"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PART = re.compile(r"(<!-- begin: ([\w-]+) ?(\w*) -->\n)(.*?)(<!-- end: \2 -->)", re.DOTALL)
# endings of files that open with what they are for
DESCRIBED = (".py", ".yaml", ".mplstyle", ".js", ".css", ".html")
REMARK_COLUMN = 30
MOST_IN_ONE_PIECE = 4


def main() -> None:
    """Rewrite every page with generated parts that differ from the code."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text:
            page.write_text(filled, encoding="utf-8")
            print(f"rewrote {page.relative_to(ROOT)}")


def fill(text: str) -> str:
    """The text of a page with every generated part replaced by what the code says now."""

    def generated(match: re.Match[str]) -> str:
        begin, name, argument, _, end = match.groups()
        return f"{begin}\n{GENERATORS[name](argument)}\n\n{end}"

    return PART.sub(generated, text)


def task_options(name: str) -> str:
    """The options of a task, as a table."""
    return _options_table(options(tasks.find_task(name)), "--task.")


def default_task(_: str) -> str:
    """The task of `pretrain` and `preview` where none is chosen."""
    question = tasks.task_question(DEFAULT_TASK).partition(": ")[2]
    return (
        f"Without `--task`, `pretrain` and `preview` use [{DEFAULT_TASK}]"
        f"(../tasks/{DEFAULT_TASK}.md): {question}"
    )


def exit_codes(_: str) -> str:
    """What the command line returns, and why."""
    skipped = (errors.SelfvoxError, errors.Stopped)
    listed = [
        error
        for error in vars(errors).values()
        if isinstance(error, type) and error.__module__ == errors.__name__ and error not in skipped
    ]
    rows = ["| code | meaning |", "|---|---|", "| 0 | done |"]
    rows += [f"| {error.exit_code} | {(error.__doc__ or '').splitlines()[0]} |" for error in listed]
    rows.append(
        "| 130, 143, 129 | Stopped by Ctrl-C, SIGTERM or a closed terminal; training saves a "
        "checkpoint first. |"
    )
    rows.append("| 1 | An internal error. Please report it with the output of `--debug`. |")
    return "\n".join(rows)


def layers(_: str) -> str:
    """Who may import whom, from `pyproject.toml`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return "```text\n" + "\n".join(names) + "\n```"


def tree(_: str) -> str:
    """The files of the package, each with the first line of its docstring."""
    return "```text\nsrc/selfvox/\n" + "\n".join(_tree_lines(SOURCE, "  ")) + "\n```"


def plan(name: str) -> str:
    """A study plan that is part of the package."""
    path = SOURCE / "studies" / "presets" / f"{name}.yaml"
    return f"```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```"


def command_line(_: str) -> str:
    """Every command with its options."""
    return "\n\n".join(_command(name) for name in VERBS)


def python_functions(_: str) -> str:
    """Every public function with its signature and help."""
    return "\n\n".join(_function(name) for name in _public_names())


GENERATORS = {
    "options": task_options,
    "default-task": default_task,
    "exit-codes": exit_codes,
    "layers": layers,
    "tree": tree,
    "plan": plan,
    "command-line": command_line,
    "python-functions": python_functions,
}


def _options_table(listed: list[Option], prefix: str = "--") -> str:
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for option in listed:
        flag = option.name.replace("_", "-")
        name = option.name.upper() if option.positional else f"{prefix}{flag}"
        help_text = option.help.replace("|", "\\|")
        rows.append(f"| `{name}` | {_default(option.default)} | {help_text} |")
    return "\n".join(rows)


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "`yes`" if value else "`no`"
    if isinstance(value, tuple) and len(value) > MOST_IN_ONE_PIECE:
        return ", ".join(f"`{item}`" for item in value)  # can be broken into lines
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{text}`"


def _tree_lines(folder: Path, indent: str) -> Iterator[str]:
    entries = sorted(folder.iterdir(), key=lambda path: (not path.is_file(), path.name))
    for path in entries:
        if path.is_dir() and path.name != "__pycache__":
            yield _tree_line(f"{indent}{path.name}/", _remark(path / "__init__.py"))
            yield from _tree_lines(path, indent + "  ")
        elif path.suffix in DESCRIBED and (path.name != "__init__.py" or folder == SOURCE):
            yield _tree_line(f"{indent}{path.name}", _remark(path))


def _tree_line(name: str, remark: str) -> str:
    return f"{name:<{REMARK_COLUMN}}  {remark}".rstrip()


def _remark(path: Path) -> str:
    """The first line of a module's docstring, or of the comment that opens another file."""
    if not path.exists():
        return ""
    first_line = path.read_text(encoding="utf-8").partition("\n")[0]
    return first_line.strip('#"/*{} ').rstrip(".") if len(first_line) < 200 else ""


def _command(name: str) -> str:
    verb = VERBS[name]
    listed = options(verb)
    positional = [option for option in listed if option.positional]
    words = [
        option.name.upper() if option.required else f"[{option.name.upper()}]"
        for option in positional
    ]
    blocks = [
        f"### {name}",
        (verb.__doc__ or "").split("\n")[0],
        "\n".join(["```text", " ".join(["selfvox", name, *words, "[--option value ...]"]), "```"]),
    ]
    for section in dict.fromkeys(option.section for option in listed):
        if section:
            blocks.append(f"**{section}**")
        blocks.append(_options_table([option for option in listed if option.section == section]))
    return "\n\n".join(blocks)


def _public_names() -> list[str]:
    """The functions of commands in their order, then what else the package offers."""
    names = [name for name in selfvox.__all__ if name not in VERBS]
    return [*VERBS, *names]


def _function(name: str) -> str:
    value = getattr(selfvox, name)
    # not Python: ruff would reformat it in the page, which would then differ from the code
    blocks = [f"### {name}", f"```text\n{_signature(name, value)}\n```"]
    docstring = inspect.getdoc(value) or ""
    if name in VERBS:  # their arguments are on the page of the command line
        docstring = re.sub(r"\n\n(Args|Raises):\n.*?(?=\n\n|\Z)", "", docstring, flags=re.DOTALL)
    blocks.extend(_google_sections(docstring))
    if name in VERBS:
        blocks.insert(3, f"The arguments are the [options of the command](cli.md#{name}).")
    return "\n\n".join(blocks)


def _signature(name: str, value: Any) -> str:
    signature = inspect.signature(value)
    parameters = [_without_type(item) for item in signature.parameters.values()]
    untyped = signature.replace(parameters=parameters, return_annotation=signature.empty)
    return "\n".join(
        textwrap.wrap(
            f"selfvox.{name}{untyped}",
            92,
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _without_type(parameter: inspect.Parameter) -> inspect.Parameter:
    default = parameter.default
    plain = str(default) if isinstance(default, Path) else default
    return parameter.replace(annotation=parameter.empty, default=plain)


def _google_sections(docstring: str) -> Iterator[str]:
    """The paragraphs of a docstring; `Args:` becomes a list, `Example:` a block of code."""
    for paragraph in docstring.split("\n\n"):
        heading, _, body = paragraph.partition("\n")
        body = textwrap.dedent(body)
        if heading in ("Example:", "Examples:"):
            yield f"```python\n{body}\n```"
        elif re.fullmatch(r"[A-Z]\w+:", heading):
            items = re.sub(r"\n +", " ", body).splitlines()
            marked = [re.sub(r"^(\w+): ", r"`\1`: ", item) for item in items]
            title = heading.rstrip(":")
            if len(marked) == 1:
                yield f"**{title}**: {marked[0]}"
            else:
                yield f"**{title}**"
                yield "\n".join(f"- {item}" for item in marked)
        else:
            yield paragraph


if __name__ == "__main__":
    main()
