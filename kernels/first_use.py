"""Names of a package that are imported when first used, so that its users wait only for what they use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def imported_on_first_use(
    package: str, homes: Mapping[str, Sequence[str]], extras: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """Return a `__getattr__` for `package` that finds each name in its module.

    `homes` tells a module's names, `extras` which extra of Scrubjay brings a package that such a module may lack.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(f"{package}.{home_of[name]}"), name)
        except ModuleNotFoundError as error:
            extra = (extras or {}).get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            message = f"{name} needs {error.name}: pip install 'scrubjay[{extra}]'"
            raise ModuleNotFoundError(message, name=error.name) from error

    return get
