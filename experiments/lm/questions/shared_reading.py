"""Reading of one prompt by many caches, for which the model runs only once.

Policies that read a prompt by full attention (`reads_whole`) differ only in the tokens that they retain
afterwards. So the queries, keys and values of each layer are recorded, with the output of full attention. The
layers of a cache then get the recorded tensors, and only choose their tokens. A question after the text
changes nothing before it, so that the record of a text is extended by the record of each question.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from scrubjay.experiments.resources import stopwatch
from scrubjay.memory import context
from scrubjay.memory.context.attention import record_inputs
from scrubjay.memory.context.cache import PolicyCache
from scrubjay.memory.context.layers.layer_types import LayerType
from scrubjay.memory.context.layers.policy import PolicyLayer
from scrubjay.memory.context.layers.probe import decoder_of, entry_of
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.scored.second_pass import SecondPass


class Reading(NamedTuple):
    """A cache that has read a prompt."""

    cache: PolicyCache
    logits: Float[Tensor, " vocabulary"]
    """Logits of the token after the prompt."""
    cpu: float
    """Processor time in seconds that the cache would have needed alone."""


class LayerRecord(NamedTuple):
    """Arguments and result of the attention of one layer."""

    query: Float[Tensor, "1 heads length width"]
    keys: Float[Tensor, "1 key_heads length width"]
    values: Float[Tensor, "1 key_heads length value_width"]
    out: Float[Tensor, "1 heads length value_width"]
    scoring: Scoring

    def join(self, later: LayerRecord) -> LayerRecord:
        """Return the record of this text and a later one."""
        query, keys, values, out = (
            torch.cat(pair, dim=2) for pair in zip(self[:-1], later[:-1], strict=True)
        )
        hidden = None
        if self.scoring.hidden is not None and later.scoring.hidden is not None:
            hidden = torch.cat([self.scoring.hidden, later.scoring.hidden], dim=1)
        return LayerRecord(query, keys, values, out, replace(self.scoring, hidden=hidden))


@dataclass(frozen=True, eq=False)
class PromptRecord:
    """Record of a model's reading of a prompt by full attention, made by `record_prompt` or `extend`."""

    model: PreTrainedModel
    tokens: Int[Tensor, " time"]
    """All tokens of the prompt."""
    layers: Sequence[LayerRecord]
    """Records of the layers with keys and values, for the tokens after `before`."""
    logits: Float[Tensor, " vocabulary"]
    """Logits of the token after the prompt."""
    cpu: float
    """Processor time of the reading, in seconds."""
    recorder: Recorder | None
    """Cache that has read the prompt; None for a record that cannot be extended."""
    before: PromptRecord | None = None
    """Record of the first tokens of the prompt; None if the layers have the whole prompt."""
    scores: dict[context.ContextPolicy, SecondScores] = field(default_factory=dict)
    """Results of second passes, which do not depend on the budget."""

    @torch.no_grad()
    def extend(self, tokens: Int[Tensor, " more"]) -> PromptRecord:
        """Return the record of this prompt with more tokens. This record stays as it is."""
        if self.recorder is None:
            raise ValueError("the record of an extended prompt cannot be extended again")
        recorder = copy.deepcopy(self.recorder)
        logits, cpu = recorder.read(self.model, tokens)
        prompt = torch.cat([self.tokens, tokens])
        return PromptRecord(self.model, prompt, recorder.records, logits, self.cpu + cpu, None, self)

    @torch.no_grad()
    def read(self, policy: context.ContextPolicy) -> Reading:
        """Return a cache of a policy that has read the prompt.

        Raises ValueError if the policy does not read a prompt by full attention.
        """
        if not policy.reads_whole:
            raise ValueError(f"{policy!r} does not read a prompt by full attention")
        cache = PolicyCache(policy, self.model)
        own_pass, shared_pass = cache.second_pass, SharedSecondPass(type(policy).__name__, self.scores)
        if own_pass is not None:
            cache.second_pass = shared_pass
        cpu = self.cpu
        cache.begin_call(None, self.tokens[None])
        for index, layer in enumerate(cache.attention_layers):
            record = self.layers[index]
            if self.before is not None:
                record = self.before.layers[index].join(record)
            scoring = record.scoring
            if layer.sees_everything:
                scoring = replace(scoring, prompt_reader=RecordedOutput(record.out))
            with stopwatch() as timer:
                layer.attend(record.query, record.keys, record.values, None, scoring)
            cpu += timer.cpu
        with stopwatch() as timer:
            cache.end_call(entry_of(self.model))
        cache.second_pass = own_pass  # later prompts have other scores
        return Reading(cache, self.logits, cpu + timer.cpu + shared_pass.saved_cpu)


@torch.no_grad()
def record_prompt(model: PreTrainedModel, tokens: Int[Tensor, " time"]) -> PromptRecord:
    """Return the record of a model's reading of a prompt.

    Raises ValueError if the model has recurrent states.
    """
    record_inputs(decoder_of(model))
    recorder = Recorder(model)
    logits, cpu = recorder.read(model, tokens)
    return PromptRecord(model, tokens, recorder.records, logits, cpu, recorder)


class Recorder(PolicyCache):
    """Cache that retains all tokens of a prompt, and records what its layers receive and return.

    Raises ValueError if the model has recurrent states.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.records: list[LayerRecord] = []
        super().__init__(context.make("full"), model)

    def read(
        self, model: PreTrainedModel, tokens: Int[Tensor, " time"]
    ) -> tuple[Float[Tensor, " vocabulary"], float]:
        """Read tokens, record them, and return the next-token logits and the processor time in seconds."""
        self.records = []
        with stopwatch() as timer:
            logits = model(tokens[None].to(model.device), cache=self, logits_to_keep=1).logits[0, -1]
        return logits, timer.cpu

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy without the records."""
        memo[id(self.records)] = []
        return super().__deepcopy__(memo)

    def _layer(
        self, index: int, layer_type: LayerType, policies: Sequence[context.ContextPolicy | None]
    ) -> PolicyLayer:
        layer = super()._layer(index, layer_type, policies)
        if type(layer) is not PolicyLayer:
            raise ValueError("a model with recurrent states cannot pass its work on to other caches")
        return RecordedLayer(self, index, layer.policy, index)


class RecordedLayer(PolicyLayer):
    """Layer that records what it receives and returns."""

    def __init__(self, cache: Recorder, index: int, policy: context.ContextPolicy, shared_index: int) -> None:
        super().__init__(cache, index, policy, shared_index)
        self._recorder = cache

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
        self._recorder.records.append(LayerRecord(query, keys, values, out, scoring))
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


class SecondScores(NamedTuple):
    """Result of a second pass over a prompt."""

    tables: list[Tensor]
    """Scores of all tokens, for each layer with scores."""
    cpu: float
    """Processor time of the second pass, in seconds."""


class SharedSecondPass(SecondPass):
    """Second pass whose scores serve the caches of all budgets."""

    def __init__(self, policy: str, scores: dict[context.ContextPolicy, SecondScores]) -> None:
        super().__init__(policy)
        self._scores = scores
        self.saved_cpu = 0.0
        """Processor time that an earlier cache has spent for the same scores, in seconds."""

    def score(
        self, cache: Any, entry: nn.Module, ids: Int[Tensor, "batch tokens"], positions: Int[Tensor, " batch"]
    ) -> None:
        """Score the last tokens of a cache, or take the scores of an earlier cache with another budget."""
        memories = [layer.memory for layer in cache.attention_layers if layer.sees_everything]
        key = replace(cache.policy, budget=None)
        if (earlier := self._scores.get(key)) is not None:
            self.saved_cpu = earlier.cpu
            for memory, table in zip(memories, earlier.tables, strict=True):
                memory.state["scores"] = table
            return
        with stopwatch() as timer:
            super().score(cache, entry, ids, positions)
        self._scores[key] = SecondScores([memory.state["scores"] for memory in memories], timer.cpu)
