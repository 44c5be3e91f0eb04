"""Registry of memories by name; the conformance tests run on every registered memory."""

from __future__ import annotations

from typing import Any

from scrubjay.memory.based import BasedConfig
from scrubjay.memory.config_registry import Registry
from scrubjay.memory.contract.base import Memory, MemoryConfig
from scrubjay.memory.gru import GRUConfig
from scrubjay.memory.gtrxl import GTrXLConfig
from scrubjay.memory.hcam import HCAMConfig
from scrubjay.memory.linear.flow import FlowConfig
from scrubjay.memory.linear.gated_delta import GatedDeltaConfig
from scrubjay.memory.linear.lightning import LightningConfig
from scrubjay.memory.lstm import LSTMConfig
from scrubjay.memory.miras.memora import MemoraConfig
from scrubjay.memory.miras.moneta import MonetaConfig
from scrubjay.memory.miras.yaad import YaadConfig
from scrubjay.memory.none import NoMemoryConfig
from scrubjay.memory.positional import PositionalConfig
from scrubjay.memory.scan.agalite import AGaLiTeConfig
from scrubjay.memory.scan.ffm import FFMConfig
from scrubjay.memory.scan.lru import LRUConfig
from scrubjay.memory.scan.mingru import MinGRUConfig
from scrubjay.memory.scan.shm import SHMConfig
from scrubjay.memory.sink import SinkConfig
from scrubjay.memory.sparse.elmur import ELMURConfig
from scrubjay.memory.sparse.landmark import LandmarkConfig
from scrubjay.memory.sparse.moba import MoBAConfig
from scrubjay.memory.sparse.nsa import NSAConfig
from scrubjay.memory.sparse.routing import RoutingConfig
from scrubjay.memory.stack import StackConfig
from scrubjay.memory.titans.lmm import TitansConfig
from scrubjay.memory.titans.mac import TitansMACConfig
from scrubjay.memory.titans.mag import TitansMAGConfig
from scrubjay.memory.titans.mal import TitansMALConfig

_CONFIGS: Registry[MemoryConfig] = Registry(
    "memory",
    "scrubjay.memory.register",
    {
        "agalite": AGaLiTeConfig,
        "based": BasedConfig,
        "elmur": ELMURConfig,
        "ffm": FFMConfig,
        "flow": FlowConfig,
        "gated_delta": GatedDeltaConfig,
        "gru": GRUConfig,
        "gtrxl": GTrXLConfig,
        "hcam": HCAMConfig,
        "landmark": LandmarkConfig,
        "lightning": LightningConfig,
        "lru": LRUConfig,
        "lstm": LSTMConfig,
        "memora": MemoraConfig,
        "mingru": MinGRUConfig,
        "moba": MoBAConfig,
        "moneta": MonetaConfig,
        "none": NoMemoryConfig,
        "nsa": NSAConfig,
        "positional": PositionalConfig,
        "routing": RoutingConfig,
        "shm": SHMConfig,
        "sink": SinkConfig,
        "stack": StackConfig,
        "titans": TitansConfig,
        "titans_mac": TitansMACConfig,
        "titans_mag": TitansMAGConfig,
        "titans_mal": TitansMALConfig,
        "yaad": YaadConfig,
    },
)


def register(name: str, config_class: type[MemoryConfig]) -> None:
    """Register a memory's config class under `name`. Raises ValueError if the name is taken."""
    _CONFIGS.register(name, config_class)


def list_memories() -> list[str]:
    """Return the names of all registered memories."""
    return _CONFIGS.names()


def make_config(name: str, **fields: Any) -> MemoryConfig:
    """Return the config of a memory by name, with defaults for fields that are not passed.

    Raises ValueError on an unknown name or field. The message lists the choices.
    """
    return _CONFIGS.configure(name, **fields)


def make(name: str, **fields: Any) -> Memory:
    """Build a memory by name: `make("hcam", dim=128, chunk_size=16)`.

    Raises ValueError on an unknown name, field or size.
    """
    return make_config(name, **fields).build()


def name_of(config: MemoryConfig) -> str:
    """Return the registered name of a config's class. Raises ValueError if the class is not registered."""
    return _CONFIGS.name_of(config)
