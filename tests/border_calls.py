"""Uses of foreign names in a module, found in its syntax tree.

A use is a call, an import, or a name that stands without a call, such as the argument of `map`. Names are
resolved to their full form: `from torch import load as read` and `read(file)` use `torch.load`. So do
assignments, `getattr`, `vars`, `sys.modules`, `importlib.import_module`, `__import__` and names that another
module of the project imports. A name that depends on the program's input is a use of `getattr` or of
`import_module` itself. The values of attributes and arguments are not followed: `Use.is_value`.
"""

import ast
import builtins
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

PROJECT = "scrubjay"
IMPORTS = {"importlib.import_module", "builtins.__import__", "importlib.__import__", "pkgutil.resolve_name"}
GETTERS = {"builtins.getattr", "operator.attrgetter", "operator.methodcaller"}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.withitem)
_LOOK_UPS = {"builtins.getattr", "builtins.hasattr", "builtins.setattr", "builtins.vars", "typing.cast"}
UNKNOWN = "?"
"""Name of an object whose origin is unknown, such as an argument: `model.load` is `?.load`."""


@dataclass(frozen=True)
class Use:
    """A use of the full `name` in a module."""

    name: str
    line: int
    call: ast.Call | None = None
    """The call; None if the name stands without a call."""
    is_import: bool = False
    """True if the use is an import statement."""
    is_type: bool = False
    """True if the name stands in an annotation, or as the type of an exception or of `isinstance`."""
    is_value: bool = False
    """True if the name is stored in an attribute, an argument or a list, whose values are not followed."""


@dataclass
class Module:
    """Syntax tree of a module, and the full names of its own names."""

    name: str
    tree: ast.Module
    is_package: bool = False
    full_names: dict[str, set[str]] = field(default_factory=dict)
    """Full names of each name, through imports and assignments in any scope."""

    def __post_init__(self) -> None:
        self.nodes: list[ast.AST] = [self.tree]
        self.parents: dict[ast.AST, ast.AST] = {}
        for node in self.nodes:  # grows
            for child in ast.iter_child_nodes(node):
                if not isinstance(child, ast.expr_context | ast.operator | ast.cmpop):
                    self.nodes.append(child)
                    self.parents[child] = node
        self.own = {node.name for node in self.nodes if isinstance(node, _DEFINITIONS)}
        for node in self.nodes:
            for local, full, _ in self.imports(node):
                self.full_names.setdefault(local, set()).add(full)
        assignments = [node for node in self.nodes if isinstance(node, _ASSIGNMENTS)]
        size = -1
        while size < (size := sum(map(len, self.full_names.values()))):  # an alias of an alias
            for node in assignments:
                self._assign(node)

    def imports(self, node: ast.AST) -> Iterator[tuple[str, str, str]]:
        """Yield the local name, its full name and the full name of the import, for an import statement."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield alias.asname or top, alias.name if alias.asname else top, alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = self.name.split(".")
            package = parts[: len(parts) - node.level + self.is_package] if node.level else []
            source = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{source}.{alias.name}", f"{source}.{alias.name}"

    def resolve(self, node: ast.AST) -> set[str]:
        """Return the full names that an expression may have; empty if it has none."""
        match node:
            case ast.Name(id=name):
                if name in self.full_names:
                    return self.full_names[name]
                if name == "__builtins__":
                    return {"builtins"}
                return {f"builtins.{name}"} if hasattr(builtins, name) and name not in self.own else set()
            case ast.Attribute(value=value, attr=attribute):
                return {f"{base}.{attribute}" for base in self.resolve(value) or {UNKNOWN}}
            case ast.NamedExpr(value=value) | ast.Await(value=value):
                return self.resolve(value)
            case ast.IfExp(body=body, orelse=other):
                return self.resolve(body) | self.resolve(other)
            case ast.BoolOp(values=values):
                return set().union(*map(self.resolve, values))
            case ast.Subscript(value=value, slice=ast.Constant(value=str(key))):
                return self._look_up(value, key)
            case ast.Call():
                return self._call(node)
        return set()

    def uses(self) -> Iterator[Use]:
        """Yield the uses of names that are not of this module."""
        for node in self.nodes:
            if isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Call):
                yield from self._uses_of(node)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                yield from (Use(full, node.lineno, is_import=True) for _, _, full in self.imports(node))

    def _uses_of(self, node: ast.Name | ast.Attribute | ast.Subscript | ast.Call) -> Iterator[Use]:
        parent = self.parents[node]
        if isinstance(node, ast.Call):
            functions = self.resolve(node.func)
            if not functions & (IMPORTS | GETTERS) or self._call(node):
                functions = set()
            for name in functions:  # the program's input names the module or the attribute
                base = self.resolve(node.args[0]) if name == "builtins.getattr" and node.args else {""}
                yield from (Use(f"{name}({each})" if each else name, node.lineno, node) for each in base)
        is_part = isinstance(parent, ast.Attribute)
        is_stored = isinstance(getattr(node, "ctx", None), ast.Store | ast.Del) and isinstance(node, ast.Name)
        if is_part or is_stored:
            return
        call = parent if isinstance(parent, ast.Call) and parent.func is node else None
        for name in self.resolve(node):
            if name in IMPORTS | GETTERS and call:
                continue  # handled at the call
            is_value = call is None and not isinstance(node, ast.Call) and not self._is_followed(node)
            yield Use(name, node.lineno, call, is_type=self._is_type(node), is_value=is_value)

    def _is_followed(self, node: ast.AST) -> bool:
        """Return True if `resolve` follows the value of `node`: in assignments to names and in look-ups."""
        parent = self.parents[node]
        if isinstance(parent, ast.Call):
            return bool(self.resolve(parent.func) & _LOOK_UPS)
        targets = parent.targets if isinstance(parent, ast.Assign) else [getattr(parent, "target", None)]
        is_assignment = isinstance(parent, ast.Assign | ast.AnnAssign | ast.NamedExpr)
        is_choice = isinstance(parent, ast.IfExp | ast.BoolOp | ast.Subscript)
        return is_choice or (is_assignment and all(isinstance(target, ast.Name) for target in targets))

    def _is_type(self, node: ast.AST) -> bool:
        """Return True in annotations, exception handlers and the second argument of `isinstance`."""
        child, parent = node, self.parents.get(node)
        while parent is not None and not isinstance(parent, ast.stmt):
            if isinstance(parent, ast.arg | ast.ExceptHandler) and child is not getattr(parent, "body", None):
                return True
            if isinstance(parent, ast.Call) and child in parent.args[1:]:
                return self.resolve(parent.func) <= {"builtins.isinstance", "builtins.issubclass"} != set()
            child, parent = parent, self.parents.get(parent)
        if isinstance(parent, ast.AnnAssign):
            return child is parent.annotation
        return isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef) and child is parent.returns

    def _assign(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                targets = [target]
            case ast.NamedExpr(target=target, value=value):
                targets = [target]
            case ast.withitem(context_expr=value, optional_vars=ast.expr() as target):
                targets = [target]
            case _:
                return
        names = {name for name in self.resolve(value) if not name.startswith(UNKNOWN)}
        for target in targets:
            if isinstance(target, ast.Name) and names:
                self.full_names.setdefault(target.id, set()).update(names)

    def _call(self, node: ast.Call) -> set[str]:
        """Return the full names of the object that a call gives, for calls that look something up."""
        functions, arguments = self.resolve(node.func), node.args
        if functions & IMPORTS:
            keywords = [keyword.value for keyword in node.keywords if keyword.arg == "name"]
            return {word.lstrip(".") for word in _words([*arguments, *keywords][:1])}
        if "builtins.getattr" in functions:
            bases = self.resolve(arguments[0]) if arguments else set()
            return {f"{base}.{word}" for base in bases or {UNKNOWN} for word in _words(arguments[1:2])}
        if "builtins.vars" in functions and arguments:
            return {f"{base}.__dict__" for base in self.resolve(arguments[0])}
        if "builtins.globals" in functions:
            return {"globals"}
        if "typing.cast" in functions and len(arguments) > 1:
            return self.resolve(arguments[1])
        if isinstance(node.func, ast.Call) and self.resolve(node.func.func) & {"operator.attrgetter"}:
            bases = self.resolve(arguments[0]) if arguments else set()
            return {f"{base}.{word}" for base in bases or {UNKNOWN} for word in _words(node.func.args)}
        return set()

    def _look_up(self, value: ast.expr, key: str) -> set[str]:
        names = set[str]()
        for base in self.resolve(value):
            if base == "sys.modules":
                names.add(key)
            elif base == "builtins":
                names.add(f"builtins.{key}")
            elif base == "globals":
                names |= self.full_names.get(key, set())
            elif base.endswith(".__dict__"):
                names.add(f"{base.removesuffix('.__dict__')}.{key}")
        return names


def _words(nodes: Iterable[ast.expr]) -> list[str]:
    """Return the strings among expressions."""
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def find_origin(name: str, modules: Mapping[str, Module]) -> set[str]:
    """Return what a name of the project stands for: `scrubjay.a.json` is `json` if `a` imports it."""
    parts = name.split(".")
    if parts[0] != PROJECT:
        return {name}
    for count in range(len(parts) - 1, 0, -1):
        module = modules.get(".".join(parts[:count]))
        if module is None:
            continue
        rest = ".".join(["", *parts[count + 1 :]]).rstrip(".")
        origins = {f"{full}{rest}" for full in module.full_names.get(parts[count], ()) if full != name}
        return set().union(*(find_origin(origin, modules) for origin in origins)) or {name}
    return {name}
