"""Trust of environment names. A name read from a file must not execute code unless it is safe.

Environments of Scrubjay and gymnasium are safe, and so are names that the user passed in this process.
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
    """Environment name from an untrusted file; this environment must not be created.

    The class is a str, so that it is serialized, compared and sent to workers like other names. The name
    stays untrusted when other fields of its config change.
    """


def is_safe(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Return True if an untrusted file may name this single-agent environment.

    Such an environment runs no untrusted code. Environments of Scrubjay, of gymnasium's registry (built in or
    registered by this process) and of POPGym, an extra of Scrubjay, are safe. Settings of gymnasium's and
    POPGym's environments must not be strings, except `map_name` and `render_mode`: some environments read
    files or import modules that a setting names.
    """
    if name.removeprefix("scrubjay.envs:") in list_environments():
        return True
    return _has_no_strings(kwargs) and (
        name in gymnasium.registry or _EXTRA_SINGLE.fullmatch(name) is not None
    )


def is_safe_team(name: str, kwargs: Mapping[str, Any], known_names: frozenset[str]) -> bool:
    """Return True if an untrusted file may name this team environment.

    The environments in `known_names` are safe. An environment of the extra `mpe` is safe if `kwargs`, its
    settings, contain no strings.
    """
    return name in known_names or (_has_no_strings(kwargs) and _EXTRA_TEAM.fullmatch(name) is not None)


def mark_untrusted(name: str, kwargs: Mapping[str, Any], is_safe_name: bool) -> str:
    """Return `name` unchanged if it is safe or was passed by the user, otherwise as an `UntrustedName`."""
    return name if is_safe_name or (name, frozenset(kwargs.items())) in _USER_NAMES else UntrustedName(name)


def admit(name: str, kwargs: Mapping[str, Any]) -> None:
    """Record that the user named this environment. Raises ValueError on an `UntrustedName`."""
    if isinstance(name, UntrustedName):
        raise ValueError(  # noqa: TRY004  (the value is untrusted, not the type wrong)
            f"environment {str(name)!r}: the name comes from a file, and creating this environment executes "
            "code from outside Scrubjay; add --trust if you trust the run (in Python trust=True)"
        )
    _USER_NAMES.add((name, frozenset(kwargs.items())))


def make_env_importable(name: str) -> None:
    """Make the module of an environment's `module:name` importable from the current folder.

    Environments of the extras POPGym and MPE are excluded: they must come from installed packages.
    """
    if not (_EXTRA_SINGLE.fullmatch(name) or _EXTRA_TEAM.fullmatch(name)):
        make_importable(name.partition(":")[0])


def _has_no_strings(kwargs: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, str) for name, value in kwargs.items() if name not in _SAFE_SETTINGS)
