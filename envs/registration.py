"""Registration of scrubjay's environments with gymnasium."""

from __future__ import annotations

import gymnasium

# Module of each environment class. The vector environment in the same module is called <class>Vector.
_MODULES: dict[str, str] = {
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
    return sorted(map(_build_id, _MODULES))


def register() -> None:
    """Register all environments whose ids gymnasium does not know yet; imports no environment."""
    for name, module in _MODULES.items():
        if _build_id(name) not in gymnasium.registry:
            single = f"scrubjay.envs.{module}:{name}"
            gymnasium.register(_build_id(name), entry_point=single, vector_entry_point=f"{single}Vector")


def _build_id(name: str) -> str:
    return f"scrubjay/{name}-v0"
