"""Reader of YAML with plain data only, for files that may be untrusted."""

from __future__ import annotations

import re
from typing import Any

import yaml

_TEXT = "tag:yaml.org,2002:str"


class _StrictLoader(yaml.SafeLoader):
    """Loader of plain data by the core schema of YAML 1.2, in which `1e-3` is a number.

    Words with another meaning in YAML 1.1, such as `no` and `010`, are refused. So are entries that occur
    twice, and aliases, since a few lines of them stand for gigabytes.
    """

    yaml_implicit_resolvers = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"line {self.peek_event().start_mark.line + 1}: aliases are not supported")
        return super().compose_node(parent, index)

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        older = yaml.SafeLoader.yaml_implicit_resolvers.get(node.value[:1], [])
        if node.style is None and node.tag == _TEXT and any(p.match(node.value) for _, p in older):
            line = f"line {node.start_mark.line + 1}"
            raise ValueError(
                f"{line}: {node.value} is no text in YAML 1.1; put a text in quotes, write true or false for "
                "yes or no, and numbers without zeros in front and without underscores"
            )
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            name, line = self.construct_object(key, deep=True), f"line {key.start_mark.line + 1}"
            if not isinstance(name, str):
                raise ValueError(f"{line}: the name {name!r:.40} is no text; put it in quotes")  # noqa: TRY004
            if name in names:
                raise ValueError(f"{line}: the entry {name!r} occurs twice")
            names.add(name)
        return super().construct_mapping(node, deep)


_RESOLVERS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": (
        r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))"
        r"|\.(nan|NaN|NAN)"
    ),
}
"""Pattern of the words of each type; all other words are texts."""
for _name, _pattern in _RESOLVERS.items():
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), None)


def parse_yaml(text: str, source: object) -> Any:
    """Parse YAML. Raises ValueError, naming `source`, on errors and on anything but plain data."""
    try:
        return yaml.load(text, _StrictLoader)
    except RecursionError:
        raise ValueError(f"{source} is not YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f"line {mark.line + 1}: "
        reasons = [getattr(error, name, None) for name in ("context", "problem")]
        reason = ", ".join(filter(None, reasons)) or error
        raise ValueError(f"{source} is not YAML: {place}{reason}") from None
