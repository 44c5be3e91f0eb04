"""State of environments: vectorized random number streams, one per sub-environment, and checks of states."""

from __future__ import annotations

from collections.abc import Mapping
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
    """SplitMix64 random streams, one per row; a row is the index of a sub-environment.

    The next 64-bit word of a row depends only on the position of its stream. One numpy generator per row
    would need a Python loop at every draw. A counter-based generator needs no loop, and its full state is
    `position`, one 64-bit number per row. Initial positions come from numpy generators, so rows with
    different seeds start at unrelated positions of the cycle of length 2^64.

    Paper: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 17.
    """

    def __init__(self, num_rows: int, generator: np.random.Generator) -> None:
        self.position: UInt64[np.ndarray, " rows"] = np.zeros(num_rows, dtype=np.uint64)
        self.seed(np.arange(num_rows), generator)

    def seed(self, rows: Int64[np.ndarray, " some"], generator: np.random.Generator) -> None:
        """Set the stream positions of `rows` to random 64-bit numbers from `generator`."""
        self.position[rows] = generator.integers(2**64, size=len(rows), dtype=np.uint64)

    def words(self, rows: Int64[np.ndarray, " some"], count: int) -> UInt64[np.ndarray, "some count"]:
        """Draw the next `count` uniform 64-bit words of each row; `rows` must be distinct."""
        steps = np.arange(1, count + 1, dtype=np.uint64) * _INCREMENT
        words = self.position[rows, None] + steps
        self.position[rows] = words[:, -1]
        words = (words ^ (words >> np.uint64(30))) * _MIX_1
        words = (words ^ (words >> np.uint64(27))) * _MIX_2
        return words ^ (words >> np.uint64(31))

    def integers(
        self, rows: Int64[np.ndarray, " some"], high: int, count: int
    ) -> Int64[np.ndarray, "some count"]:
        """Draw `count` integers from 0 to `high` - 1 per row; `high` must be at most 2^31.

        The relative error of the probability of each integer is below `high` / 2^32.
        """
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

        Each 64-bit word gives two numbers. Paper: Box, Muller 1958, "A note on the generation of random
        normal deviates".
        """
        words = self.words(rows, (count + 1) // 2)
        first = (words >> np.uint64(40)).astype(np.float32) * _UNIT
        angle = (words & _LOW_24).astype(np.float32) * (_UNIT * np.float32(2 * np.pi))
        # Keep arrays contiguous: numpy may round strided arrays differently, depending on the other rows.
        radius = np.sqrt(np.float32(-2) * np.log(1 - first))
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]


class RowState:
    """State of environments in arrays, with one row and one random stream per environment."""

    settings: dict[str, Any]
    """Options of the environments; only states with equal settings are accepted."""
    streams: RowStreams
    row_arrays: tuple[str, ...]
    """Names of the attributes that hold the state, arrays `[num_envs, ...]`."""

    def get_state(self) -> dict[str, Any]:
        """Return copies of the full state, including random streams, as numpy arrays."""
        arrays = {name: getattr(self, name).copy() for name in self.row_arrays}
        return {"settings": dict(self.settings), "streams": self.streams.position.copy(), **arrays}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if `state` is from another environment, other settings or another `num_envs`."""
        if state.get("settings") != self.settings:
            raise ValueError(
                f"state has settings {state.get('settings')}; expected those of this environment: "
                f"{self.settings}"
            )
        self._check_array(state, "streams", self.streams.position)
        for name in self.row_arrays:
            self._check_array(state, name, getattr(self, name))

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `get_state` exactly.

        Raises ValueError, and changes nothing, if `check_state` rejects the state.
        """
        self.check_state(state)
        self.streams.position = np.array(state["streams"])
        for name in self.row_arrays:
            setattr(self, name, np.array(state[name]))

    def _check_array(self, state: Mapping[str, Any], name: str, own: np.ndarray) -> None:
        """Raise ValueError unless `state[name]` has the dtype and shape of `own`."""
        if name not in state:
            raise ValueError(f"state lacks {name!r}; pass what get_state() of {type(self).__name__} returned")
        array = np.asarray(state[name])
        if (array.dtype, array.shape) != (own.dtype, own.shape):
            raise ValueError(
                f"state[{name!r}] is {array.dtype}{array.shape}; expected {own.dtype}{own.shape}"
            )


def restore_generator(state: Any) -> np.random.Generator:
    """Return a new generator with `state`, the state of a numpy bit generator of any type.

    Raises ValueError if `state` is not a bit generator state.
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
