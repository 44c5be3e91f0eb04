"""Operations (ops) of the memories, each with a reference definition, a fast CPU path and Triton kernels.

The argument `implementation` of an op selects one of these implementations. `force` sets its default for all
ops. See `scrubjay.kernels.dispatch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ == "kernels":
    raise ImportError(
        f"kernels is a subpackage of scrubjay and was found in the folder {__file__!r}, before the package "
        "kernels of Hugging Face: import scrubjay.kernels, and start Python with -P or in another folder"
    )

from scrubjay._lazy import lazy_exports

if TYPE_CHECKING:
    from scrubjay.kernels.dispatch import force as force
    from scrubjay.kernels.elementwise.op import scan as scan
    from scrubjay.kernels.linear.op import linear_memory as linear_memory
    from scrubjay.kernels.linear.op import linear_memory_step as linear_memory_step
    from scrubjay.kernels.neural.bias import Huber as Huber
    from scrubjay.kernels.neural.bias import Power as Power
    from scrubjay.kernels.neural.bias import SquaredError as SquaredError
    from scrubjay.kernels.neural.mirror_map import Identity as Identity
    from scrubjay.kernels.neural.mirror_map import QNorm as QNorm
    from scrubjay.kernels.neural.mirror_map import Simplex as Simplex
    from scrubjay.kernels.neural.network import Learning as Learning
    from scrubjay.kernels.neural.op import Gates as Gates
    from scrubjay.kernels.neural.op import NeuralState as NeuralState
    from scrubjay.kernels.neural.op import neural_memory as neural_memory
    from scrubjay.kernels.neural.op import neural_memory_step as neural_memory_step
    from scrubjay.kernels.neural.op import neural_recall as neural_recall
    from scrubjay.kernels.normalisers import merge as merge
    from scrubjay.kernels.retrieval.attend import attend_chosen as attend_chosen
    from scrubjay.kernels.retrieval.choose import SelectedChunks as SelectedChunks
    from scrubjay.kernels.retrieval.choose import choose_chunks as choose_chunks
    from scrubjay.kernels.retrieval.op import chunk_retrieval as chunk_retrieval
    from scrubjay.kernels.search.op import nearest as nearest
    from scrubjay.kernels.search.op import row_scores as row_scores
    from scrubjay.kernels.sinks.op import sink_attention as sink_attention
    from scrubjay.kernels.sinks.op import sink_slot as sink_slot

# Imported lazily: searching numpy arrays must not import torch.
__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "dispatch": ["force"],
        "elementwise.op": ["scan"],
        "linear.op": ["linear_memory", "linear_memory_step"],
        "neural.bias": ["Huber", "Power", "SquaredError"],
        "neural.mirror_map": ["Identity", "QNorm", "Simplex"],
        "neural.network": ["Learning"],
        "neural.op": ["Gates", "NeuralState", "neural_memory", "neural_memory_step", "neural_recall"],
        "normalisers": ["merge"],
        "retrieval.attend": ["attend_chosen"],
        "retrieval.choose": ["SelectedChunks", "choose_chunks"],
        "retrieval.op": ["chunk_retrieval"],
        "search.op": ["nearest", "row_scores"],
        "sinks.op": ["sink_attention", "sink_slot"],
    },
)
