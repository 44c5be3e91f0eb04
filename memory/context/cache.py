"""Transformers cache under a context policy: `model.generate(**inputs, cache=PolicyCache(policy, model))`."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from scrubjay.memory.context.attention import ATTENTION, attend_by_policy, record_inputs, set_next_layer
from scrubjay.memory.context.cache_file import check_shape, load_layer, read_cache_file, write_cache_file
from scrubjay.memory.context.head_scores import resolve_scores
from scrubjay.memory.context.layers.layer_types import LayerType, get_layer_types
from scrubjay.memory.context.layers.local import select_policies
from scrubjay.memory.context.layers.policy import PolicyLayer, RetainedTokens
from scrubjay.memory.context.layers.probe import (
    check_layers,
    check_update,
    decoder_of,
    entry_of,
    takes_positions,
)
from scrubjay.memory.context.layers.rotation import find_rotaries, find_rotation, has_rotary
from scrubjay.memory.context.layers.state import StateAndPolicyLayer, StateLayer, StatelessLayer
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerStats, Step
from scrubjay.memory.context.policies.budget import get_window, resolve_budget
from scrubjay.memory.context.policies.scored.second_pass import SecondPass
from scrubjay.memory.context.registry import name_of, warn_of_dropped_tokens

INTERRUPTED = (
    "an earlier call with this cache was interrupted, by Ctrl-C or an error, after only some layers had "
    "processed its tokens; reset the cache and read the text again, or load a saved cache"
)
_CHECK_INTERVAL = 64
"""Number of single tokens after which a cache checks for dropped tokens."""

STATE_RESETTING_MODELS = {"jamba", "zamba"}
"""Model types that reset their states in every call of several tokens, also with transformers' own cache."""


class PolicyCache(Cache):
    """Cache of all layers of one model for one batch of texts, managed by a context policy.

    The policy applies to the layers with full attention. A layer with a sliding window or chunked attention
    retains the tokens of its window or chunk. The policy does not change convolutional, linear or recurrent
    states.

    In calls with this cache, the model uses this package's attention function. In all other calls, the model
    uses its own function. Pass `attention_mask` if the prompt has left padding. One cache can serve several
    `generate` calls in a row. Assisted decoding requires that `is_croppable` is True. With `track_tokens`,
    `get_retained_tokens` lists the retained tokens, and each value vector gets four more coordinates.

    Args:
        policy: Policy that decides which tokens each layer retains and reads.
        model: Model that will use the cache.
        track_tokens: Record the position of each retained token, for `get_retained_tokens`.

    Raises:
        TypeError: If `policy` is not a policy or `model` is not a model.
        ValueError: If the policy does not support the model, or if the batch size differs from earlier calls.
        RuntimeError: On a call after an interrupted call.
    """

    layers: list[PolicyLayer | StateLayer | StatelessLayer]

    def __init__(self, policy: ContextPolicy, model: PreTrainedModel, track_tokens: bool = False) -> None:
        if not isinstance(policy, ContextPolicy):
            raise TypeError(f"policy={policy!r}: pass a policy, such as make('sinks', budget=1024)")
        if isinstance(model, type) or not hasattr(model, "config"):
            raise TypeError(f"model={model!r}: pass a loaded model of transformers")
        config = model.config.get_text_config(decoder=True)
        if model.config.is_encoder_decoder:
            raise ValueError(f"{type(model).__name__} has an encoder; policies support decoders only")
        layer_types = get_layer_types(config)
        decoder, entry = decoder_of(model), entry_of(model)
        if not decoder._can_set_attn_implementation():
            raise ValueError(
                f"{type(model).__name__} does not support transformers' AttentionInterface, which policies "
                "need; use a model that does"
            )
        # The implementation must not change between now and a call with this cache.
        self.outside_attention = attend_by_policy(entry)
        check_layers(model, layer_types)
        if policy.reads_twice and config.model_type in STATE_RESETTING_MODELS:
            raise ValueError(
                f"{type(policy).__name__} reads every prompt twice, but {config.model_type} resets its "
                "states in every call with several tokens; use a policy that reads once"
            )
        if policy.reads_hidden:
            record_inputs(decoder)
        policy = resolve_scores(resolve_budget(policy, get_window(model)), model, layer_types)
        self.policy, self._config, self.track_tokens = policy, config, track_tokens
        policies = select_policies(policy, layer_types)
        self.rotaries = find_rotaries(model, policies)
        # Without position ids Bamba would restart the positions at 0 in every call.
        self.adds_position_ids = has_rotary(decoder) and takes_positions(entry)
        self.takes_positions = takes_positions(entry)
        self.second_pass = SecondPass(type(policy).__name__) if policy.reads_twice else None
        # Token count of every row; a tensor once rows differ in padding.
        self.count: int | Int[Tensor, " batch"] = 0
        # State of the current model call: positions of its tokens, and whether a layer has processed them.
        self.position_ids: Tensor | None = None
        self.call_started = False
        self._step: Step | None = None
        # Layers already updated in the current call.
        self._updated_layers: set[int] = set()
        # Statistics of the layers that have processed the current call.
        self._layer_stats: list[LayerStats] = []
        layers: list[Any] = [self._layer(i, kind, policies) for i, kind in enumerate(layer_types)]
        super().__init__(layers=layers)

    def _layer(
        self, index: int, layer_type: LayerType, policies: Sequence[ContextPolicy | None]
    ) -> PolicyLayer | StateLayer | StatelessLayer:
        policy = policies[index]
        if policy is None:
            return StateLayer(self, layer_type.states) if layer_type.states else StatelessLayer()
        groups = list(zip(policies, map(id, self.rotaries), strict=True))
        shared_index = groups.index(groups[index])
        if layer_type.states:
            return StateAndPolicyLayer(self, index, policy, shared_index, layer_type.states)
        return PolicyLayer(self, index, policy, shared_index)

    def begin_call(self, position_ids: Tensor | None, inputs: Tensor) -> None:
        """Prepare for a model call with `inputs` at `position_ids`; None means consecutive positions.

        `inputs` are token ids, "batch length", or embeddings, "batch length width".

        Raises:
            RuntimeError: After an interrupted call.
            ValueError: On several tokens after the first call, if the model resets its states in every call
                with several tokens. On embeddings, if the policy reads every prompt twice.
        """
        if self.call_started:
            raise RuntimeError(INTERRUPTED)
        length = inputs.shape[1]
        if self.second_pass is not None:
            self.second_pass.begin_call(inputs)
        if length > 1 and self._config.model_type in STATE_RESETTING_MODELS and self.get_seq_length():
            raise ValueError(
                f"{self._config.model_type} resets its states in every call with several tokens, with any "
                "cache: pass the whole prompt in the first call and later tokens one by one "
                "(`call_length` returns the number of tokens per call)"
            )
        self.position_ids = position_ids
        self._updated_layers.clear()

    def call_length(self, length: int, block: int) -> int:
        """Return the number of tokens to pass to the model per call, for `length` tokens in total.

        This is `block` for most policies and models. A query-aware policy needs all tokens in one call. Some
        models need the whole prompt in the first call and one token in each later call.
        """
        if self._config.model_type in STATE_RESETTING_MODELS:
            return 1 if self.get_seq_length() else max(length, 1)
        return self.policy.call_length(length, block)

    def end_call(self, entry: nn.Module) -> None:
        """Mark the current call as complete: all layers have processed its tokens.

        If the policy reads prompts twice, its second pass calls `entry`, the submodel that gets the cache
        first.
        """
        step, second_pass = self._step, self.second_pass
        # Free what the layers shared in this call.
        self._step = self.position_ids = None
        if step is not None and second_pass is not None:
            second_pass.end_call(self, step, entry)
        self.call_started = False
        length = 0 if step is None else step.length
        is_copy = second_pass is not None and second_pass.is_copy
        if self.policy.drops and not is_copy and (length > 1 or self.get_seq_length() % _CHECK_INTERVAL == 0):
            self.warn_of_dropped_tokens()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the new keys and values unchanged; the next call of the attention function stores them."""
        if self._config._attn_implementation != ATTENTION:
            raise RuntimeError(
                f"the model uses attention {self._config._attn_implementation!r}, so it does not call the "
                "policy; build the cache for this model, after all calls of set_attn_implementation"
            )
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        check_update(layer_idx, self._updated_layers, isinstance(layer, PolicyLayer))
        self._updated_layers.add(layer_idx)
        assert isinstance(layer, PolicyLayer)
        set_next_layer(layer)
        return key_states, value_states

    def step(self, keys: Tensor, past_length: int, mask: Tensor | None) -> Step:
        """Return the new tokens of this call as one `Step` that all layers share.

        Args:
            keys: Keys of the new tokens, with the shape [batch, heads, time, width].
            past_length: Number of earlier tokens, with padding.
            mask: False for padding, for all past and new tokens; None without padding.

        Raises:
            ValueError: If the batch size has changed, or if the mask has a wrong shape.
        """
        batch, _, length, _ = keys.shape
        if self._step is not None and self._step.past_length == past_length and self._step.length == length:
            return self._step
        if past_length and batch != (cache_batch := self.shape().batch):
            raise ValueError(
                f"batch size {batch}: the cache has batch size {cache_batch}; reset or rebuild the cache"
            )
        device = keys.device
        column = torch.arange(length, device=device)
        new = None
        if mask is not None:
            if mask.ndim != 2 or mask.shape != (batch, past_length + length):
                raise ValueError(
                    f"attention_mask has shape {tuple(mask.shape)}; expected [{batch}, "
                    f"{past_length + length}], for all past and new tokens"
                )
            new = mask[:, -length:].bool()
        if isinstance(self.count, int) and (new is None or bool(new.all())):
            before = torch.full((batch,), self.count, device=device)
            after = before + length
            time = (self.count + column).expand(batch, length)
            self.count += length
            padded = False
        else:
            before = torch.as_tensor(self.count, device=device).expand(batch)
            new = torch.ones(batch, length, dtype=torch.bool, device=device) if new is None else new
            token_counts = new.cumsum(dim=1)
            # Left padding gets the times ..., -2, -1, so that times stay consecutive integers.
            ahead = (before[:, None] + token_counts == 0).sum(dim=1, keepdim=True)
            time = torch.where(column < ahead, column - ahead, before[:, None] + token_counts - 1)
            time = time.masked_fill(~new & (column >= ahead), -1)
            self.count = after = before + token_counts[:, -1]
            padded = True
        positions = (past_length + column if self.position_ids is None else self.position_ids).expand(
            batch, length
        )
        self._step = Step(time, positions, past_length, before, after, padded, None)
        self._layer_stats = []
        return self._step

    def allocate(self, index: int, length: int) -> None:
        """Set the token budgets of layers 0 to `index`; layer `index` has just processed `length` tokens.

        Raises:
            ValueError: If the policy returns a wrong number of budgets or an invalid budget.
        """
        if length == 1 or not self.policy.allocates:
            return
        layers = [layer for layer in self._policy_layers if layer.index <= index]
        self._layer_stats.append(layers[-1].memory.measure())
        budgets = self.policy.allocate(tuple(self._layer_stats), self.shape())
        if budgets is None:
            layers[-1].memory.settle()
        elif len(budgets) != len(layers):
            raise ValueError(
                f"{type(self.policy).__name__}.allocate returned {len(budgets)} budgets; return one for each "
                f"of the {len(layers)} layers that have read the prompt"
            )
        else:
            for layer, budget in zip(layers, budgets, strict=True):
                layer.shrink(int(budget))
        if len(layers) == len(self._policy_layers):
            for layer in layers:
                layer.memory.settle()

    def get_retained_tokens(self) -> dict[int, RetainedTokens]:
        """Return, by layer index, the retained tokens and the tokens that the last token attended to.

        Raises:
            ValueError: If `track_tokens` is False, or if the cache has read no token.
        """
        if not self.track_tokens:
            raise ValueError(
                "this cache does not track tokens; build it with PolicyCache(policy, model, "
                "track_tokens=True)"
            )
        return {
            layer.index: layer.get_retained_tokens(self._count_tensor()) for layer in self.attention_layers
        }

    @property
    def dropped_tokens(self) -> int:
        """Number of tokens of the text that the policy has dropped and that no later token can read.

        Layers, heads and batch rows may drop different numbers; this is the largest. Tokens outside the
        model's own windows do not count.
        """
        if not (self.policy.drops and self.get_seq_length()):
            return 0
        count = self._count_tensor()
        differences = (count - layer.memory.count_retained(count) for layer in self._policy_layers)
        return max((int(difference.max()) for difference in differences), default=0)

    def warn_of_dropped_tokens(self) -> None:
        """Log a warning if tokens were dropped, once in a process for each policy and budget."""
        if self.dropped_tokens:
            warn_of_dropped_tokens(repr(self.policy))

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes of all tensors of the cache in the memory of the model's device.

        If `place` is "cpu" or "disk", return the bytes offloaded to this place instead. Tensors in main
        memory are not offloaded if the model is also there.
        """
        count = self.count.nbytes if isinstance(self.count, Tensor) and place is None else 0
        return sum(layer.nbytes(place) for layer in self.layers) + count

    @property
    def attention_layers(self) -> list[PolicyLayer]:
        """Layers with keys and values, in order."""
        return [layer for layer in self.layers if isinstance(layer, PolicyLayer)]

    @property
    def _policy_layers(self) -> list[PolicyLayer]:
        return [layer for layer in self.attention_layers if layer.sees_everything]

    def shape(self) -> CacheShape:
        """Return the `CacheShape` of the layers that the policy manages, for `policy.nbytes`.

        Raises:
            ValueError: Before the first token.
        """
        for layer in self._policy_layers or self.attention_layers:
            if layer.shape is not None:
                return dataclasses.replace(layer.shape, layers=len(self._policy_layers))
        raise ValueError("the cache has read no token yet; call the model with this cache first")

    def reset(self) -> None:
        """Clear the cache."""
        self.count, self._step, self.call_started = 0, None, False
        super().reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens of every text: as in transformers, `crop(-3)` removes three tokens.

        Raises:
            ValueError: On a positive number, if the policy has evicted tokens that the shorter text needs, or
                if the model has recurrent or convolutional states.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}): must not be positive; crop(-n) removes the last n tokens"
            )
        if tokens_to_remove < -self.get_seq_length():
            raise ValueError(f"crop({tokens_to_remove}): the text has only {self.get_seq_length()} tokens")
        if tokens_to_remove == 0:
            return
        if any(isinstance(layer, StateLayer) for layer in self.layers):
            raise ValueError(
                f"crop({tokens_to_remove}): the model has recurrent or convolutional states, from which no "
                "token can be removed; save the cache before you add tokens, and load it instead of cropping"
            )
        count, layers = self._count_tensor(), self.attention_layers
        # Layers that may raise are cropped on a copy, so that either all layers are cropped or none.
        copies = [copy.copy(layer.memory) if not layer.policy.can_crop else None for layer in layers]
        for memory in filter(None, copies):
            memory.state = dict(memory.state)
            memory.crop(-tokens_to_remove, count)
        for layer, memory in zip(layers, copies, strict=True):
            if memory is None:
                layer.memory.crop(-tokens_to_remove, count)
            else:
                layer.memory = memory
            layer.past_length += tokens_to_remove
        # A row may have fewer tokens, with padding before them.
        remaining = self.count + tokens_to_remove
        self.count = remaining if isinstance(remaining, int) else remaining.clamp(min=0)
        self._step = None

    def reorder_cache(self, beam_idx: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `beam_idx`, in this order."""
        if not isinstance(self.count, int):
            self.count = self.count.index_select(0, beam_idx.to(self.count.device))
        for layer in self.layers:
            layer.reorder_cache(beam_idx)  # pyright: ignore[reportArgumentType]
        self._step = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select the batch rows with these `indices`, in this order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row `repeats` times."""
        self.reorder_cache(torch.arange(self.shape().batch).repeat_interleave(repeats))

    @property
    def batch_size(self) -> int:
        """Batch size; -1 before the first token."""
        return self.shape().batch if self.get_seq_length() else -1

    @property
    def is_croppable(self) -> bool:
        """True if `crop` restores the exact earlier state, as assisted decoding needs."""
        return (
            not self.policy.allocates
            and not any(isinstance(layer, StateLayer) for layer in self.layers)
            and all(layer.policy.can_crop and layer.policy.split_invariant for layer in self.attention_layers)
        )

    @property
    def is_compileable(self) -> bool:
        """Return False: transformers can compile only caches of fixed size."""
        return False

    def activate_past_recording(self, recurrent_states_to_keep: int | None = None) -> None:
        """Check that the cache supports assisted decoding, before transformers starts to decode.

        `recurrent_states_to_keep` has no effect: a cache with recurrent states does not support it.

        Raises:
            ValueError: If assisted decoding would change the generated text.
        """
        if not self.is_croppable:
            name = type(self.policy).__name__
            reason = f"{name} does not support this; generate without an assistant, or use FullPolicy"
            policies = [layer.policy for layer in self._policy_layers]
            if not self.policy.allocates and all(
                policy.can_crop and policy.split_invariant for policy in policies
            ):
                reason = "the model's own state or window layers do not support this; omit the assistant"
            raise ValueError(
                "assisted decoding requires a cache that can be cropped to its exact state before a draft, "
                f"but {reason}"
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the cache to one safetensors file, with the policy's name and fields."""
        metadata = {
            "policy": name_of(self.policy.file_policy),
            "fields": _to_fields(self.policy.file_policy),
            "seen": self.get_seq_length(),
            "layers": len(self.layers),
            "shape": dataclasses.asdict(self.shape()) if self.get_seq_length() else None,
        }
        if self.track_tokens:
            metadata["marked"] = True
        write_cache_file(path, self.layers, self.count, metadata)

    @classmethod
    def load(cls, path: str | PathLike[str], policy: ContextPolicy, model: PreTrainedModel) -> Self:
        """Load a cache that `save` wrote; generation continues exactly where the saved cache stopped.

        Args:
            path: File that `save` wrote.
            policy: Policy of the saved cache.
            model: Model of the saved cache.

        Raises:
            ValueError: If the file is damaged, or if the cache was saved with another policy or from a model
                with other sizes or another precision.
        """
        cache = cls(policy, model)
        expected = {
            "policy": name_of(cache.policy.file_policy),
            "fields": _to_fields(cache.policy.file_policy),
            "layers": len(cache.layers),
        }
        content = read_cache_file(path, expected, len(cache.layers), model.device)
        if content.shape is not None:
            layers = cache._policy_layers or cache.attention_layers
            check_shape(
                content.shape, cache._config, find_rotation(model).sizes[layers[0].index], model, path
            )
        cache.track_tokens, cache.count = content.has_marks, content.count
        try:
            for layer, budget, state in zip(cache.layers, content.budgets, content.states, strict=True):
                load_layer(layer, budget, state, content, model)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged or is not a saved cache: {error}") from error
        return cache

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return an independent copy for the same model, for example for several questions about one text."""
        for shared in (self._config, self.policy, *self.rotaries, *(x.policy for x in self.attention_layers)):
            memo[id(shared)] = shared
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        for name, value in vars(self).items():
            setattr(clone, name, None if name == "_step" else copy.deepcopy(value, memo))
        return clone

    def _count_tensor(self) -> Int[Tensor, " batch"]:
        return torch.as_tensor(self.count).expand(self.shape().batch)


def _to_fields(policy: Any) -> dict[str, Any]:
    # As in a file, where tuples are lists.
    return json.loads(json.dumps(dataclasses.asdict(policy)))
