"""What the agent says to its model, in each language a file of its own."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from string import Template
from typing import Any

LANGUAGES = ("en", "zh")


class Prompts:
    """The wording of one language; get it from `load_prompts`."""

    def __init__(self, language: str, wording: dict[str, Any]) -> None:
        self.language = language
        self.weekdays: list[str] = wording["weekdays"]
        self._templates = {
            name: Template(text.strip()) for name, text in wording.items() if name != "weekdays"
        }

    @property
    def names(self) -> set[str]:
        """What can be said."""
        return set(self._templates)

    def say(self, name: str, /, **values: object) -> str:
        """Return the named text with `values` filled in, which are themselves never read as templates."""
        return self._templates[name].substitute({key: str(value) for key, value in values.items()})

    def asks_for(self, name: str) -> set[str]:
        """Return the values that the named text needs."""
        return set(self._templates[name].get_identifiers())


@cache
def load_prompts(language: str) -> Prompts:
    """Return the wording of `language`. Raises ValueError on one that has none."""
    if language not in LANGUAGES:
        raise ValueError(f"language={language!r}: there are prompts in {', '.join(LANGUAGES)}")
    text = resources.files(__name__).joinpath(f"{language}.toml").read_text(encoding="utf-8")
    return Prompts(language, tomllib.loads(text))
