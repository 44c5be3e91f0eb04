"""What gymnasium is told of our environments, and what may be made of them by name."""

from __future__ import annotations

import gymnasium

# Entry points are strings so that importing this package loads no environment.
_ENTRY_POINTS: dict[str, tuple[str, str]] = {
    "scrubjay/Autoencode-v0": (
        "scrubjay.envs.autoencode:Autoencode",
        "scrubjay.envs.autoencode:AutoencodeVector",
    ),
    "scrubjay/Ballet-v0": ("scrubjay.envs.ballet.env:Ballet", "scrubjay.envs.ballet.env:BalletVector"),
    "scrubjay/CountRecall-v0": (
        "scrubjay.envs.count_recall:CountRecall",
        "scrubjay.envs.count_recall:CountRecallVector",
    ),
    "scrubjay/KeyToDoor-v0": (
        "scrubjay.envs.key_to_door:KeyToDoor",
        "scrubjay.envs.key_to_door:KeyToDoorVector",
    ),
    "scrubjay/MemoryPlanning-v0": (
        "scrubjay.envs.memory_planning:MemoryPlanning",
        "scrubjay.envs.memory_planning:MemoryPlanningVector",
    ),
    "scrubjay/RepeatPrevious-v0": (
        "scrubjay.envs.repeat_previous:RepeatPrevious",
        "scrubjay.envs.repeat_previous:RepeatPreviousVector",
    ),
    "scrubjay/TMaze-v0": ("scrubjay.envs.tmaze:TMaze", "scrubjay.envs.tmaze:TMazeVector"),
}


def list_environments() -> list[str]:
    """Return the ids of all registered scrubjay environments, ready for `gymnasium.make`."""
    return sorted(_ENTRY_POINTS)


def register() -> None:
    """Tell gymnasium of every environment that it does not know yet."""
    for name, (single, vector) in _ENTRY_POINTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=single, vector_entry_point=vector)
