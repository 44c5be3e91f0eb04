"""Inner loops of the long-context core: each op with its definition, a fast CPU path and Triton kernels.

`force` and every op's `implementation` say which of them runs; see `scrubjay.kernels.dispatch`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from scrubjay.kernels.first_use import imported_on_first_use

if TYPE_CHECKING:
    from scrubjay.kernels.chunk_retrieval import chunk_retrieval
    from scrubjay.kernels.chunk_summary import chunk_summary, write_steps
    from scrubjay.kernels.dispatch import force
    from scrubjay.kernels.nearest import nearest, row_scores
    from scrubjay.kernels.neural_memory import (
        Gates,
        NeuralState,
        neural_memory,
        neural_memory_step,
        neural_recall,
    )
    from scrubjay.kernels.sink_attention import sink_attention, sink_slot

__all__ = [
    "Gates",
    "NeuralState",
    "chunk_retrieval",
    "chunk_summary",
    "force",
    "nearest",
    "neural_memory",
    "neural_memory_step",
    "neural_recall",
    "row_scores",
    "sink_attention",
    "sink_slot",
    "write_steps",
]

# Who searches arrays of numpy must not wait for torch.
__getattr__ = imported_on_first_use(
    __name__,
    {
        "chunk_retrieval": ["chunk_retrieval"],
        "chunk_summary": ["chunk_summary", "write_steps"],
        "dispatch": ["force"],
        "nearest": ["nearest", "row_scores"],
        "neural_memory": ["Gates", "NeuralState", "neural_memory", "neural_memory_step", "neural_recall"],
        "sink_attention": ["sink_attention", "sink_slot"],
    },
)


class _Kernels(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # An op has the name of its module, which Python, having imported it, would put in the op's place.
        named_alike = isinstance(value, ModuleType) and name in __all__
        super().__setattr__(name, getattr(value, name) if named_alike else value)


sys.modules[__name__].__class__ = _Kernels
