"""Packages that environments come from: which of them is missing, and the words that bring it."""

from __future__ import annotations

_REMEDIES = {
    "mpe2": "pip install 'scrubjay[mpe]'",
    "popgym": "pip install 'scrubjay[popgym]'",
    # Its own requirements ask for an older gymnasium.
    "memory_gym": "pip install --no-deps memory-gym pygame",
}


def missing(error: BaseException) -> str | None:
    """Return the module that was not found, as the first of an error and its causes tells; else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return cause.name
        cause = cause.__cause__ or cause.__context__
    return None


def remedy(name: str, module: str | None) -> str | None:
    """Return what to install so that the environment `name` finds `module`; None if nobody here knows."""
    if module is None:
        return None
    source = name.partition(":")[0].partition(".")[0]
    if module.startswith(f"{source}."):  # the package is there, and has no such part
        return None
    return _REMEDIES.get(module.partition(".")[0]) or _REMEDIES.get(source)
