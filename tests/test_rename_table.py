"""Every new name in `renamed.json` exists, and no old name does."""

import ast
import json
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLES = json.loads((ROOT / "tests" / "renamed.json").read_text(encoding="utf-8"))


@cache
def tree(module: str) -> ast.Module | None:
    """Return the syntax tree of a module of Scrubjay, or None."""
    path = ROOT.joinpath(*module.split(".")[1:])
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return ast.parse(file.read_text(encoding="utf-8"))
    return None


def find(name: str) -> ast.AST | None:
    """Return the definition of a dotted name, or None."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        node: ast.AST | None = tree(".".join(parts[:length]))
        if node is not None:
            for part in parts[length:]:
                node = member(node, part)
                if node is None:
                    break
            return node
    return None


def member(node: ast.AST, name: str) -> ast.AST | None:
    """Return a class, function, field or constant of a module or class."""
    for child in getattr(node, "body", []):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and child.name == name:
            return child
        targets = child.targets if isinstance(child, ast.Assign) else [getattr(child, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return child
    return None


@pytest.mark.slow
@pytest.mark.parametrize("table", ["modules", "names", "fields"])
def test_new_names_exist_and_old_names_do_not(table):
    assert TABLES[table]
    assert [new for new in TABLES[table].values() if find(new) is None] == []
    moved_back = set(TABLES[table].values())
    assert [old for old in TABLES[table] if find(old) is not None and old not in moved_back] == []


@pytest.mark.slow
def test_new_arguments_exist():
    assert TABLES["arguments"]
    for new in TABLES["arguments"].values():
        name, _, argument = new.removesuffix(")").partition("(")
        function = find(name)
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef), new
        arguments = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
        assert argument in arguments, new


def test_new_flags_are_fields():
    for new in TABLES["flags"].values():
        owner, flag = new.split(" --")
        assert any(
            name.endswith(f".{owner}.{flag.replace('-', '_')}") for name in TABLES["fields"].values()
        ), new
