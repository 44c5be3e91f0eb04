"""Recycled attention: decode on a small copy of the cache that a full step refreshes periodically.

RefreshKV (Xu et al. 2024, arXiv 2411.05787): the whole cache is kept, but only every `stride`-th token reads
all of it. The others read a copy with the tokens most attended to by the last full step (max pooling along
the text and over the query heads of a key head) and the tokens since then. The paper also skips full steps
while queries are similar; here every `stride`-th step is full. Prompts use full attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.context.parts.dense import causal_attention
from scrubjay.memory.context.parts.eviction import gather_columns, keep_best
from scrubjay.memory.context.parts.preallocation import compute_capacity
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerMemory, RetainedValues, Step
from scrubjay.memory.context.policies.full import FullMemory


@dataclass(frozen=True)
class RecycledPolicy(ContextPolicy):
    """Keep all tokens; read `budget` of them, and all at every `stride`-th token."""

    budget: int = 1024
    """Number of tokens that a step between two full steps reads. The tokens since the last full step, at most
    `stride`, are among them."""
    stride: int = 10
    """Tokens per full step."""
    kernel: int = 15
    """Width of the pooling along the text, an odd number.

    The paper's 7 finds only half of a seven-digit number if each digit is a token."""
    num_sinks: int = 4
    """First tokens that are always read."""

    split_invariant: ClassVar[bool] = False
    query_aware: ClassVar[bool] = True
    can_crop: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("stride", 1), ("num_sinks", 0), ("kernel", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.kernel % 2 == 0:
            raise ValueError(
                f"kernel={self.kernel}: must be odd, so that pooled scores stay aligned with tokens"
            )
        if self.copy_size < max(self.num_sinks, 1):
            raise ValueError(
                f"budget={self.budget}: must be at least {max(self.num_sinks, 1) + self.stride}, for "
                f"{self.num_sinks} sinks and the {self.stride} tokens between full steps"
            )

    @property
    def copy_size(self) -> int:
        """Number of tokens in a new copy."""
        return self.budget - self.stride

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return RecycledMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of all tokens, of the capacity allocated ahead, and of the copy."""
        since = 0 if at_once else max(tokens - 1, 0) % self.stride
        copy_length = min(self.copy_size, tokens - since) + since
        return (compute_capacity(tokens) + copy_length) * shape.token_bytes


class RecycledMemory(FullMemory):
    """Memory of one layer.

    State: that of `FullMemory` and the copy, `copied_keys` and `copied_values`, with `copied_valid` if rows
    differ.
    """

    def __init__(self, policy: RecycledPolicy) -> None:
        super().__init__()
        self.policy = policy
        self._since = 0

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Attend to the copy, or to all tokens and then refresh the copy."""
        if step.length > 1 or not self._since or self._since == self.policy.stride:
            out = super().attend(query, keys, values, step, scoring)
            self._refresh(query[:, :, -1:], scoring)
            self._since = 1
            return out
        self._since += 1
        copy_length = self.state["copied_keys"].shape[2]
        self.compress(query, keys, values, step, scoring)
        for name, new in (("copied_keys", keys), ("copied_values", values)):
            self.state[name] = torch.cat([self.state[name], new], dim=2)
        if "valid" in self.state:
            old = self.state.get("copied_valid")
            if old is None:
                old = torch.ones(len(keys), copy_length, dtype=torch.bool, device=keys.device)
            self.state["copied_valid"] = torch.cat([old, step.time >= 0], dim=1)
        copy = self.state
        return causal_attention(
            query, copy["copied_keys"], copy["copied_values"], copy.get("copied_valid"), scoring
        )

    def get_retained_values(self, count: Int[Tensor, " batch"]) -> RetainedValues | None:
        """Return the values of all tokens, and those of the copy if the last token read it."""
        retained_values, copy = super().get_retained_values(count), self.state.get("copied_values")
        if retained_values is None or copy is None or self._since == 1:
            return retained_values
        since = copy.shape[2] - self._since + 1
        return RetainedValues(retained_values.values, copy, copy[:, :, self.policy.num_sinks : since])

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last columns and the copy; the next token reads all tokens."""
        super().crop(columns, count)
        self.state = {name: tensor for name, tensor in self.state.items() if not name.startswith("copied")}
        self._since = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state and the age of the copy."""
        return super().state_dict() | {"since": torch.tensor(self._since)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned."""
        self._since = int(state["since"])
        super().load_state_dict({name: tensor for name, tensor in state.items() if name != "since"})

    def _refresh(self, query: Float[Tensor, "batch heads 1 width"], scoring: Scoring) -> None:
        """Copy the tokens that the last query attends to."""
        keys, valid = self.get_columns("keys").detach(), self.state.get("valid")
        batch, groups, columns, width = keys.shape
        most = min(self.policy.copy_size, columns)
        count = torch.full((batch,), columns, device=keys.device) if valid is None else valid.sum(dim=1)
        counts = count.clamp(max=most)
        products = query.detach().reshape(batch, groups, -1, width) @ keys.mT
        if valid is not None:
            # Padding comes first, so that consecutive tokens of the text are adjacent.
            order = valid.byte().argsort(dim=1, stable=True)[:, None].expand(-1, groups, -1)
            products = products.gather(3, order[:, :, None].expand_as(products))
        slot = torch.arange(columns, device=keys.device) - columns + count[:, None, None]
        sink = (slot >= 0) & (slot < self.policy.num_sinks)
        # Sinks are masked before pooling, which would spread their weight to their neighbours.
        weights = scoring.compute_weights(products[:, :, :, None], (slot < 0)[:, :, None, None])
        weights = weights[:, :, :, 0].amax(dim=2).masked_fill(sink, 0)
        worth = functional.max_pool1d(weights, self.policy.kernel, stride=1, padding=self.policy.kernel // 2)
        worth = worth.masked_fill(slot < 0, float("-inf")).masked_fill(sink, float("inf"))
        best = keep_best(worth, counts, most)
        if valid is not None:
            best = order.gather(2, best)
            self.state["copied_valid"] = torch.arange(most, device=keys.device) >= most - counts[:, None]
        self.state |= {
            f"copied_{name}": gather_columns(self.get_columns(name), best) for name in ("keys", "values")
        }
