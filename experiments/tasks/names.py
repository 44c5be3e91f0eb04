"""Trust of environment names. A name read from a file must not execute code unless it is safe.

Safe names are those of Scrubjay and gymnasium, and names that the user gave in this process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import gymnasium

from scrubjay.envs import list_environments
from scrubjay.experiments.runs.user_modules import make_importable

_EXTRA_SINGLE = re.compile(r"popgym:popgym-\w+-v\d+", re.ASCII)
_EXTRA_TEAM = re.compile(r"mpe2\.simple\w*_v\d+:parallel_env", re.ASCII)
_SAFE_SETTINGS = frozenset({"map_name", "render_mode"})

_USER_NAMES: set[tuple[str, frozenset[tuple[str, Any]]]] = set()


class UntrustedName(str):
    """Environment name from a file, which must not be created without trust.

    It is a str, so that it is serialized, compared and sent to workers like other names. It stays marked when
    other fields of its config change.
    """


def is_safe(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Return True if a file may name this single-agent environment: creating it runs no untrusted code.

    Safe are Scrubjay's environments, ids in gymnasium's registry (its own or registered by this process) and
    POPGym, an extra of Scrubjay. Except for Scrubjay's, settings must not be strings: some environments read
    files or import modules named in settings.
    """
    if name.removeprefix("scrubjay.envs:") in list_environments():
        return True
    return _has_no_strings(kwargs) and (
        name in gymnasium.registry or _EXTRA_SINGLE.fullmatch(name) is not None
    )


def is_safe_team(name: str, kwargs: Mapping[str, Any], known_names: frozenset[str]) -> bool:
    """Return True if a file may name this team environment: one of `known_names` or of the extra `mpe`."""
    return name in known_names or (_has_no_strings(kwargs) and _EXTRA_TEAM.fullmatch(name) is not None)


def mark_untrusted(name: str, kwargs: Mapping[str, Any], is_safe_name: bool) -> str:
    """Return a file's name unchanged if it is safe or the user gave it, else as an `UntrustedName`."""
    return name if is_safe_name or (name, frozenset(kwargs.items())) in _USER_NAMES else UntrustedName(name)


def admit(name: str, kwargs: Mapping[str, Any]) -> None:
    """Record that the user named this environment. Raises ValueError on an `UntrustedName`."""
    if isinstance(name, UntrustedName):
        raise ValueError(  # noqa: TRY004  (the value is untrusted, not the type wrong)
            f"environment {str(name)!r}: a file names this environment, which is not part of Scrubjay, and "
            "creating it executes its code; add --trust if you trust the run (in Python trust=True)"
        )
    _USER_NAMES.add((name, frozenset(kwargs.items())))


def make_env_importable(name: str) -> None:
    """Make the module of an environment's `module:name` importable from the current folder.

    Names that are safe without trust are excluded: they must come from installed packages only.
    """
    if not (_EXTRA_SINGLE.fullmatch(name) or _EXTRA_TEAM.fullmatch(name)):
        make_importable(name.partition(":")[0])


def _has_no_strings(kwargs: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, str) for name, value in kwargs.items() if name not in _SAFE_SETTINGS)
