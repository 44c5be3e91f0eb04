"""Neural memory on Triton: what depends on the chunk before walks the chunks, all else takes them in parallel.

The maths is that of `run_chunks`, of a matrix or of two layers, "lower" `[D, I]` and "upper" `[I, D]`; a
matrix is an upper layer with I = D. The coefficients of the learning rule are torch's. In shapes of tiles C
are a chunk's tokens and D the width of a head, both padded, and BI is a tile of the hidden width I.

Two kernels walk, one program a row and head, from a chunk's delta and momentum to the next one's and,
backward, with their gradients. They go through the hidden width in tiles of 16, so that any hidden width
does. What queries read, what that owes in the gradient, and the gradient of the rule have a program for each
chunk. The gradients of the weights are products over all tokens, left to torch. No atomics: results are
deterministic.

Products of float32 are three TF32 ones each, whose error is near float32's own; where query, key or value has
half precision they are one TF32 product, as exact as float16 and without its limits, for delta, momentum and
the gradients stay float32. C and D are padded to powers of two of at least 16, and at most 64. Beyond what
`configurations` lists they are right, but may spill registers: two layers at D = 64 or in float32, and C =
64.
"""

from scrubjay.kernels.neural.gpu.examples import configurations
from scrubjay.kernels.neural.gpu.walk import run_walk

__all__ = ["configurations", "run_walk"]
