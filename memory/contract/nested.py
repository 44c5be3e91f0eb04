"""Nested states: a state composed of the states of parts, whose entries have a prefix or suffix.

Each owner keeps its own spelling, since checkpoints contain these names: `actor/hidden` for a team,
`block_0.hidden` for a sequence model, `keys_0` for a layer.
"""

from __future__ import annotations

from scrubjay.memory.contract.base import State


def add_affixes(part: State, *, prefix: str = "", suffix: str = "") -> State:
    """Return a part's entries with the prefix and suffix that they have in the whole state."""
    return {f"{prefix}{name}{suffix}": value for name, value in part.items()}


def select_part(state: State, *, prefix: str = "", suffix: str = "") -> State:
    """Return the entries with this prefix and suffix under the part's own names; inverse of `add_affixes`."""
    return {
        name.removeprefix(prefix).removesuffix(suffix): value
        for name, value in state.items()
        if name.startswith(prefix) and name.endswith(suffix)
    }
