"""Recycled attention: most generated tokens read only a copy of a small part of the cache.

RefreshKV (Xu et al. 2024, arXiv 2411.05787) keeps the whole cache, but only every `stride`-th token reads
all of it. Such a full step also makes a new copy of the tokens that receive the most attention. To select
them, the attention is max-pooled along the text and over the query heads of a key head. Later tokens are
added to the copy until the next full step. The paper also skips a full step if the queries have hardly
changed. Here every `stride`-th step is full. Prompts use full attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.context.policies.base import (
    CacheShape,
    LayerMemory,
    RetainedValues,
    Step,
    check_kernel,
    check_minimums,
    extend_valid,
)
from scrubjay.memory.context.policies.budget import BudgetPolicy
from scrubjay.memory.context.policies.buffers import compute_capacity, gather_columns, keep_best, rate_tokens
from scrubjay.memory.context.policies.dense import Scoring, causal_attention
from scrubjay.memory.context.policies.full import FullMemory


@dataclass(frozen=True)
class RecycledPolicy(BudgetPolicy):
    """Keep all tokens; every `stride`-th new token reads all of them, the others read `budget` tokens."""

    budget: int | None = None
    """Number of tokens that a generated token reads if it does not read the whole cache. This includes all
    tokens since the last read of the whole cache, at most `stride`. Default: the model's window, at most
    8,192."""
    stride: int = 10
    """Every `stride`-th generated token reads the whole cache; all other tokens read `budget` tokens."""
    kernel: int = 15
    """Width of the max pooling of attention along the text, an odd number of tokens.

    The RefreshKV paper uses a width of 7. With this width, a model retrieves only half of a
    seven-digit number if each digit is a token."""
    num_sinks: int = 4
    """Number of first tokens that are always read."""

    split_invariant: ClassVar[bool] = False
    query_aware: ClassVar[bool] = True
    can_crop: ClassVar[bool] = True
    drops: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_minimums(self, stride=1, num_sinks=0)
        check_kernel(self.kernel)
        if self.copy_size < max(self.num_sinks, 1):
            raise ValueError(
                f"budget={self.num_tokens}: must be at least {max(self.num_sinks, 1) + self.stride}, for "
                f"{self.num_sinks} sinks and the {self.stride} tokens between full steps"
            )

    @property
    def copy_size(self) -> int:
        """Number of tokens that are copied after a read of the whole cache."""
        return self.num_tokens - self.stride

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return RecycledMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the whole cache, unused capacity included, and of the copied tokens."""
        since = 0 if at_once else max(tokens - 1, 0) % self.stride
        copy_length = min(self.copy_size, tokens - since) + since
        return (compute_capacity(tokens) + copy_length) * shape.token_bytes


class RecycledMemory(FullMemory):
    """Memory of one layer.

    State: the tensors of `FullMemory`, and a copy of the keys and values that most queries read, in
    `copied_keys` and `copied_values`. If rows have
    different token counts, the mask `copied_valid` is True for the used entries of the copy.
    """

    state_names = frozenset(("keys", "values", "since"))

    def __init__(self, policy: RecycledPolicy) -> None:
        super().__init__()
        self.policy = policy
        self._since = 0

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return the attention output of the new tokens.

        A full step reads all cached tokens, and copies those with the most attention. All other steps read
        only this copy.
        """
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
            self.state["copied_valid"] = extend_valid(self.state.get("copied_valid"), copy_length, step)
        copy = self.state
        return causal_attention(
            query, copy["copied_keys"], copy["copied_values"], copy.get("copied_valid"), scoring
        )

    def get_retained_values(self, count: Int[Tensor, " batch"]) -> RetainedValues | None:
        """Return the values that the memory retains for texts of `count` tokens; None before the first token.

        `values` of the result has the values of all tokens. If the last token has read only the copy of the
        best tokens, `read_values` has the values in this copy, and `fetched_values` has the values of the
        tokens that were selected by score.
        """
        retained_values, copy = super().get_retained_values(count), self.state.get("copied_values")
        if retained_values is None or copy is None or self._since == 1:
            return retained_values
        since = copy.shape[2] - self._since + 1
        return RetainedValues(retained_values.values, copy, copy[:, :, self.policy.num_sinks : since])

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last `columns` tokens, and delete the copy of the best tokens.

        The next token then reads all tokens.
        """
        super().crop(columns, count)
        self.state = {name: tensor for name, tensor in self.state.items() if not name.startswith("copied")}
        self._since = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, and the number of steps since the last full step, the full step included."""
        return super().state_dict() | {"since": torch.tensor(self._since)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned."""
        self._since = int(state["since"])
        super().load_state_dict({name: tensor for name, tensor in state.items() if name != "since"})

    def _refresh(self, query: Float[Tensor, "batch heads 1 width"], scoring: Scoring) -> None:
        """Copy the tokens that the last query attends to most."""
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
        hidden = torch.arange(columns, device=keys.device) < columns - count[:, None]
        weights = scoring.compute_weights(products[:, :, :, None], hidden[:, None, None, None])
        attention, policy = weights[:, :, :, 0].amax(dim=2), self.policy
        worth = rate_tokens(attention, count, policy.num_sinks, 0, functional.max_pool1d, policy.kernel)
        best = keep_best(worth, counts, most)
        if valid is not None:
            best = order.gather(2, best)
            self.state["copied_valid"] = torch.arange(most, device=keys.device) >= most - counts[:, None]
        self.state |= {
            f"copied_{name}": gather_columns(self.get_columns(name), best) for name in ("keys", "values")
        }
