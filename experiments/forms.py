"""Configs as plain data with a schema, so that help texts can be printed without importing config classes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

ConfigSchema = dict[str, Any]
"""Schema of a config class: its docstring `about`, and for each field `type`, `help` and `default`."""

_TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "int | None": int | None,
    "float | None": float | None,
    "str | None": str | None,
    "tuple[int, ...]": tuple[int, ...],
    "dict[str, bool | int | float | str]": dict[str, bool | int | float | str],
}
_CONFIG, _CONFIGS, _SEVERAL = "config", "configs", "several"


def build_schema(config_class: type[Any]) -> ConfigSchema:
    """Return the schema of a config class.

    The type of a field must be in `_TYPES`, a Literal, a config class, or a tuple of Literals or configs.
    """
    helps: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(base):
            helps |= _docstrings(base)
    hints, fields = get_type_hints(config_class), {}
    for field in dataclasses.fields(config_class):
        if not field.metadata.get("recorded"):  # recorded fields are not flags
            default = None if field.default is dataclasses.MISSING else _as_json(field.default)
            field_schema = {
                "type": _type_name(hints[field.name]),
                "help": helps.get(field.name),
                "default": default,
            }
            fields[field.name] = field_schema
    return {"about": inspect.getdoc(config_class), "fields": fields}


def to_dict(config: Any, schemas: dict[str, ConfigSchema]) -> dict[str, Any]:
    """Return the values of `config` that differ from the defaults in its schema.

    The schema is added to `schemas` if it is missing.
    """
    name = type(config).__name__
    form = schemas.setdefault(name, build_schema(type(config)))
    values: dict[str, Any] = {"form": name}
    for name, field in form["fields"].items():
        value = _as_json(getattr(config, name))
        if field["type"] == _CONFIG:
            value = to_dict(value, schemas)
        elif field["type"] == _CONFIGS:
            value = [to_dict(item, schemas) for item in value]
        if value != field["default"]:
            values[name] = value
    return values


def from_dict(values: dict[str, Any], schemas: dict[str, ConfigSchema]) -> Any:
    """Return a config from the dict that `to_dict` made of it.

    The config is an instance of a new dataclass with the help texts of its schema.
    """
    form, fields, field_values = schemas[values["form"]], [], {}
    for name, field in form["fields"].items():
        kind, value = field["type"], values.get(name, field["default"])
        if kind == _CONFIG:
            value = from_dict(value, schemas)
            kind = type(value)
        elif kind == _CONFIGS:
            value = tuple(from_dict(item, schemas) for item in value)
            kind = tuple[tuple(map(type, value))]
        else:
            kind = _parse_type(kind)
            value = tuple(value) if isinstance(value, list) else value
        fields.append((name, Annotated[kind, tyro.conf.arg(help=field["help"])]))
        field_values[name] = value
    namespace = {"__doc__": form["about"]}
    return dataclasses.make_dataclass(values["form"], fields, namespace=namespace, kw_only=True)(
        **field_values
    )


def _parse_type(type_name: Any) -> Any:
    """Return the type that `type_name`, a result of `_type_name`, describes."""
    if isinstance(type_name, str):
        return _TYPES[type_name]
    if isinstance(type_name, dict):
        return tuple[_parse_type(type_name[_SEVERAL]), ...]
    return Literal[tuple(type_name)]


def _type_name(hint: Any) -> str | list[str] | dict[str, list[str]]:
    """Return the name of a field's type; for a Literal, the list of its choices.

    For a tuple of Literals, the result is a dict from `_SEVERAL` to the list of choices. Raises KeyError on
    an unsupported type.
    """
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) is tuple and get_origin(get_args(hint)[0]) is Literal:
        return {_SEVERAL: list(get_args(get_args(hint)[0]))}
    if dataclasses.is_dataclass(hint):
        return _CONFIG
    if get_origin(hint) is tuple and dataclasses.is_dataclass(get_args(hint)[0]):
        return _CONFIGS
    return {kind: name for name, kind in _TYPES.items()}[hint]


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _docstrings(kind: type[Any]) -> dict[str, str]:
    """Return the docstring below each field in the source of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(below.value.value, str)
    }
