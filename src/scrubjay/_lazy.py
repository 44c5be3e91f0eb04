"""Lazy imports: a package imports a public name at its first use, so that `import scrubjay` is fast."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_exports(
    package: str,
    modules: Mapping[str, Sequence[str]],
    packages: Sequence[str] = (),
    extras: Mapping[str, str] | None = None,
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` for `package`.

    Args:
        package: Full name of the package.
        modules: Modules of the package, relative to it, and the public names that each of them defines.
        packages: Public subpackages.
        extras: Third-party packages that a module may need, and the extra of Scrubjay that installs each.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name in packages:
            return importlib.import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(f".{module_of[name]}", package), name)
        except ModuleNotFoundError as error:
            extra = (extras or {}).get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            message = f"{name} needs {error.name}: pip install 'scrubjay[{extra}]'"
            raise ModuleNotFoundError(message, name=error.name) from error

    def names() -> list[str]:
        own = [name for name in vars(sys.modules[package]) if name.startswith("__")]
        return sorted({*own, *module_of, *packages})

    return sorted(module_of), get, names
