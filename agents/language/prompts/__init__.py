"""What the agent and its tools say to its model, in each language two files of their own."""

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


class Phrase:
    """A named text with its values, for who knows the language; values may be phrases themselves."""

    def __init__(self, name: str, /, **values: object) -> None:
        self.name, self._values = name, values

    def said(self, prompts: Prompts) -> str:
        """Return the text in the language of `prompts`."""
        values = {
            name: value.said(prompts) if isinstance(value, Phrase) else value
            for name, value in self._values.items()
        }
        return prompts.say(self.name, **values)


class Told(Exception):
    """An error that a model is told in its own language: `phrase`. As any error's, its text is English."""

    def __init__(self, name: str, /, **values: object) -> None:
        self.phrase = Phrase(name, **values)
        super().__init__(self.phrase.said(load_prompts("en")))


@cache
def load_prompts(language: str) -> Prompts:
    """Return the wording of `language`. Raises ValueError on one that has none."""
    if language not in LANGUAGES:
        raise ValueError(f"language={language!r}: there are prompts in {', '.join(LANGUAGES)}")
    wording: dict[str, Any] = {}
    for file in (f"{language}.toml", f"tools_{language}.toml"):
        wording |= tomllib.loads(resources.files(__name__).joinpath(file).read_text(encoding="utf-8"))
    return Prompts(language, wording)
