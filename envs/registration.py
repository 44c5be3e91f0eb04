"""What gymnasium is told of our environments, and what may be made of them by name."""

from __future__ import annotations

import gymnasium

# By class; the batched form, of the same module, is called <class>Vector. No environment is loaded here.
_HOMES: dict[str, str] = {
    "Autoencode": "autoencode",
    "Ballet": "ballet.env",
    "CountRecall": "count_recall",
    "KeyToDoor": "key_to_door",
    "MemoryPlanning": "memory_planning",
    "RepeatPrevious": "repeat_previous",
    "TMaze": "tmaze",
}


def list_environments() -> list[str]:
    """Return the ids of all registered scrubjay environments, ready for `gymnasium.make`."""
    return sorted(map(_id, _HOMES))


def register() -> None:
    """Tell gymnasium of every environment that it does not know yet."""
    for name, module in _HOMES.items():
        if _id(name) not in gymnasium.registry:
            single = f"scrubjay.envs.{module}:{name}"
            gymnasium.register(_id(name), entry_point=single, vector_entry_point=f"{single}Vector")


def _id(name: str) -> str:
    return f"scrubjay/{name}-v0"
