"""Linear memory on Triton: the state walks the chunks, all else is in parallel.

The maths is that of `chunks` and `gradient`; how tokens lie in chunks and the products of decays are torch's.
A program of a walk takes a row of heads and some channels of values, which do not know each other; the others
take a chunk. Chunks have 16 or 32 tokens, widths of heads are padded to powers of two of at least 16 and at
most 128. No atomics: results are deterministic.

Products of float32 are three TF32 ones each, whose error is near float32's own; where query, key or value has
half precision they are one TF32 product. Beyond what `configurations` lists they are right, but may spill
registers.
"""

from scrubjay.kernels.linear.gpu.examples import configurations
from scrubjay.kernels.linear.gpu.walk import run

__all__ = ["configurations", "run"]
