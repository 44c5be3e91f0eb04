"""Public names of packages, which are imported at their first use."""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import scrubjay
from scrubjay._lazy import lazy_exports

ROOT = Path(__file__).parent.parent
EXTRAS = {
    "scrubjay.agents.langchain": ["langchain", "langgraph", "transformers"],
    "scrubjay.memory": ["transformers"],
    "scrubjay.memory.context": ["transformers"],
}
PACKAGES = ("agents", "envs", "experiments", "kernels", "memory")


def packages() -> list[str]:
    """Return every package with public names."""
    names = ["scrubjay"]
    for package in PACKAGES:
        path = ROOT / package
        for file in sorted(path.rglob("__init__.py")):
            if "__all__" in file.read_text():
                names.append(".".join(["scrubjay", *file.parent.relative_to(ROOT).parts]))
    return names


def lazy_packages() -> list[str]:
    return [name for name in packages() if "lazy_exports(" in source(name)]


def source(package: str) -> str:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    return Path(module.__file__).read_text()


def with_extras(names: list[str]) -> list[Any]:
    """Return parameters that require the packages of the extras that some packages need."""
    return [pytest.param(name, marks=pytest.mark.requires(*EXTRAS.get(name, ()))) for name in names]


@pytest.mark.parametrize("package", with_extras(packages()))
def test_every_exported_name_is_found_and_others_are_not(package):
    module = importlib.import_module(package)
    assert module.__doc__
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", with_extras(packages()))
def test_dir_and_help_show_public_names(package):
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    assert not {"TYPE_CHECKING", "annotations", "lazy_exports"} & set(module.__all__)
    page = pydoc.plain(pydoc.render_doc(module))
    for name in module.__all__:
        if inspect.isclass(value := getattr(module, name)) or inspect.isfunction(value):
            assert name in page


@pytest.mark.parametrize("package", lazy_packages())
def test_a_lazy_face_shows_nothing_but_its_names_and_subpackages(package):
    module = importlib.import_module(package)
    visible = {name for name in dir(module) if not name.startswith("__")}
    rest = visible - set(module.__all__)
    for name in rest:
        spec = importlib.util.find_spec(f"{package}.{name}")
        assert spec is not None
        assert spec.submodule_search_locations, name
        assert getattr(module, name).__name__ == f"{package}.{name}"


def test_public_subpackages_are_shown_by_the_face_above():
    for package in packages()[1:]:
        above, _, name = package.rpartition(".")
        if "lazy_exports(" in source(above):
            assert name in dir(importlib.import_module(above)), f"{above} does not show {name}"


@pytest.mark.parametrize("package", with_extras(lazy_packages()))
def test_type_checkers_and_runtime_agree(package):
    """A lazy package declares each name twice: for type checkers and with its module."""
    blocks = [node for node in ast.parse(source(package)).body if isinstance(node, ast.If)]
    imports = {
        alias.name: f"{node.module}.{alias.name}"
        for block in blocks
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    module = importlib.import_module(package)
    subpackages = set(PACKAGES) if package == "scrubjay" else set()
    assert set(imports) == subpackages | set(module.__all__)
    for name, home in imports.items():
        if name in subpackages:
            continue
        path, _, attribute = home.rpartition(".")
        assert getattr(importlib.import_module(path), attribute) is getattr(module, name)


@pytest.mark.parametrize("package", packages())
def test_no_public_function_has_the_name_of_a_module_of_its_face(package):
    """After an import of such a module, Python would replace the function by the module."""
    module = importlib.import_module(package)
    below = {info.name for info in pkgutil.iter_modules(module.__path__)}
    assert below.isdisjoint(module.__all__)


@pytest.mark.slow
def test_a_package_is_loaded_at_its_first_use():
    code = (
        "import sys, scrubjay; assert scrubjay.memory.make('none', dim=8).dim == 8; "
        "assert 'scrubjay.agents' not in sys.modules; assert scrubjay.kernels.force; "
        "assert scrubjay.memory.context.list_policies()"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=600)
    assert set(PACKAGES) <= set(dir(scrubjay))


@pytest.mark.parametrize(
    ("packages", "heavy"),
    [
        ("scrubjay.kernels, scrubjay.memory, scrubjay.agents, scrubjay.experiments", "torch"),
        ("scrubjay.memory.bank, scrubjay.memory.contract, scrubjay.memory.titans", "torch"),
        ("scrubjay.memory.context", "transformers"),
    ],
)
def test_importing_a_package_does_not_import_optional_dependencies(packages, heavy):
    code = f"import sys, {packages}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=600).returncode == 0


def test_a_missing_package_is_reported_with_its_extra(monkeypatch):
    extras = {"transformers": "lm"}
    _, get, _ = lazy_exports("scrubjay.memory.context", {"models": ["load_model"]}, extras=extras)
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "scrubjay.memory.context.models", raising=False)
    with pytest.raises(ImportError, match=r"load_model needs transformers: pip install 'scrubjay\[lm\]'"):
        get("load_model")
