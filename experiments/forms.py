"""Configs as plain data, and back from it with whatever their help shows: to explain one needs no class."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

Form = dict[str, Any]
"""What a class of configs is: `about` it, and of each of its fields `type`, `help` and `default`."""

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


def form_of(kind: type[Any]) -> Form:
    """Return the form of a dataclass, whose fields have a type of `_TYPES`, choices, or are configs."""
    helps: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            helps |= _docstrings(base)
    hints, fields = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if not field.metadata.get("recorded"):  # which is no flag
            default = None if field.default is dataclasses.MISSING else _as_json(field.default)
            shown = {"type": _named(hints[field.name]), "help": helps.get(field.name), "default": default}
            fields[field.name] = shown
    return {"about": inspect.getdoc(kind), "fields": fields}


def kept(config: Any, forms: dict[str, Form]) -> dict[str, Any]:
    """Return what in `config` differs from its form, which is added to `forms` if it is not there."""
    name = type(config).__name__
    form = forms.setdefault(name, form_of(type(config)))
    values: dict[str, Any] = {"form": name}
    for name, field in form["fields"].items():
        value = _as_json(getattr(config, name))
        if field["type"] == _CONFIG:
            value = kept(value, forms)
        elif field["type"] == _CONFIGS:
            value = [kept(item, forms) for item in value]
        if value != field["default"]:
            values[name] = value
    return values


def made(values: dict[str, Any], forms: dict[str, Form]) -> Any:
    """Return a dataclass that tyro explains as it does the config of which these are the `kept` values."""
    form, fields, given = forms[values["form"]], [], {}
    for name, field in form["fields"].items():
        kind, value = field["type"], values.get(name, field["default"])
        if kind == _CONFIG:
            value = made(value, forms)
            kind = type(value)
        elif kind == _CONFIGS:
            value = tuple(made(item, forms) for item in value)
            kind = tuple[tuple(map(type, value))]
        else:
            kind = _type(kind)
            value = tuple(value) if isinstance(value, list) else value
        fields.append((name, Annotated[kind, tyro.conf.arg(help=field["help"])]))
        given[name] = value
    namespace = {"__doc__": form["about"]}
    return dataclasses.make_dataclass(values["form"], fields, namespace=namespace, kw_only=True)(**given)


def _type(named: Any) -> Any:
    """Undo `_named`."""
    if isinstance(named, str):
        return _TYPES[named]
    return tuple[_type(named[_SEVERAL]), ...] if isinstance(named, dict) else Literal[tuple(named)]


def _named(hint: Any) -> str | list[str] | dict[str, list[str]]:
    """Return the name of a field's type, or its choices, of which it may have several.

    Raises KeyError on a type that has none.
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
    """Return what stands below each field in the source of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(below.value.value, str)
    }
