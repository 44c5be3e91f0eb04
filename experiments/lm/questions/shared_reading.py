"""Reading of one prompt by many caches at once, which computes each layer of the model only once.

Policies that read a prompt by full attention (`reads_whole`) differ only in the tokens that they retain
afterwards. The model calls a cache that retains all tokens. After each of its layers, the layers of the other
caches get the same queries, keys and values, and the output, so that they only choose their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from scrubjay.experiments.resources import stopwatch
from scrubjay.memory import context
from scrubjay.memory.context.cache import PolicyCache
from scrubjay.memory.context.layers.layer_types import LayerType
from scrubjay.memory.context.layers.policy import PolicyLayer
from scrubjay.memory.context.policies.dense import Scoring

MAX_CACHES = 16
"""Largest number of caches that read a prompt together; more would need much memory."""


class Reading(NamedTuple):
    """A cache that has read a prompt."""

    cache: PolicyCache
    logits: Float[Tensor, " vocabulary"]
    """Logits of the token after the prompt."""
    cpu: float
    """Processor time in seconds that the cache would have needed alone."""


@torch.no_grad()
def read_together(
    model: PreTrainedModel, tokens: Int[Tensor, " time"], policies: Sequence[context.ContextPolicy]
) -> list[Reading]:
    """Return a cache for each policy; all have read the tokens in one call of the model.

    Raises ValueError if a policy does not read a prompt by full attention.
    """
    readings: list[Reading] = []
    for first in range(0, len(policies), MAX_CACHES):
        caches = [PolicyCache(policy, model) for policy in policies[first : first + MAX_CACHES]]
        leader = LeadingCache(model, caches)
        with stopwatch() as timer:
            logits = model(tokens[None].to(model.device), cache=leader, logits_to_keep=1).logits[0, -1]
        shared_cpu = timer.cpu - sum(leader.cpu)
        readings += [
            Reading(cache, logits, shared_cpu + own) for cache, own in zip(caches, leader.cpu, strict=True)
        ]
    return readings


class LeadingCache(PolicyCache):
    """Cache that retains all tokens of one prompt, and passes the work of each layer on to other caches.

    Raises ValueError if the policy of another cache does not read a prompt by full attention, or if the model
    has recurrent states.
    """

    def __init__(self, model: PreTrainedModel, followers: Sequence[PolicyCache]) -> None:
        for follower in followers:
            if not follower.policy.reads_whole:
                raise ValueError(f"{follower.policy!r} does not read a prompt by full attention")
        self.followers = followers
        self.cpu = [0.0] * len(followers)
        """Processor time of the layers of each follower, in seconds."""
        super().__init__(context.make("full"), model)

    def begin_call(self, position_ids: Tensor | None, inputs: Tensor) -> None:
        """Prepare all caches for a model call."""
        for cache in self.followers:
            cache.begin_call(position_ids, inputs)
        super().begin_call(position_ids, inputs)

    def end_call(self, entry: nn.Module) -> None:
        """Mark the call of all caches as complete. A policy that reads a prompt twice reads it again."""
        super().end_call(entry)
        for index, cache in enumerate(self.followers):
            with stopwatch() as timer:
                cache.end_call(entry)
            self.cpu[index] += timer.cpu

    def _layer(
        self, index: int, layer_type: LayerType, policies: Sequence[context.ContextPolicy | None]
    ) -> PolicyLayer:
        layer = super()._layer(index, layer_type, policies)
        if type(layer) is not PolicyLayer:
            raise ValueError("a model with recurrent states cannot pass its work on to other caches")
        return LeadingLayer(self, index, layer.policy, index)


class LeadingLayer(PolicyLayer):
    """Layer that passes its work on to the same layer of other caches."""

    def __init__(
        self, cache: LeadingCache, index: int, policy: context.ContextPolicy, shared_index: int
    ) -> None:
        super().__init__(cache, index, policy, shared_index)
        self.leader = cache

    def attend(
        self,
        query: Float[Tensor, "batch heads length width"],
        keys: Float[Tensor, "batch key_heads length width"],
        values: Float[Tensor, "batch key_heads length value_width"],
        mask: Tensor | None,
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads length value_width"]:
        """Return the attention output of the new tokens; arguments as for `PolicyLayer.attend`."""
        out = super().attend(query, keys, values, mask, scoring)
        if self.sees_everything:
            scoring = replace(scoring, prompt_reader=RecordedOutput(out))
        for number, cache in enumerate(self.leader.followers):
            with stopwatch() as timer:
                cache.attention_layers[self.index].attend(query, keys, values, mask, scoring)
            self.leader.cpu[number] += timer.cpu
        return out


@dataclass(frozen=True, eq=False)
class RecordedOutput:
    """Output of full attention over a prompt, for policies that would compute it again."""

    out: Tensor

    def read_prompt(
        self,
        query: Float[Tensor, "batch heads tokens width"],
        keys: Float[Tensor, "batch key_heads tokens width"],
        values: Float[Tensor, "batch key_heads tokens value_width"],
        valid: Bool[Tensor, "batch tokens"] | None,
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads tokens value_width"]:
        """Return the recorded output; arguments as for `causal_attention`."""
        if self.out.shape[:-1] != query.shape[:-1]:
            raise ValueError(f"the output has the shape {tuple(self.out.shape)}, not that of the queries")
        return self.out
