"""Neural memory on Triton: a loop over chunks for the writes, all other work in parallel.

The formulas are those of `loop.run_loop`. A memory has two layers, "lower" `[D, I]` and "upper" `[I, D]`,
with head width D and hidden width I. Or it has one matrix, which counts as an upper layer with I = D. Torch
computes the coefficients of the learning rule. In the shapes of tiles, C is the padded number of a chunk's
tokens, D is the padded head width, and I is the length of a tile along the hidden width.

Two kernels loop over the chunks, with one program per batch row and head: the forward pass of the writes, and
its backward pass. The loop updates delta and momentum. Both kernels process the hidden width in tiles of 16,
so any hidden width is supported. The reads, their backward pass, and the gradient of the coefficients have
one program per chunk. Torch computes the gradients of the weights, which are products over all tokens. The
kernels use no atomics, so results are deterministic.

A product of float32 tensors is computed as three TF32 products (3xTF32), with nearly float32 precision. If
query, key or value has half precision, a single TF32 product is used. It is as precise as float16, but
without the range limits of float16, because delta, momentum and gradients stay float32.

C and D are padded to powers of two from 16 to 64. Inputs that `configurations` does not list give
correct results, but their kernels may spill registers. Such inputs are chunks of C = 64, two layers with
D = 64, and two layers in float32.
"""

from scrubjay.kernels.neural.gpu.autograd import configurations, run_kernels

__all__ = ["configurations", "run_kernels"]
