"""The reference: docstrings of public names describe their parameters, and names in them become links."""

import dataclasses
import importlib
import inspect
import re

import pytest
from sphinx.pycode import ModuleAnalyzer

pytestmark = pytest.mark.requires("transformers")

MOST_UNDOCUMENTED = 2
"""Number of parameters that a first sentence explains. A callable with more of them has a section Args."""


@pytest.fixture(scope="module")
def reference(from_docs):
    return from_docs("reference")


@pytest.fixture(scope="module")
def public(reference):
    """Public functions, classes and their methods by their full names, each once."""
    things = {}
    for package in reference.list_packages():
        for name, value in reference.public_names(package):
            full = f"{package}.{name}"
            if reference.find_homes()[id(value)] == full and (inspect.isclass(value) or callable(value)):
                things[full] = value
                if inspect.isclass(value):
                    things |= {f"{full}.{method}": thing for method, thing in own_methods(value)}
    return {name: value for name, value in things.items() if value.__module__.startswith("scrubjay")}


def own_methods(kind):
    """Yield the public methods that no base class has: documentation of the others is inherited."""
    for name, value in vars(kind).items():
        function = getattr(value, "__func__", value)
        is_new = not any(hasattr(base, name) for base in kind.__mro__[1:])
        if is_new and not name.startswith("_") and inspect.isfunction(function):
            yield name, function


def parameters(thing):
    """Return the names of parameters, except those of a constructor that another package defines."""
    if inspect.isclass(thing):
        owner = next(kind for kind in thing.__mro__ if "__init__" in vars(kind) or "__new__" in vars(kind))
        if not owner.__module__.startswith("scrubjay"):
            return []
    return [name for name in inspect.signature(thing).parameters if name not in ("self", "cls")]


def docstring(thing):
    """Return a docstring, for a class with that of its constructor."""
    constructor = getattr(vars(thing).get("__init__"), "__doc__", "") if inspect.isclass(thing) else ""
    return f"{inspect.getdoc(thing) or ''}\n\n{inspect.cleandoc(constructor or '')}\n"


def list_arguments(thing):
    """Return the names in the section Args of a docstring."""
    section = re.search(r"^Args:\n((?: .*\n|\n)*)", docstring(thing), re.MULTILINE)
    return re.findall(r"^    \*{0,2}(\w+): ", section[1], re.MULTILINE) if section else []


def refers_to_another(thing):
    """Return True if a docstring says that the arguments are those of another callable."""
    return re.search(r"[Aa]rguments (as for|(and errors )?are those of) `\w+`", docstring(thing)) is not None


def has_fields(thing):
    """Return True for a dataclass, a named tuple and a pydantic model whose parameters are its fields."""
    if not inspect.isclass(thing) or dataclasses.is_dataclass(thing):
        return inspect.isclass(thing)
    is_record = hasattr(thing, "_fields") or hasattr(thing, "model_fields")
    return is_record and "__init__" not in vars(thing)


def undocumented_fields(kind):
    """Return the fields of a dataclass, named tuple or pydantic model without a docstring below them."""
    texts = set()
    for base in kind.__mro__:
        if base.__module__.startswith("scrubjay"):
            docs = ModuleAnalyzer.for_module(base.__module__).find_attr_docs()
            texts |= {name for owner, name in docs if owner == base.__name__}
    if dataclasses.is_dataclass(kind):
        fields = [field.name for field in dataclasses.fields(kind)]
    else:
        fields = getattr(kind, "_fields", None) or inspect.get_annotations(kind)
    return [name for name in fields if not name.startswith("_") and name not in texts]


def test_every_public_name_has_a_docstring(public):
    assert not [name for name, thing in public.items() if not (inspect.getdoc(thing) or "").strip()]


def test_sections_of_arguments_name_parameters(public):
    wrong = {}
    for name, thing in public.items():
        unknown = set(list_arguments(thing)) - set(parameters(thing))
        if unknown and not has_fields(thing):
            wrong[name] = unknown
    assert not wrong


def test_callables_with_several_parameters_document_them(public):
    wrong = {}
    for name, thing in public.items():
        names = parameters(thing)
        missing = set(names) - set(list_arguments(thing))
        if has_fields(thing):
            missing = set(undocumented_fields(thing)) - set(list_arguments(thing))
        if refers_to_another(thing):
            continue
        if missing and (len(names) > MOST_UNDOCUMENTED or list_arguments(thing)):
            wrong[name] = sorted(missing)
    assert not wrong, "\n".join(f"{name}: {', '.join(names)}" for name, names in wrong.items())


def test_types_of_results_are_documented(reference):
    for package, names in reference._RESULTS.items():
        for name in names:
            module, _, kind = f"{package}.{name}".rpartition(".")
            value = getattr(importlib.import_module(module), kind)
            assert id(value) not in reference.find_homes(), "a public name has an entry already"
            assert inspect.getdoc(value)
            assert f".. autoclass:: {package}.{name}" in reference.reference(package)
