"""One stream of random numbers per row, drawn for many rows at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt64

# SplitMix64: the increment is odd (2^64 / golden ratio); the other two multiply inside the finaliser.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW_24 = np.uint64(2**24 - 1)
_UNIT = np.float32(2.0**-24)


class RowStreams:
    """SplitMix64 for each row: 64-bit words that depend on that row's position alone.

    A generator object per row would need a Python loop at every draw; a counter-based generator needs none,
    and its whole state is `position`, one 64-bit number per row. Keys come from numpy generators, so rows
    with different seeds start at unrelated places of the cycle of length 2^64.

    Paper: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 17.
    """

    def __init__(self, num_rows: int, generator: np.random.Generator) -> None:
        self.position: UInt64[np.ndarray, " rows"] = np.zeros(num_rows, dtype=np.uint64)
        self.seed(np.arange(num_rows), generator)

    def seed(self, rows: Int64[np.ndarray, " some"], generator: np.random.Generator) -> None:
        """Start `rows` afresh at places drawn from `generator`, one word per row."""
        self.position[rows] = generator.integers(2**64, size=len(rows), dtype=np.uint64)

    def words(self, rows: Int64[np.ndarray, " some"], count: int) -> UInt64[np.ndarray, "some count"]:
        """Draw the next `count` uniform 64-bit words of each of `rows`; rows must not repeat."""
        steps = np.arange(1, count + 1, dtype=np.uint64) * _INCREMENT
        words = self.position[rows, None] + steps
        self.position[rows] = words[:, -1]
        words = (words ^ (words >> np.uint64(30))) * _MIX_1
        words = (words ^ (words >> np.uint64(27))) * _MIX_2
        return words ^ (words >> np.uint64(31))

    def integers(
        self, rows: Int64[np.ndarray, " some"], high: int, count: int
    ) -> Int64[np.ndarray, "some count"]:
        """Draw `count` integers from 0 to `high` - 1 a row; `high` at most 2^31 (bias below high / 2^32)."""
        top = self.words(rows, count) >> np.uint64(32)
        return ((top * np.uint64(high)) >> np.uint64(32)).astype(np.int64)

    def permutations(self, rows: Int64[np.ndarray, " some"], size: int) -> Int64[np.ndarray, "some size"]:
        """Draw one uniform permutation of 0 .. `size` - 1 per row."""
        return np.argsort(self.words(rows, size), axis=1)

    def uniforms(self, rows: Int64[np.ndarray, " some"], count: int) -> Float32[np.ndarray, "some count"]:
        """Draw `count` numbers from 0 (included) to 1 (excluded) per row."""
        return (self.words(rows, count) >> np.uint64(40)).astype(np.float32) * _UNIT

    def normals(self, rows: Int64[np.ndarray, " some"], count: int) -> Float32[np.ndarray, "some count"]:
        """Draw `count` standard normal numbers per row, none beyond 5.8 standard deviations.

        Paper: Box, Muller 1958, "A note on the generation of random normal deviates"; a pair from every word.
        """
        words = self.words(rows, (count + 1) // 2)
        first = (words >> np.uint64(40)).astype(np.float32) * _UNIT
        angle = (words & _LOW_24).astype(np.float32) * (_UNIT * np.float32(2 * np.pi))
        # Contiguous all the way: numpy's functions may round strided arrays otherwise, and so by company.
        radius = np.sqrt(np.float32(-2) * np.log(1 - first))
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]


def generator_at(state: Any) -> np.random.Generator:
    """Return a new generator that goes on from `state`, the state of a bit generator of any of numpy's kinds.

    Raises ValueError if it is none.
    """
    try:
        bit_generator = _BIT_GENERATORS[state["bit_generator"]]()
        bit_generator.state = state
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{state!r} is not the state of a numpy bit generator ({error!r})") from None
    return np.random.Generator(bit_generator)


_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
