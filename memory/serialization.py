"""Conversion of configs to nested JSON objects and back.

In JSON, the entry `name` identifies a memory or another registered config by its registered name. Where a
field allows several subclasses of an abstract class, the entry `kind` identifies the subclass.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from scrubjay._version import __version__
from scrubjay.memory.contract.base import MemoryConfig
from scrubjay.memory.registry import make_config, name_of

T = TypeVar("T")

FORMAT = 2
"""Number of the format of stored configs. A file with another number, or with none, is refused.

The number grows if a stored config can no longer be read, or would be read with another meaning."""


class _Family(NamedTuple):
    """Functions that convert between names and config classes, for the configs of one base class."""

    class_of: Callable[[str], type]
    name_of: Callable[[Any], str]


_FAMILIES: dict[type, _Family] = {
    MemoryConfig: _Family(lambda name: type(make_config(name)), name_of),
}


def register_family(base: type, class_of: Callable[[str], type], name_of: Callable[[Any], str]) -> None:
    """Register `base`, so that its subclasses are identified by an entry `name` in JSON.

    `class_of` returns the class for a name, or raises ValueError. `name_of` returns the name of a config.
    """
    _FAMILIES[base] = _Family(class_of, name_of)


def take_format(fields: dict[str, Any], source: object) -> None:
    """Remove the entry `format` of a stored config. Raises ValueError if it is not `FORMAT`."""
    number = fields.pop("format", None)
    if type(number) is not int or number != FORMAT:
        text = "no format number" if number is None else f"format {number!r:.40}"
        raise ValueError(
            f"{source} has {text}: Scrubjay {__version__} reads format {FORMAT}; load it with the version "
            "that wrote it, or create it again with this version"
        )


def encode(value: Any) -> Any:
    """Convert a config to a value for `json.dumps`. Raises TypeError if a value is not supported.

    If a config class has an attribute `kind`, the result includes it, so that `decode` can select the class.
    """
    for base, family in _FAMILIES.items():
        if isinstance(value, base):
            return {"name": family.name_of(value), **_fields(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = getattr(type(value), "kind", None)
        return _fields(value) if kind is None else {"kind": kind, **_fields(value)}
    if isinstance(value, dict):
        return {str(name): encode(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written to config.json")


def decode(kind: type[T], value: Any, where: str = "config") -> T:
    """Convert the result of `encode` back to an object of the class `kind`.

    Raises ValueError if an entry is invalid. The message names the path of the entry, such as
    `config.memory`. The argument `where` is the first part of this path. If a config class rejects its
    fields, its ValueError or TypeError propagates.
    """
    return typing.cast(T, _decode(kind, value, where))


def _fields(config: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(type(config))
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        # A field whose type is one class of a family needs no name.
        name: _fields(value) if _is_one_of_family(hints[name]) else encode(value)
        for name, value in values.items()
    }


def _is_one_of_family(kind: Any) -> bool:
    return isinstance(kind, type) and kind not in _FAMILIES and issubclass(kind, tuple(_FAMILIES))


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if kind in _FAMILIES:
        return _decode_named(_FAMILIES[kind], value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return (_decode_family if inspect.isabstract(kind) else _decode_dataclass)(kind, value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = get_args(kind)
        kinds = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise ValueError(f"{where}={value!r}: expected a list of {len(kinds)} values")
        return tuple(
            _decode(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return {name: _decode(get_args(kind)[1], item, f"{where}.{name}") for name, item in value.items()}
    if origin in (Union, types.UnionType):
        return _decode_union(get_args(kind), value, where)
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{where}={value!r}: choose from {', '.join(map(str, get_args(kind)))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(
                f"{where}: the number has {value.bit_length()} bits, too many for a float"
            ) from None
    if kind is Any or (kind is not None and type(value) is kind):
        return value
    raise ValueError(f"{where}={value!r}: expected {getattr(kind, '__name__', kind)}")


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004  (invalid file content)
            f"{where}={value!r}: expected a JSON object with the fields of {kind.__name__}"
        )
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    names = [field.name for field in fields]
    unknown = sorted(set(value) - set(names))
    if unknown:
        raise ValueError(f"{where} has no field {', '.join(unknown)}; its fields are {', '.join(names)}")
    missing = [field.name for field in fields if field.name not in value and _is_needed(field)]
    if missing:
        raise ValueError(f"{where} is missing the required fields {', '.join(missing)}")
    return kind(**{name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is field.default_factory is dataclasses.MISSING


def _decode_named(family: _Family, value: Any, where: str) -> Any:
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise ValueError(  # noqa: TRY004
            f'{where}={value!r}: expected a JSON object whose key "name" has a registered name as value, '
            'such as "gru" for a memory or "ppo" for a learner'
        )
    config = _decode_dataclass(
        family.class_of(name), {key: item for key, item in value.items() if key != "name"}, where
    )
    if family.name_of(config) != name:  # a second name may stand for settings that are not in `value`
        raise ValueError(f"{where}.name={name!r}: write {family.name_of(config)!r} and its settings")
    return config


def _decode_family(family: type, value: Any, where: str) -> Any:
    kinds = {getattr(kind, "kind", kind.__name__): kind for kind in family.__subclasses__()}
    kind_name = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind_name, str) or kind_name not in kinds:
        raise ValueError(f"{where}.kind={kind_name!r}: choose from {', '.join(sorted(kinds))}")
    return _decode_dataclass(
        kinds[kind_name], {key: item for key, item in value.items() if key != "kind"}, where
    )


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    # Exact types are tried first: 1, 1.0 and True are different values.
    if type(value) in kinds:
        return value
    for kind in kinds:
        if kind is not type(None):
            try:
                return _decode(kind, value, where)
            except ValueError:
                continue
    names = ("null" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ValueError(f"{where}={value!r}: expected one of {', '.join(names)}")
