"""Linear memory on Triton: one loop over chunks for the state, all other work in parallel.

The formulas are those of `chunks` and `gradient`. Torch splits the tokens into chunks and multiplies the
decays. In the loop over chunks, a program handles one head of one batch row and a tile of value channels,
which are independent of each other. In all other kernels, a program handles one chunk. Chunks have 16 or 32
tokens. Head widths are padded to powers of two from 16 to 128. The kernels use no atomics, so results are
deterministic.

A product of float32 tensors is computed as three TF32 products (3xTF32), with nearly float32 precision. If
query, key or value has half precision, a single TF32 product is used. Sizes beyond those of `configurations`
give correct results, but may spill registers.
"""

from scrubjay.kernels.linear.gpu.autograd import configurations, run

__all__ = ["configurations", "run"]
