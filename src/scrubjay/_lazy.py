"""Faces of packages: public names are imported when first used, so that users wait for nothing else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def face(
    package: str,
    homes: Mapping[str, Sequence[str]],
    packages: Sequence[str] = (),
    extras: Mapping[str, str] | None = None,
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of `package`.

    Args:
        package: Its full name.
        homes: The public names that live in each of its modules; one that begins with a dot stands beside it.
        packages: Its public subpackages.
        extras: The extra of Scrubjay that brings a foreign package which a home may lack.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in packages:
            return importlib.import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(f".{home_of[name]}", package), name)
        except ModuleNotFoundError as error:
            extra = (extras or {}).get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            message = f"{name} needs {error.name}: pip install 'scrubjay[{extra}]'"
            raise ModuleNotFoundError(message, name=error.name) from error

    def names() -> list[str]:
        own = [name for name in vars(sys.modules[package]) if name.startswith("__")]
        return sorted({*own, *home_of, *packages})

    return sorted(home_of), get, names
