"""Full attention: no token is evicted, and the cache grows with the text.

This policy is the baseline for all other policies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerMemory, Step, extend_valid
from scrubjay.memory.context.policies.buffers import append, compact, compute_capacity, shrink
from scrubjay.memory.context.policies.dense import Scoring, causal_attention


@dataclass(frozen=True)
class FullPolicy(ContextPolicy):
    """Keep all tokens at the model's positions."""

    can_crop: ClassVar[bool] = True
    drops: ClassVar[bool] = False
    reads_whole: ClassVar[bool] = True

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return FullMemory()

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the buffers for keys and values, unused capacity included."""
        return compute_capacity(tokens) * shape.token_bytes


class FullMemory(LayerMemory):
    """Memory of one layer.

    State: buffers `keys` and `values`, and a mask `valid` once a row has had padding. The first `columns`
    tokens of each buffer are in use.
    """

    state_names = frozenset(("keys", "values"))

    def __init__(self) -> None:
        super().__init__()
        self.columns = 0

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return causal attention of the new tokens over all tokens."""
        self.compress(query, keys, values, step, scoring)
        return causal_attention(
            query, self.get_columns("keys"), self.get_columns("values"), self.state.get("valid"), scoring
        )

    def get_columns(self, name: str) -> Float[Tensor, "batch key_heads columns width"]:
        """Return the used part of the buffer `keys` or `values`."""
        return self.state[name][:, :, : self.columns]

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Append the new tokens."""
        for name, new in (("keys", keys), ("values", values)):
            self.state[name] = append(self.state.get(name), self.columns, new)
        self.columns += step.length
        if step.padded:
            self.state["valid"] = extend_valid(self.state.get("valid"), step.past_length, step)

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last `columns` tokens of every row."""
        self.columns -= columns
        for name in ("keys", "values"):
            self.state[name] = shrink(self.state[name], self.columns)
        if "valid" in self.state:
            self.state["valid"] = compact(self.state["valid"][:, : self.columns])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state without unused capacity."""
        return self.state | {
            name: self.get_columns(name) for name in ("keys", "values") if name in self.state
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned, and allocate capacity for more tokens."""
        self.state = dict(state)
        if "keys" in state:
            self.columns = state["keys"].shape[2]
            self.state |= {name: append(None, 0, state[name]) for name in ("keys", "values")}
