"""Inner loops of the long-context core: each op with its definition, a fast CPU path and Triton kernels.

`force` and every op's `implementation` say which of them runs; see `scrubjay.kernels.dispatch`.
"""

from scrubjay.kernels.chunk_retrieval import chunk_retrieval
from scrubjay.kernels.chunk_summary import chunk_summary, write_steps
from scrubjay.kernels.dispatch import force
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
    "neural_memory",
    "neural_memory_step",
    "neural_recall",
    "sink_attention",
    "sink_slot",
    "write_steps",
]
