"""Settings as YAML with plain values only: no tags, anchors or duplicate keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from selfvox.errors import UsageError

MAX_BYTES = 1_000_000  # a plan has some kilobytes
MAX_DEPTH = 20  # levels of nesting


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file: a mapping from setting names to values.

    Raises:
        UsageError: the file cannot be read, is not YAML, uses tags, anchors or duplicate keys, or
            is not a mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(
                f"{path}: larger than {MAX_BYTES} bytes; give --config a file of settings"
            )
        settings = parse_value(content.decode("utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); give --config a YAML file") from None
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: contains no settings; write one `name: value` per line")
    return settings


def parse_value(text: str, location: str) -> Any:
    """Parse a text as YAML; `location` begins the message of an error.

    Raises:
        UsageError: it is not YAML, or uses tags, anchors or duplicate keys.
    """
    try:
        _check_plain(text, location)
        return yaml.load(text, Loader=_Strict)  # noqa: S506 - a SafeLoader underneath
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{location}: not plain YAML ({' '.join(str(error).split())})") from None


class _Strict(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"'{key}' is given twice")
        return super().construct_mapping(node, deep)


def _check_plain(text: str, location: str) -> None:
    # a few lines of nested aliases expand to gigabytes, and deep nesting takes minutes to parse;
    # settings need neither
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
            line = token.start_mark.line + 1
            raise UsageError(
                f"{location}: line {line} uses a YAML tag, anchor or alias; write the value itself"
            )
        kind = type(token).__name__
        depth += kind.endswith("StartToken") - kind.endswith("EndToken")
        if depth > MAX_DEPTH:
            raise UsageError(f"{location}: nested too deeply; write one `name: value` per line")
