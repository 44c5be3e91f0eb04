"""Nested states: one state dict that contains the states of several parts.

The names of a part's entries have a prefix or suffix: `actor/hidden` for a team, `block_0.hidden` for a
sequence model, `keys_0` for a layer. These forms must not change, since checkpoints contain the names.
"""

from __future__ import annotations

from scrubjay.memory.contract.base import State


def add_affixes(part: State, *, prefix: str = "", suffix: str = "") -> State:
    """Return the entries of a part's state, with the prefix and suffix added to their names."""
    return {f"{prefix}{name}{suffix}": value for name, value in part.items()}


def select_part(state: State, *, prefix: str = "", suffix: str = "") -> State:
    """Return the entries whose names have this prefix and suffix, with both removed from the names."""
    return {
        name.removeprefix(prefix).removesuffix(suffix): value
        for name, value in state.items()
        if name.startswith(prefix) and name.endswith(suffix)
    }
