"""Chunk retrieval on Triton: select, attend, and the gradients of queries and of memory.

Letters as in `chunk_retrieval`; B, T, M, C, H, G and S are sizes, `i_b` and the like places in them, and
BLOCK_X the side of a tile along X: R = H / U query heads of a unit, D, V and DS widths of keys, values and
summaries, K chunks kept. Attention's scores of float32 are three TF32 products each, whose error is near
float32's own.
"""

from scrubjay.kernels.retrieval.gpu.examples import configurations
from scrubjay.kernels.retrieval.gpu.launch import backward, choose, forward, read
from scrubjay.kernels.retrieval.gpu.tensors import Filled, Grads

__all__ = ["Filled", "Grads", "backward", "choose", "configurations", "forward", "read"]
