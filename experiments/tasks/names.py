"""Whose word an environment's name is: ours, the user's, or only a file's, which must not make code run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import gymnasium

from scrubjay.envs import list_environments
from scrubjay.experiments.runs.own import make_importable

_FOREIGN_SINGLE = re.compile(r"popgym:popgym-\w+-v\d+", re.ASCII)
_FOREIGN_TEAM = re.compile(r"mpe2\.simple\w*_v\d+:parallel_env", re.ASCII)
_HARMLESS = frozenset({"map_name", "render_mode"})

_NAMED: set[tuple[str, frozenset[tuple[str, Any]]]] = set()


class FoundName(str):
    """A name that stands in a file, of which nobody has said that it may be made.

    A string like others, so that it is written, compared and sent to workers as one, and stays what it is in
    a config that is changed elsewhere.
    """


def is_ours(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a file may name this environment of one agent, as making it runs no stranger's code.

    Ours may be, and what gymnasium knows by a name without a module: its own, and what this process has told
    it. POPGym, an extra of ours, too. Settings of those others must not be words: some read files or import.
    """
    if name.removeprefix("scrubjay.envs:") in list_environments():
        return True
    return _without_words(kwargs) and (
        name in gymnasium.registry or _FOREIGN_SINGLE.fullmatch(name) is not None
    )


def is_our_team(name: str, kwargs: Mapping[str, Any], known: frozenset[str]) -> bool:
    """Return whether a file may name this environment of a team: one of `known`, or of the extra `mpe`."""
    return name in known or (_without_words(kwargs) and _FOREIGN_TEAM.fullmatch(name) is not None)


def found(name: str, kwargs: Mapping[str, Any], ours: bool) -> str:
    """Return a file's name as what it is: ours or named by the user in this process, or a `FoundName`."""
    return name if ours or (name, frozenset(kwargs.items())) in _NAMED else FoundName(name)


def admit(name: str, kwargs: Mapping[str, Any]) -> None:
    """Take note that the user has named this environment. Raises ValueError if only a file did."""
    if isinstance(name, FoundName):
        raise ValueError(  # noqa: TRY004  (it is the value that nobody vouches for)
            f"environment {str(name)!r}: a file names it, and it is none of Scrubjay's: making it runs "
            "whatever code that is; add --trust if you trust the run (in Python trust=True)"
        )
    _NAMED.add((name, frozenset(kwargs.items())))


def make_own_importable(name: str) -> None:
    """Let the module of an environment's `module:name` be found in the current folder.

    Names that a file may give without trust are left out: what is installed alone may serve them.
    """
    if not (_FOREIGN_SINGLE.fullmatch(name) or _FOREIGN_TEAM.fullmatch(name)):
        make_importable(name.partition(":")[0])


def _without_words(kwargs: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, str) for name, value in kwargs.items() if name not in _HARMLESS)
