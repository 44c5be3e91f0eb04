"""Names of memories: one line per memory, and the conformance suite runs on every one of them."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from scrubjay.memory.base import Memory, MemoryConfig
from scrubjay.memory.gru import GRUConfig
from scrubjay.memory.gtrxl import GTrXLConfig
from scrubjay.memory.hcam import HCAMConfig
from scrubjay.memory.lstm import LSTMConfig
from scrubjay.memory.none import NoMemoryConfig
from scrubjay.memory.sink import SinkConfig
from scrubjay.memory.titans import TitansConfig
from scrubjay.memory.titans_mac import TitansMACConfig
from scrubjay.memory.titans_mag import TitansMAGConfig
from scrubjay.memory.titans_mal import TitansMALConfig

_CONFIGS: dict[str, type[MemoryConfig]] = {
    "gru": GRUConfig,
    "gtrxl": GTrXLConfig,
    "hcam": HCAMConfig,
    "lstm": LSTMConfig,
    "none": NoMemoryConfig,
    "sink": SinkConfig,
    "titans": TitansConfig,
    "titans_mac": TitansMACConfig,
    "titans_mag": TitansMAGConfig,
    "titans_mal": TitansMALConfig,
}


def register(name: str, config_class: type[MemoryConfig]) -> None:
    """Add a memory of your own under `name`. Raises ValueError if the name is taken."""
    if name in _CONFIGS:
        raise ValueError(
            f"memory {name!r} is already registered as {_CONFIGS[name].__name__}; choose another name"
        )
    _CONFIGS[name] = config_class


def list_memories() -> list[str]:
    """Return the names of all registered memories."""
    return sorted(_CONFIGS)


def make_config(name: str, **fields: Any) -> MemoryConfig:
    """Return the named memory's config, defaults where `fields` is silent.

    Raises ValueError on an unknown name or field, naming the choices.
    """
    if name not in _CONFIGS:
        close = difflib.get_close_matches(name, _CONFIGS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown memory {name!r}; choose from {', '.join(list_memories())}{hint}")
    config_class = _CONFIGS[name]
    known = [field.name for field in dataclasses.fields(config_class)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(
            f"memory {name!r} has no field {', '.join(unknown)}; its fields are {', '.join(known)}"
        )
    return config_class(**fields)


def make(name: str, **fields: Any) -> Memory:
    """Build the named memory: `make("hcam", dim=128, chunk_size=16)`.

    Raises ValueError on an unknown name, field or size.
    """
    return make_config(name, **fields).build()


def name_of(config: MemoryConfig) -> str:
    """Return the name a config is registered under. Raises ValueError if it is not."""
    for name, config_class in _CONFIGS.items():
        if type(config) is config_class:
            return name
    raise ValueError(f"{type(config).__name__} is not registered; call scrubjay.memory.register first")
