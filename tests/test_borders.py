"""Foreign data enters through the functions of the table of borders, with their strict settings."""

import ast
import re
from fnmatch import translate
from functools import cache
from pathlib import Path

import pytest

from .border_calls import PROJECT, Module, Use, find_origin
from .borders import BORDERS, Border

ROOT = Path(__file__).parent.parent
FOLDERS = ("agents", "docs", "envs", "experiments", "kernels", "memory")


@cache
def to_pattern(border: Border) -> re.Pattern[str]:
    """Return the pattern of the names of a row; `?` is itself, and `*` is any text."""
    return re.compile("|".join(translate(re.sub(r"^[?]", "[?]", name)) for name in border.names.split()))


MODULES = {name.split(".")[0].strip("*") for border in BORDERS for name in border.names.split()}
"""Modules and packages with a row."""
ANY = re.compile("|".join(to_pattern(border).pattern for border in BORDERS))


def find_row(name: str) -> Border | None:
    """Return the first row of the table that has a name."""
    if not ANY.fullmatch(name):
        return None
    return next(border for border in BORDERS if to_pattern(border).fullmatch(name))


def find_faults(path: str, module: Module, modules: dict[str, Module]) -> list[str]:
    """Return the uses of foreign names in a module that the table does not allow."""
    return [
        f"{path}:{use.line}: {name}: {fault}"
        for use, name in find_uses(module, modules)
        if not use.is_type and (fault := judge(use, name, path, module))
    ]


def find_uses(module: Module, modules: dict[str, Module]) -> list[tuple[Use, str]]:
    """Return the uses of foreign names in a module, with the names after all imports of the project."""
    return [(use, name) for use in module.uses() for name in find_origin(use.name, modules)]


def judge(use: Use, name: str, path: str, module: Module) -> str | None:
    """Return the fault of a use; None if its row allows it, or if it has no row."""
    if use.is_import and name.endswith(".*"):
        return "import * hides names; import them by name"
    if use.is_value and name in MODULES:
        return "a module in an attribute, an argument or a list hides names; call its functions by name"
    border = find_row(name)
    if border is None:
        return None
    if border.literal and (use.is_import or (use.call and is_literal(use.call, module))):
        return None
    if not any(
        path == place or (place[-1] == "/" and path.startswith(place)) for place in border.modules.split()
    ):
        return f"no row of tests/borders.py allows it here ({border.setting})"
    if not border.arguments or use.is_import:
        return None
    if use.call is None:
        return "call it with its strict setting; it must not stand without a call"
    values = {str(place): value for place, value in enumerate(use.call.args)}
    values |= {keyword.arg: keyword.value for keyword in use.call.keywords if keyword.arg}
    for argument, text in border.arguments.items():
        if argument not in values or text not in (None, ast.unparse(values[argument])):
            return f"lacks {argument}={text}"
    return None


def is_literal(call: ast.Call, module: Module) -> bool:
    """Return True if the first argument of a call is text of the module."""
    return bool(call.args) and is_text(call.args[0], module)


def is_text(node: ast.expr, module: Module) -> bool:
    """Return True for a text without values, also in a constant, or from `re.escape`."""
    match node:
        case ast.Constant():
            return True
        case ast.JoinedStr(values=parts):
            return all(is_text(part, module) for part in parts)
        case ast.FormattedValue(value=value):
            return is_text(value, module)
        case ast.BinOp(left=left, right=right):
            return is_text(left, module) and is_text(right, module)
        case ast.Call(func=function):
            return module.resolve(function) == {"re.escape"}
        case ast.Name(id=name):
            return name.isupper() or name.lstrip("_").isupper()
    return False


def read_modules() -> dict[str, tuple[str, Module]]:
    """Return the paths and modules of the project, by name."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    modules = {}
    for path in [*paths, *sorted((ROOT / "src" / PROJECT).glob("*.py"))]:
        place = path.relative_to(ROOT)
        parts = place.with_suffix("").parts
        parts = parts[1:] if parts[0] == "src" else parts if parts[0] == "docs" else (PROJECT, *parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules[name] = str(place), Module(name, ast.parse(path.read_text("utf-8")), is_package)
    return modules


@pytest.fixture(scope="module")
def uses() -> list[tuple[str, Module, Use, str]]:
    """Path, module, use and full name of all uses in the project."""
    modules = {name: module for name, (_, module) in read_modules().items()}
    return [
        (path, module, *one) for path, module in read_modules().values() for one in find_uses(module, modules)
    ]


@pytest.mark.slow
def test_foreign_data_enters_through_the_table(uses):
    faults = [
        f"{path}:{use.line}: {name}: {fault}"
        for path, module, use, name in uses
        if not use.is_type and (fault := judge(use, name, path, module))
    ]
    assert not faults, "\n".join(faults)


def check(source: str, path: str = "agents/new.py") -> list[str]:
    """Return the faults of a module with this source, beside a module that imports torch, pickle and json."""
    other = Module("scrubjay.other", ast.parse("import torch as t, pickle\nfrom json import loads as read"))
    module = Module("scrubjay.agents.new", ast.parse(source))
    return find_faults(path, module, {"scrubjay.other": other, "scrubjay.agents.new": module})


FORBIDDEN = {
    "import": "import pickle",
    "import as": "import torch as t\nt.load(f)",
    "from import": "from torch import load\nload(f)",
    "from import as": "from torch import load as read\nread(f)",
    "submodule": "import torch.serialization\ntorch.serialization.load(f)",
    "import in a function": "def f():\n    import marshal",
    "assignment": "import torch\nload = torch.load\nload(f, weights_only=True)",
    "alias of an alias": "import sqlite3\na = sqlite3\nb = a.connect\nb(f)",
    "annotated assignment": "import sqlite3\nopen_file: object = sqlite3.connect\nopen_file(f)",
    "walrus": "import sqlite3\n(s := sqlite3).connect(f)",
    "conditional": "import torch, json\n(torch if x else json).load(f)",
    "without a call": "import json\nrows = map(json.loads, lines)",
    "default": "import torch\ndef f(read=torch.load): return read(1)",
    "partial": "import functools, torch\nf = functools.partial(torch.load, weights_only=True)",
    "decorator": "import json\n@json.loads\ndef f(): pass",
    "keyword": "import yaml\nf(loader=yaml.load)",
    "getattr": "import torch\ngetattr(torch, 'load')(f)",
    "getattr with a default": "import torch\ngetattr(torch, 'load', None)(f)",
    "computed getattr with a default": "import torch\ngetattr(torch, name, 'x')(f)",
    "computed import_module of a package": "import importlib\nimportlib.import_module(name, 'x')",
    "import_module by keyword": "import importlib\nimportlib.import_module(name='pickle')",
    "computed getattr": "import torch\ngetattr(torch, name)(f)",
    "attrgetter": "import torch, operator\noperator.attrgetter('load')(torch)(f)",
    "methodcaller": "import operator, torch\noperator.methodcaller('load', f)(torch)",
    "vars": "import sqlite3\nvars(sqlite3)['connect'](f)",
    "dict": "import sqlite3\nsqlite3.__dict__['connect'](f)",
    "sys.modules": "import sys\nsys.modules['pickle'].loads(b)",
    "globals": "import sqlite3\nglobals()['sqlite3'].connect(f)",
    "import_module": "import importlib\nimportlib.import_module('pickle').loads(b)",
    "import_module as": "from importlib import import_module as get\nget('sqlite3').connect(f)",
    "computed import_module": "import importlib\nimportlib.import_module(name)",
    "import_module in a variable": "import importlib\np = importlib.import_module('sqlite3')\np.connect(f)",
    "__import__": "__import__('pickle').loads(b)",
    "computed __import__": "__import__(name)",
    "find and load": "import importlib.util\nimportlib.util.spec_from_file_location(n, f)",
    "eval": "eval(text)",
    "exec": "exec(text)",
    "compile": "compile(text, 'f', 'exec')",
    "builtins": "import builtins\nbuiltins.eval(text)",
    "eval without a call": "list(map(eval, texts))",
    "another module": "from scrubjay.other import t\nt.load(f)",
    "another module's alias": "from scrubjay.other import read\nread(f)",
    "another module whole": "from scrubjay import other\nother.pickle.loads(b)",
    "relative import": "from ..other import pickle as p\np.loads(b)",
    "star": "from torch import *\nload(f)",
    "star of the project": "from scrubjay.other import *\nt.load(f)",
    "module in an attribute": "import torch\nself.torch = torch\nself.torch.load(f)",
    "module in an argument": "import torch\ndef f(t=torch): t.load(1)",
    "module in a tuple": "import torch, json\na, b = torch, json\na.load(f)",
    "module in a list": "import sqlite3\nfor m in [sqlite3]: m.connect(f)",
    "module in a call": "import sqlite3\nrun(sqlite3)",
    "module of another module": "from scrubjay import other\nrun(other.t)",
    "computed sys.modules": "import sys\nsys.modules[name].loads(b)",
    "get of sys.modules": "import sys\nsys.modules.get('pickle').loads(b)",
    "get of vars": "import torch\nvars(torch).get('load')(f)",
    "__getattribute__": "import torch\ntorch.__getattribute__('load')(f)",
    "getattr_static": "import inspect, torch\ninspect.getattr_static(torch, 'load')(f)",
    "__builtins__": "__builtins__['eval'](text)",
    "__builtins__ as an object": "__builtins__.eval(text)",
    "codec": "import codecs\ncodecs.decode(b, 'zlib')",
    "cast": "from typing import cast\nimport sqlite3\ncast('object', sqlite3).connect(f)",
    "method": "model.from_pretrained(folder)",
    "method of a class": "from transformers import AutoModel\nAutoModel.from_pretrained(folder)",
    "template": "tokenizer.apply_chat_template(turns)",
    "extension": "connection.load_extension(f)",
    "pattern of the input": "import re\nre.search(word, text)",
    "pattern with a word": "import re\nre.search(f'a{word}', text)",
    "pattern in a variable": "import re\nfind = re.compile\nfind(word)",
    "shell": "import os\nos.system(text)",
    "process": "from subprocess import run\nrun(text)",
    "package that nothing needs": "import joblib",
    "submodule of a package": "import xml.etree.ElementTree as E",
    "environment": "import gymnasium as gym\ngym.make(id)",
    "processes": "from gymnasium.vector import AsyncVectorEnv as V\nV(makers)",
    "with": "import zipfile\nwith zipfile.ZipFile(f) as z: pass",
    "class": "import pickle\nclass U(pickle.Unpickler): pass",
}
HONEST = {
    "methods of other objects": "model.eval()\nrun.load(f)\nfile.read()",
    "a name of the module": "def compile(x): return x\ncompile(3)",
    "an annotation": "import sqlite3\ndef f(c: sqlite3.Connection) -> sqlite3.Connection: ...",
    "an exception": "import sqlite3\ntry: pass\nexcept sqlite3.Error: pass",
    "isinstance": "import sqlite3\nisinstance(c, sqlite3.Connection)",
    "other functions": "import torch, json, yaml\ntorch.save(x, f)\njson.dumps(x)\nyaml.dump(x)",
    "getattr of an object": "getattr(policy, name)()",
    "getattr of a constant": "import torch\ngetattr(torch, 'float32')",
    "a module by a constant name": "import importlib\nimportlib.import_module('bm25s')",
    "a pattern of the module": "import re\nre.search(r'a+', text)\nre.compile(f'{re.escape(word)}b')",
    "texts": "'import pickle'\nx = 'torch.load(f)'",
}
SETTINGS = (
    ("experiments/runs/checkpoint.py", "import torch\ntorch.load(f, weights_only=True)", True),
    ("experiments/runs/checkpoint.py", "from torch import load as a\na(f, weights_only=True)", True),
    ("experiments/runs/checkpoint.py", "import torch\ntorch.load(f)", False),
    ("experiments/runs/checkpoint.py", "import torch\ntorch.load(f, weights_only=False)", False),
    ("experiments/runs/checkpoint.py", "import torch\ntorch.load(f, weights_only=trust)", False),
    ("experiments/runs/checkpoint.py", "import torch\ntorch.load(f, **options)", False),
    ("experiments/runs/checkpoint.py", "import torch\nload = torch.load", False),
    ("experiments/runs/other.py", "import torch\ntorch.load(f, weights_only=True)", False),
    ("experiments/strict_yaml.py", "import yaml\nyaml.load(f, _StrictLoader)", True),
    ("experiments/strict_yaml.py", "import yaml\nyaml.load(f, yaml.Loader)", False),
    ("experiments/strict_yaml.py", "import yaml\nyaml.load(f, Loader=_StrictLoader)", False),
    ("memory/context/models.py", "from transformers import AutoConfig as A\nA.from_pretrained(f)", False),
)


@pytest.mark.parametrize("form", FORBIDDEN)
def test_a_use_outside_the_table_is_found(form):
    assert check(FORBIDDEN[form])


@pytest.mark.parametrize("form", HONEST)
def test_an_honest_module_has_no_fault(form):
    assert not check(HONEST[form])


@pytest.mark.parametrize(("path", "source", "is_right"), SETTINGS)
def test_a_use_needs_its_strict_setting(path, source, is_right):
    assert (not check(source, path)) == is_right


def test_every_row_is_used(uses):
    """A row names only modules that exist and that use it. Rows without modules forbid names."""
    places = {place for border in BORDERS for place in border.modules.split()}
    assert not {place for place in places if not (ROOT / place).exists()}
    used = {
        (row, place)
        for path, _, _, name in uses
        if (row := find_row(name))
        for place in row.modules.split()
        if path.startswith(place)
    }
    rows = {(row, place) for row in BORDERS for place in row.modules.split()}
    assert not [(row.names, place) for row, place in rows - used]
