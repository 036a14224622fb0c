"""Settings files, and single settings: YAML with plain values only, no tags, anchors or keys given twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from selfvox.errors import UsageError

LARGEST = 1_000_000  # bytes
DEEPEST = 20  # levels


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping of setting names, and nothing else.

    Raises:
        UsageError: the file cannot be read, is not YAML, uses tags, anchors or duplicate keys, or is not a mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UsageError(
                f"{path}: larger than {LARGEST} bytes; give --config a file of settings"
            )
        found = value(content.decode("utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); give --config a YAML file") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: holds no settings; write one `name: value` a line")
    return found


def value(text: str, where: str) -> Any:
    """What a text says as YAML; `where` it stands, for refusals.

    Raises:
        UsageError: it is not YAML, or uses tags, anchors or duplicate keys.
    """
    try:
        _refuse_cunning(where, text)
        return yaml.load(text, Loader=_Strict)  # noqa: S506 - a SafeLoader underneath
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{where}: not plain YAML ({' '.join(str(error).split())})") from None


class _Strict(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"'{key}' is given twice")
        return super().construct_mapping(node, deep)


def _refuse_cunning(where: str, text: str) -> None:
    # a few lines of nested aliases expand to gigabytes, deep nesting takes minutes; settings need neither
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
            line = token.start_mark.line + 1
            raise UsageError(
                f"{where}: line {line} uses a YAML tag, anchor or alias; write the value itself"
            )
        kind = type(token).__name__
        depth += kind.endswith("StartToken") - kind.endswith("EndToken")
        if depth > DEEPEST:
            raise UsageError(f"{where}: nested too deep; write one `name: value` a line")
