"""Config classes by name: what the registries of memories and of context policies share."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from typing import Any, Generic, SupportsIndex, TypeVar

Config = TypeVar("Config")


class UnknownNameError(ValueError):
    """Nobody has registered what was asked for by name."""


class Registry(dict[str, type[Config]], Generic[Config]):
    """Frozen dataclasses by their names.

    `kind` is the word for one in errors, `adder` how users add theirs.
    """

    def __init__(self, kind: str, adder: str, known: Mapping[str, type[Config]]) -> None:
        super().__init__(known)
        self.kind, self.adder = kind, adder

    def register(self, name: str, config_class: type[Config]) -> None:
        """Add a class under `name`. Raises ValueError if the name is taken, TypeError if it is no dataclass.

        A class that is defined anew, as by a cell of a notebook, takes the place of what it was.
        """
        if not isinstance(config_class, type) or not dataclasses.is_dataclass(config_class):
            raise TypeError(f"{self.kind} {name!r}: {config_class!r} is no config class, a frozen dataclass")
        # A decorator that was forgotten leaves the fields of the class above.
        if "__dataclass_fields__" not in vars(config_class) and inspect.get_annotations(config_class):
            raise TypeError(
                f"{self.kind} {name!r}: {config_class.__name__} has fields of its own; decorate it with "
                "@dataclass(frozen=True)"
            )
        if name in self and not _is_anew(config_class, self[name]):
            raise ValueError(
                f"{self.kind} {name!r} is already registered as {self[name].__name__}; choose another name"
            )
        self[name] = config_class

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self)

    def configure(self, name: str, **fields: Any) -> Config:
        """Return the named config, defaults where `fields` is silent.

        Raises ValueError on an unknown name or field, naming the choices, and on a size that is no whole
        number.
        """
        if name not in self:
            close = difflib.get_close_matches(name, self, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}; choose from {', '.join(self.names())}{hint}"
            )
        described = dataclasses.fields(self[name])  # pyright: ignore[reportArgumentType]
        known = [field.name for field in described]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(
                f"{self.kind} {name!r} has no field {', '.join(unknown)}; "
                f"its fields are {', '.join(known) or 'none'}"
            )
        for field in described:
            sized = field.name in fields and field.type in ("int", int)
            if sized and not isinstance(fields[field.name], SupportsIndex):
                raise ValueError(
                    f"{self.kind} {name!r} has {field.name}={fields[field.name]!r}: must be a whole number"
                )
        return self[name](**fields)

    def name_of(self, config: Config) -> str:
        """Return the name a config's class is registered under. Raises ValueError if it is not."""
        for name, config_class in self.items():
            if type(config) is config_class:
                return name
        raise ValueError(f"{type(config).__name__} is not registered; call {self.adder} first")


def _is_anew(config_class: type, before: type) -> bool:
    """Return whether the lines that defined a class were run again."""
    names = ((one.__module__, one.__qualname__) for one in (config_class, before))
    return config_class is not before and len(set(names)) == 1
