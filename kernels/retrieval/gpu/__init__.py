"""Chunk retrieval on Triton: selection of chunks, attention, and gradients of queries and memory.

Letters as in `chunk_retrieval`: B, T, M, C, H, G and S are sizes, `i_b` etc. are indices, and BLOCK_X is the
tile size along X. R = H / U is the number of query heads of a unit, D, V and DS are the widths of keys,
values and summaries, and K is the number of selected chunks. Attention logits in float32 use three TF32
products, whose error is close to that of float32.
"""

from scrubjay.kernels.retrieval.gpu.launch import backward, choose, configurations, forward, run_attention
from scrubjay.kernels.retrieval.gpu.tiles import AttentionOutputs, OutputGrads

__all__ = [
    "AttentionOutputs",
    "OutputGrads",
    "backward",
    "choose",
    "configurations",
    "forward",
    "run_attention",
]
