"""Write `src/selfvox/__init__.pyi` from the settings dataclasses: `make stub`.

Type checkers and editors read the stub; a test keeps it equal to what this script writes.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import selfvox
from selfvox.functions import AnyPath, Module, OnMetrics, Rows, Task, python_signature
from selfvox.settings.verbs import VERBS

STUB = Path(__file__).parent.parent / "src" / "selfvox" / "__init__.pyi"
HEADER = """\
# Written by tools/write_stub.py from the settings dataclasses: `make stub`
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from selfvox.notebook import LoadedClassifier, LoadedEncoder, LoadedSegmenter
from selfvox.pretext import PretextTask

AnyPath: TypeAlias = str | os.PathLike[str]
Rows: TypeAlias = list[dict[str, Any]]
OnMetrics: TypeAlias = Callable[[int, dict[str, float]], object]

__version__: str
"""


def stub() -> str:
    """The text of the stub."""
    lines = [HEADER, "__all__ = ["]
    lines += [f'    "{name}",' for name in selfvox.__all__]
    lines += ["]"]
    for verb in VERBS:
        lines += ["", *function_lines(verb)]
    for name in selfvox.__all__:
        if name not in VERBS:
            lines += ["", written_function(name)]
    return "\n".join(lines) + "\n"


def written_function(name: str) -> str:
    """A function that `__init__.py` defines itself: its signature and docstring."""
    source = inspect.getsource(getattr(selfvox, name))
    head, docstring, _ = source.split('"""')
    head = re.sub(r"\b_(os|Sequence|nn)\b", r"\1", head).replace(
        "str | os.PathLike[str]", "AnyPath"
    )
    return f'{head}"""{docstring}"""'


def function_lines(verb: str) -> Iterator[str]:
    """The lines of one function: an argument per line, and the docstring."""
    signature = python_signature(verb)
    yield f"def {verb}("
    keyword_only = False
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "    *,"
        yield f"    {parameter.name}: {type_text(parameter.annotation)}{default_text(parameter)},"
    yield f") -> {type_text(signature.return_annotation)}:"
    first, *rest = (getattr(selfvox, verb).__doc__ or "").rstrip().split("\n")
    yield f'    """{first}'
    yield from (f"    {line}".rstrip() for line in rest)
    yield '    """'


def default_text(parameter: inspect.Parameter) -> str:
    """The default as Python writes it; paths as text."""
    if parameter.default is inspect.Parameter.empty:
        return ""
    default = parameter.default
    return f" = {literal(str(default) if isinstance(default, Path) else default)}"


def literal(value: Any) -> str:
    """A value as the formatter writes it: text in double quotes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def type_text(kind: Any) -> str:
    """A type as the stub writes it, the same under every version of Python."""
    if kind == AnyPath:
        return "AnyPath"
    if kind == Rows:
        return "Rows"
    if kind in (None, types.NoneType):
        return "None"
    if kind == OnMetrics:
        return "OnMetrics"
    if kind in (Module, Task):
        return "nn.Module" if kind is Module else "PretextTask"
    origin = typing.get_origin(kind)
    members = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        whole_path = set(typing.get_args(AnyPath)) <= set(members)
        rest = [item for item in members if not (whole_path and item in typing.get_args(AnyPath))]
        texts = ["AnyPath"] * whole_path + [type_text(item) for item in rest]
        return " | ".join(texts)
    if origin is Literal:
        return f"Literal[{', '.join(map(literal, members))}]"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_text, members))}]"
    return "Any" if kind is Any else str(kind.__name__)


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
