"""Parsing of environment settings from the command line."""

from __future__ import annotations

KwargValue = bool | int | float | str


def parse_setting(text: str) -> tuple[str, KwargValue]:
    """Return name and value of `name=value`; booleans and numbers are converted."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"setting {text!r}: write it as name=value, for example corridor_length=50")
    name = name.replace("-", "_")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    return name, value
