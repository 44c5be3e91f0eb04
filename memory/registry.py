"""Registry of memories by name; the conformance tests run on every registered memory.

A memory is imported at the first use of its name, so a policy with one memory does not import all of them.
"""

from __future__ import annotations

from typing import Any

from scrubjay.memory.config_registry import Registry
from scrubjay.memory.contract.base import Memory, MemoryConfig

_CONFIGS: Registry[MemoryConfig] = Registry(
    "memory",
    "scrubjay.memory.register",
    {
        "agalite": "scrubjay.memory.scan.agalite:AGaLiTeConfig",
        "based": "scrubjay.memory.based:BasedConfig",
        "comba": "scrubjay.memory.linear.comba:CombaConfig",
        "elmur": "scrubjay.memory.sparse.elmur:ELMURConfig",
        "ffm": "scrubjay.memory.scan.ffm:FFMConfig",
        "flow": "scrubjay.memory.linear.flow:FlowConfig",
        "gated_delta": "scrubjay.memory.linear.gated_delta:GatedDeltaConfig",
        "gru": "scrubjay.memory.gru:GRUConfig",
        "gtrxl": "scrubjay.memory.gtrxl:GTrXLConfig",
        "hcam": "scrubjay.memory.hcam:HCAMConfig",
        "landmark": "scrubjay.memory.sparse.landmark:LandmarkConfig",
        "lightning": "scrubjay.memory.linear.lightning:LightningConfig",
        "lru": "scrubjay.memory.scan.lru:LRUConfig",
        "lstm": "scrubjay.memory.lstm:LSTMConfig",
        "mamba2": "scrubjay.memory.linear.mamba2:Mamba2Config",
        "mamba3": "scrubjay.memory.linear.mamba3:Mamba3Config",
        "memora": "scrubjay.memory.miras:MemoraConfig",
        "mingru": "scrubjay.memory.scan.mingru:MinGRUConfig",
        "moba": "scrubjay.memory.sparse.moba:MoBAConfig",
        "moneta": "scrubjay.memory.miras:MonetaConfig",
        "none": "scrubjay.memory.none:NoMemoryConfig",
        "nsa": "scrubjay.memory.sparse.nsa:NSAConfig",
        "positional": "scrubjay.memory.positional:PositionalConfig",
        "routing": "scrubjay.memory.sparse.routing:RoutingConfig",
        "rwkv7": "scrubjay.memory.linear.rwkv7:RWKV7Config",
        "shm": "scrubjay.memory.scan.shm:SHMConfig",
        "sink": "scrubjay.memory.sink:SinkConfig",
        "stack": "scrubjay.memory.stack:StackConfig",
        "titans": "scrubjay.memory.titans.lmm:TitansConfig",
        "titans_mac": "scrubjay.memory.titans.mac:TitansMACConfig",
        "titans_mag": "scrubjay.memory.titans.mag_mal:TitansMAGConfig",
        "titans_mal": "scrubjay.memory.titans.mag_mal:TitansMALConfig",
        "xlstm": "scrubjay.memory.xlstm.memory:XLSTMConfig",
        "yaad": "scrubjay.memory.miras:YaadConfig",
    },
)


def register(name: str, config_class: type[MemoryConfig]) -> None:
    """Register a memory's config class under `name`.

    Raises:
        ValueError: If the name is taken.
    """
    _CONFIGS.register(name, config_class)


def list_memories() -> list[str]:
    """Return the names of all registered memories."""
    return _CONFIGS.names()


# `paper` is not bool alone: type checkers would then refuse `**fields` of integers.
def make_config(name: str, *, paper: bool | Any = False, **fields: Any) -> MemoryConfig:
    """Return the config of a memory by name, with defaults for fields that are not passed.

    Args:
        name: Name from `list_memories`.
        paper: Use the values of the memory's paper for fields that are not passed. The page of each memory
            lists the values that differ from the defaults.
        fields: Fields of the memory's config, such as `dim`.

    Raises:
        ValueError: On an unknown name or field. The message lists the choices.
        ValueError: If `paper` is True and the memory cannot follow its paper. The message gives the reason.
        TypeError: If `paper` is not a bool.
    """
    if not isinstance(paper, bool):
        raise TypeError(f"memory {name!r} has paper={paper!r}: must be True or False")
    if paper:
        values = _CONFIGS.find(name).paper_values
        if isinstance(values, str):
            raise ValueError(f"memory {name!r} has no variant with paper=True: {values}")
        fields = {**values, **fields}
    return _CONFIGS.configure(name, **fields)


def make(name: str, *, paper: bool | Any = False, **fields: Any) -> Memory:
    """Build a memory by name: `make("hcam", dim=128, chunk_size=16)`.

    `make("gated_delta", paper=True, dim=128)` builds the memory with the values of its paper.

    Args:
        name: Name from `list_memories`.
        paper: Use the values of the memory's paper for fields that are not passed.
        fields: Fields of the memory's config, such as `dim`.

    Raises:
        ValueError: On an unknown name, field or size, or if `paper` is True and the memory cannot follow its
            paper.
    """
    return make_config(name, paper=paper, **fields).build()


def name_of(config: MemoryConfig) -> str:
    """Return the registered name of a config's class.

    Raises:
        ValueError: If the class is not registered.
    """
    return _CONFIGS.name_of(config)
