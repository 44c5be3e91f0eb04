"""Prompts and tool messages for the model; each language has two TOML files."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from string import Template
from typing import Any

LANGUAGES = ("en", "zh")


class Prompts:
    """Prompt templates of one language; created by `load_prompts`."""

    def __init__(self, language: str, wording: dict[str, Any]) -> None:
        self.language = language
        self.weekdays: list[str] = wording["weekdays"]
        self._templates = {
            name: Template(text.strip()) for name, text in wording.items() if name != "weekdays"
        }

    @property
    def names(self) -> set[str]:
        """Names of the templates."""
        return set(self._templates)

    def say(self, name: str, /, **values: object) -> str:
        """Return the text of the template `name` with `values`; values are not interpreted as templates."""
        return self._templates[name].substitute({key: str(value) for key, value in values.items()})

    def placeholders(self, name: str) -> set[str]:
        """Return the names of the values that the template `name` needs."""
        return set(self._templates[name].get_identifiers())


class Phrase:
    """Text to render later, in any language: a template name, and values that may be phrases, too."""

    def __init__(self, name: str, /, **values: object) -> None:
        self.name, self._values = name, values

    def render(self, prompts: Prompts) -> str:
        """Return the text of the phrase, with its values, in the language of `prompts`."""
        values = {
            name: value.render(prompts) if isinstance(value, Phrase) else value
            for name, value in self._values.items()
        }
        return prompts.say(self.name, **values)


class LocalizedError(Exception):
    """Error with a translatable message.

    `phrase.render(prompts)` is the message in the language of `prompts`. `str(error)` is the message in
    English.
    """

    def __init__(self, name: str, /, **values: object) -> None:
        self.phrase = Phrase(name, **values)
        super().__init__(self.phrase.render(load_prompts("en")))


@cache
def load_prompts(language: str) -> Prompts:
    """Return the prompts of `language`. Raises ValueError if the language is unknown."""
    if language not in LANGUAGES:
        raise ValueError(f"language={language!r}: unknown language; choose from {', '.join(LANGUAGES)}")
    wording: dict[str, Any] = {}
    for file in (f"{language}.toml", f"tools_{language}.toml"):
        wording |= tomllib.loads(resources.files(__name__).joinpath(file).read_text(encoding="utf-8"))
    return Prompts(language, wording)
