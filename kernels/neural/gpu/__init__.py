"""Neural memory on Triton: a loop over chunks for the writes, all other work in parallel.

The formulas are those of `run_chunks`, for a matrix or for two layers, "lower" `[D, I]` and "upper" `[I, D]`;
a matrix is an upper layer with I = D. Torch computes the coefficients of the learning rule. In shapes of
tiles C is the number of a chunk's tokens and D the width of a head, both padded, and I is a tile of the
hidden width.

Two kernels loop over the chunks, with one program per row and head: the forward pass of the writes, from a
chunk's delta and momentum to the next one's, and its backward pass. They process the hidden width in tiles of
16, so any hidden width is supported. The reads, their backward pass, and the gradient of the coefficients
have one program per chunk. Torch computes the gradients of the weights, which are products over all tokens.
No atomics: results are deterministic.

A product of float32 tensors is computed as three TF32 products (3xTF32), with nearly float32 precision. If
query, key or value has half precision, it is one TF32 product: as precise as float16, but without its range
limits, because delta, momentum and gradients stay float32. C and D are padded to powers of two from 16 to 64.
Sizes beyond those of `configurations` give correct results, but may spill registers: two layers at D = 64 or
in float32, and C = 64.
"""

from scrubjay.kernels.neural.gpu.autograd import run_kernels
from scrubjay.kernels.neural.gpu.examples import configurations

__all__ = ["configurations", "run_kernels"]
