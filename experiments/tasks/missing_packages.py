"""Installation hints for missing packages of environments."""

from __future__ import annotations

_REMEDIES = {
    "mpe2": "pip install 'scrubjay[mpe]'",
    "popgym": "pip install 'scrubjay[popgym]'",
    # Its requirements pin an older gymnasium, hence --no-deps.
    "memory_gym": "pip install --no-deps memory-gym pygame",
}


def missing_module(error: BaseException) -> str | None:
    """Return the name of the missing module from an error or its causes; None if no module is named."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return cause.name
        cause = cause.__cause__ or cause.__context__
    return None


def install_hint(name: str, module: str | None) -> str | None:
    """Return the install command for the `module` that environment `name` lacks; None if unknown."""
    if module is None:
        return None
    source = name.partition(":")[0].partition(".")[0]
    if module.startswith(f"{source}."):  # the package is installed, but has no such submodule
        return None
    return _REMEDIES.get(module.partition(".")[0]) or _REMEDIES.get(source)
