"""A state made of the states of parts: each part's entries under its own prefix or suffix.

Names are what older checkpoints were written with, so each owner keeps its spelling: `actor/hidden` of a
team, `block_0.hidden` of a sequence model, `keys_0` of a layer.
"""

from __future__ import annotations

from scrubjay.memory.contract.base import State


def named(part: State, *, prefix: str = "", suffix: str = "") -> State:
    """Return a part's entries as they are called in the whole."""
    return {f"{prefix}{name}{suffix}": value for name, value in part.items()}


def part_of(state: State, *, prefix: str = "", suffix: str = "") -> State:
    """Return the entries of the whole that `named` gave these names, as the part calls them."""
    return {
        name.removeprefix(prefix).removesuffix(suffix): value
        for name, value in state.items()
        if name.startswith(prefix) and name.endswith(suffix)
    }
