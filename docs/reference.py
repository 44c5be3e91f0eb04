"""Reference of the public names: one page for each package, with an anchor for every name.

A name that several packages export has its entry in the first of them. The others link to it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, get_origin

from markup import escape_bars, module_docstring, title
from sphinx.pycode import ModuleAnalyzer

_RESULTS = {
    "scrubjay": ("experiments.viz.look.Look",),
    "scrubjay.agents": ("rl.policy.PolicyOutput",),
    "scrubjay.agents.tools": ("base.ToolResult",),
    "scrubjay.experiments": ("runs.evaluation.EpisodeScores", "tasks.environments.EnvFacts"),
    "scrubjay.memory.bank": ("record.Record", "record.Hit", "record.Draft"),
    "scrubjay.memory.context": (
        "infiniretri.ReadingResult",
        "infiniretri.SentenceSelection",
        "layers.policy.RetainedTokens",
    ),
}
"""Types that users receive from functions and methods of a package, and do not create."""


@cache
def list_packages() -> tuple[str, ...]:
    """Return the public packages."""
    packages = {"scrubjay"}
    waiting = ["scrubjay"]
    while waiting:
        package = waiting.pop()
        for name in dir(importlib.import_module(package)):
            value = getattr(importlib.import_module(package), name)
            inner = isinstance(value, ModuleType) and value.__name__ == f"{package}.{name}"
            if inner and not name.startswith("_") and hasattr(value, "__all__"):
                packages.add(value.__name__)
                waiting.append(value.__name__)
    return tuple(sorted(packages))


@cache
def find_homes() -> dict[int, str]:
    """Return the full name under which each public object has its entry, by the identity of the object."""
    homes: dict[int, str] = {}
    for package in sorted(list_packages(), key=lambda package: package.count(".")):
        for name, value in public_names(package):
            homes.setdefault(id(value), f"{package}.{name}")
    return homes


def public_names(package: str) -> Iterator[tuple[str, Any]]:
    """Yield the public names of a package and their values, in the order of the alphabet."""
    module = importlib.import_module(package)
    for name in sorted(module.__all__, key=str.lower):
        yield name, getattr(module, name)


def write_reference(folder: Path) -> None:
    """Write a page for each package, and the page that lists the packages, into a new folder."""
    folder.mkdir()
    parts = [title("Reference"), "Public names of each package. :ref:`genindex` lists all of them."]
    for package in list_packages():
        page = package.removeprefix("scrubjay.").replace(".", "-")
        about = module_docstring(importlib.import_module(package))
        text = [title(package), f".. py:module:: {package}", about, reference(package)]
        (folder / f"{page}.rst").write_text("\n\n".join(text) + "\n", encoding="utf-8")
        parts.append(f":doc:`{page}`\n   {' '.join(about.partition(chr(10) * 2)[0].split())}")
    pages = [name.removeprefix("scrubjay.") for name in list_packages()]
    entries = "\n".join(f"   {page} <{page.replace('.', '-')}>" for page in pages)
    parts.append(f".. toctree::\n   :hidden:\n\n{entries}\n   Index </genindex>\n")
    (folder / "index.rst").write_text("\n\n".join(parts), encoding="utf-8")


def reference(package: str) -> str:
    """Return the names of a package as reStructuredText."""
    entries = {name: _entry(package, name, value) for name, value in public_names(package)}
    rows = (
        f"   * - :py:obj:`{name} <{package}.{name}>`\n     - {_first_sentence(package, name, value)}"
        for name, value in public_names(package)
    )
    table = ".. list-table::\n   :widths: 30 70\n\n" + "\n".join(rows)
    results = [f".. autoclass:: {package}.{name}\n   :members:" for name in _RESULTS.get(package, ())]
    heading = [title("Types of results", "-")] if results else []
    return "\n\n".join([table, *entries.values(), *heading, *results])


def _entry(package: str, name: str, value: Any) -> str:
    full = f"{package}.{name}"
    home = find_homes()[id(value)]
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
    else:
        kind = "function" if inspect.isroutine(value) else "data"
    if home != full:
        return f".. py:{kind}:: {name}\n\n   The same as :py:obj:`{home}`."
    if kind == "data":
        return _data(package, name, value)
    options = "" if kind == "function" else "\n   :members:"
    if inspect.isclass(value) and value.__bases__[0] not in (object, tuple, Protocol):
        options += "\n   :show-inheritance:"
    return f".. auto{kind}:: {full}{options}"


def _data(package: str, name: str, value: Any) -> str:
    lines = [f".. py:data:: {name}"]
    kind = value if get_origin(value) else type(value).__name__
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", str(kind))
    lines += [f"   :value: {text}" if get_origin(value) else f"   :type: {text}", ""]
    return "\n".join([*lines, *(f"   {line}" for line in _data_docstring(package, name).splitlines())])


def _data_docstring(package: str, name: str) -> str:
    """Return the text below a constant in the module that defines it."""
    for module in sorted(_modules(package)):
        docs = ModuleAnalyzer.for_module(module).find_attr_docs()
        if ("", name) in docs:
            return "\n".join(docs["", name]).strip()
    return ""


def _modules(package: str) -> set[str]:
    """Return the modules from which a package takes its public names."""
    source = inspect.getsource(importlib.import_module(package))
    return {package, *re.findall(r"from (scrubjay[.\w]*) import", source)}


def _first_sentence(package: str, name: str, value: Any) -> str:
    is_data = not (inspect.isclass(value) or inspect.isroutine(value))
    text = _data_docstring(package, name) if is_data else inspect.getdoc(value) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    sentence = [re.split(r"(?<!et al)(?<=[^.\d]\.)\s|(?<=:)\s|;\s", first)[0].rstrip(":.")]
    escape_bars(sentence)
    return sentence[0]
