"""Registry of config classes by name, used for memories and for context policies."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Generic, SupportsIndex, TypeVar, cast

Config = TypeVar("Config")


class UnknownNameError(ValueError):
    """Error: no config class is registered under the requested name."""


class Registry(dict[str, type[Config]], Generic[Config]):
    """Config classes (frozen dataclasses) by name.

    Args:
        kind: Noun that error messages use for an entry, such as "memory".
        register_function: Name of the function that adds an entry.
        configs: Classes by name. A string "module:Class" is imported at the first use of its name.
    """

    def __init__(self, kind: str, register_function: str, configs: Mapping[str, type[Config] | str]) -> None:
        super().__init__(cast("Mapping[str, type[Config]]", configs))
        self.kind, self.register_function = kind, register_function

    def __getitem__(self, name: str) -> type[Config]:
        """Return the class of this name."""
        entry: Any = super().__getitem__(name)
        if isinstance(entry, str):
            module, _, class_name = entry.partition(":")
            entry = self[name] = getattr(importlib.import_module(module), class_name)
        return entry

    def register(self, name: str, config_class: type[Config]) -> None:
        """Add a config class under `name`.

        Raises ValueError if the name is taken. Raises TypeError if the class is not a dataclass.

        A class that is defined again, for example by rerunning a notebook cell, replaces the earlier class.
        """
        if not isinstance(config_class, type) or not dataclasses.is_dataclass(config_class):
            raise TypeError(f"{self.kind} {name!r}: {config_class!r} is not a frozen dataclass")
        # Without the decorator the class has the dataclass fields of its base class.
        if "__dataclass_fields__" not in vars(config_class) and inspect.get_annotations(config_class):
            raise TypeError(
                f"{self.kind} {name!r}: {config_class.__name__} adds fields but is not a dataclass; "
                "decorate it with @dataclass(frozen=True)"
            )
        if name in self and not _is_redefinition(config_class, self[name]):
            raise ValueError(
                f"{self.kind} {name!r} is already registered as {self[name].__name__}; choose another name"
            )
        self[name] = config_class

    def names(self) -> list[str]:
        """Return all registered names, sorted."""
        return sorted(self)

    def configure(self, name: str, **fields: Any) -> Config:
        """Return the named config, with defaults for fields that are not passed.

        Raises ValueError on an unknown name or field; the message then lists the known ones. Also raises
        ValueError if the value of an integer field is not an integer.
        """
        config_class = self.find(name)
        config_fields = dataclasses.fields(config_class)  # pyright: ignore[reportArgumentType]
        names = [field.name for field in config_fields]
        unknown = sorted(set(fields) - set(names))
        if unknown:
            raise ValueError(
                f"{self.kind} {name!r} has no field {', '.join(unknown)}; "
                f"its fields are {', '.join(names) or 'none'}"
            )
        for field in config_fields:
            value = fields.get(field.name)
            is_size = field.type in ("int", int, "int | None", int | None)
            is_default = field.name not in fields or (value is None and field.type not in ("int", int))
            if is_size and not is_default and not isinstance(value, SupportsIndex):
                raise ValueError(f"{self.kind} {name!r} has {field.name}={value!r}: must be an integer")
        return config_class(**fields)

    def find(self, name: str) -> type[Config]:
        """Return the class of this name. Raises UnknownNameError with the known names if there is none."""
        if name not in self:
            close = difflib.get_close_matches(name, self, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}; choose from {', '.join(self.names())}{hint}"
            )
        return self[name]

    def name_of(self, config: Config) -> str:
        """Return the registered name of a config's class. Raises ValueError if there is none."""
        place = f"{type(config).__module__}:{type(config).__qualname__}"
        for name, entry in cast("dict[str, type[Config] | str]", self).items():
            # An entry of another module is not imported for the comparison.
            if (entry is type(config) or entry == place) and self[name] is type(config):
                return name
        raise ValueError(f"{type(config).__name__} is not registered; call {self.register_function} first")


def _is_redefinition(config_class: type, before: type) -> bool:
    """Return True if both classes come from one definition that ran twice."""
    names = ((one.__module__, one.__qualname__) for one in (config_class, before))
    return config_class is not before and len(set(names)) == 1
