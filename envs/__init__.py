"""Memory tasks registered with gymnasium: `gymnasium.make("scrubjay.envs:scrubjay/TMaze-v0")`."""

from __future__ import annotations

import gymnasium

__all__ = ["list_environments"]

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
    return sorted(f"scrubjay/{name}-v0" for name in _HOMES)


def _register(name: str) -> None:
    entry_point = f"{__name__}.{_HOMES[name]}:{name}"
    gymnasium.register(f"scrubjay/{name}-v0", entry_point, vector_entry_point=f"{entry_point}Vector")


for _name in _HOMES:
    if f"scrubjay/{_name}-v0" not in gymnasium.registry:
        _register(_name)
