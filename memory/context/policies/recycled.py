"""Recycled attention: decode on a small copy of the cache, and refresh the copy by a full step now and then.

RefreshKV (Xu et al. 2024, arXiv 2411.05787): nothing is lost, since the whole cache stays; but of `stride`
tokens all but one read only what the last full step attended to, pooled along the text by maximum and over
the query heads of a key head by maximum, and what came since. The paper also skips full steps while queries
stay alike; here every `stride`-th is full. Prompts are read in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.context.parts.dense import causal_attention
from scrubjay.memory.context.parts.eviction import keep_best, take
from scrubjay.memory.context.parts.room import columns_of_room
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, Kept, LayerMemory, Step
from scrubjay.memory.context.policies.full import FullMemory


@dataclass(frozen=True)
class RecycledPolicy(ContextPolicy):
    """Keep everything, and read `budget` tokens of it but at every `stride`-th token."""

    budget: int = 1024
    """Tokens read between full steps, and `stride` of them are of since the last one."""
    stride: int = 10
    """A token in so many reads everything."""
    kernel: int = 15
    """Width of the pooling along the text, an odd number. The paper's 7 reads half a number of seven digits
    where each is a token."""
    num_sinks: int = 4
    """First tokens, which are always read."""

    any_cut: ClassVar[bool] = False
    chooses_by_end: ClassVar[bool] = True
    can_crop: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("stride", 1), ("num_sinks", 0), ("kernel", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: must be odd, so that a pooled score stays at its token")
        if self.copied < max(self.num_sinks, 1):
            raise ValueError(
                f"budget={self.budget}: must be at least {max(self.num_sinks, 1) + self.stride}, "
                f"{self.num_sinks} "
                f"sinks and the {self.stride} tokens between full steps"
            )

    @property
    def copied(self) -> int:
        """Tokens in a fresh copy."""
        return self.budget - self.stride

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return RecycledMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of all tokens, with the room for the next ones, and of the copy."""
        since = 0 if at_once else max(tokens - 1, 0) % self.stride
        copied = min(self.copied, tokens - since) + since
        return (columns_of_room(tokens) + copied) * shape.token_bytes


class RecycledMemory(FullMemory):
    """State: as of `FullMemory`, and the copy.

    `copied_keys`, `copied_values`, `copied_valid` where rows differ.
    """

    def __init__(self, policy: RecycledPolicy) -> None:
        super().__init__()
        self.policy = policy
        self._since = 0

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Read the copy, or everything, and then renew the copy."""
        if step.length > 1 or not self._since or self._since == self.policy.stride:
            out = super().attend(query, keys, values, step, scoring)
            self._refresh(query[:, :, -1:], scoring)
            self._since = 1
            return out
        self._since += 1
        copied = self.state["copied_keys"].shape[2]
        self.compress(query, keys, values, step, scoring)
        for name, new in (("copied_keys", keys), ("copied_values", values)):
            self.state[name] = torch.cat([self.state[name], new], dim=2)
        if "valid" in self.state:
            old = self.state.get("copied_valid")
            if old is None:
                old = torch.ones(len(keys), copied, dtype=torch.bool, device=keys.device)
            self.state["copied_valid"] = torch.cat([old, step.time >= 0], dim=1)
        copy = self.state
        return causal_attention(
            query, copy["copied_keys"], copy["copied_values"], copy.get("copied_valid"), scoring
        )

    def kept(self, count: Int[Tensor, " batch"]) -> Kept | None:
        """Return the values of all tokens, and of the copy where the last token read that."""
        kept, copy = super().kept(count), self.state.get("copied_values")
        if kept is None or copy is None or self._since == 1:
            return kept
        since = copy.shape[2] - self._since + 1
        return Kept(kept.held, copy, copy[:, :, self.policy.num_sinks : since])

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Cut the last columns off, and the copy, so that the next token reads everything."""
        super().crop(columns, count)
        self.state = {name: tensor for name, tensor in self.state.items() if not name.startswith("copied")}
        self._since = 0

    def saved(self) -> dict[str, Tensor]:
        """Return the state, and how long ago the copy was made."""
        return super().saved() | {"since": torch.tensor(self._since)}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Take up what `saved` returned."""
        self._since = int(saved["since"])
        super().restore({name: tensor for name, tensor in saved.items() if name != "since"})

    def _refresh(self, query: Float[Tensor, "batch heads 1 width"], scoring: Scoring) -> None:
        """Copy what the last query attends to."""
        keys, valid = self.held("keys").detach(), self.state.get("valid")
        batch, groups, columns, width = keys.shape
        most = min(self.policy.copied, columns)
        count = torch.full((batch,), columns, device=keys.device) if valid is None else valid.sum(dim=1)
        kept = count.clamp(max=most)
        products = query.detach().reshape(batch, groups, -1, width) @ keys.mT
        if valid is not None:
            # Padding first, so that what follows each other in the text are neighbours.
            order = valid.byte().argsort(dim=1, stable=True)[:, None].expand(-1, groups, -1)
            products = products.gather(3, order[:, :, None].expand_as(products))
        slot = torch.arange(columns, device=keys.device) - columns + count[:, None, None]
        sink = (slot >= 0) & (slot < self.policy.num_sinks)
        # Before the pooling: a sink's weight would be smeared over its neighbours.
        weights = scoring.weights(products[:, :, :, None], (slot < 0)[:, :, None, None])
        weights = weights[:, :, :, 0].amax(dim=2).masked_fill(sink, 0)
        worth = functional.max_pool1d(weights, self.policy.kernel, stride=1, padding=self.policy.kernel // 2)
        worth = worth.masked_fill(slot < 0, float("-inf")).masked_fill(sink, float("inf"))
        best = keep_best(worth, kept, most)
        if valid is not None:
            best = order.gather(2, best)
            self.state["copied_valid"] = torch.arange(most, device=keys.device) >= most - kept[:, None]
        self.state |= {f"copied_{name}": take(self.held(name), best) for name in ("keys", "values")}
