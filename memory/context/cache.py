"""A policy's cache for transformers: `model.generate(**inputs, cache=PolicyCache(policy, model))`."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Cache, PreTrainedModel

from scrubjay.memory.context.attention import ATTENTION, hand_over
from scrubjay.memory.context.layers.falcon import serve_falcon
from scrubjay.memory.context.layers.kinds import Kind, kinds_of
from scrubjay.memory.context.layers.nothing import NothingLayer
from scrubjay.memory.context.layers.own import OwnWindow
from scrubjay.memory.context.layers.policy import PolicyLayer
from scrubjay.memory.context.layers.state import StateAndPolicyLayer, StateLayer
from scrubjay.memory.context.layers.turned import decoder_of, has_rotary, takes_positions, turns_of
from scrubjay.memory.context.parts.marks import LayerKept
from scrubjay.memory.context.parts.rotary import Rotary
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerStats, Step
from scrubjay.memory.context.registry import name_of
from scrubjay.memory.context.switch import attend_by_policy

BROKEN_OFF = (
    "an earlier call with this cache was broken off, by Ctrl-C or an error, when some layers had read its "
    "tokens "
    "and others had not; reset the cache and read again, or load a saved one"
)


ONE_BY_ONE = {"jamba", "zamba"}
"""Models whose states start anew with every call of several tokens, with transformers' own cache, too."""


class PolicyCache(Cache):
    """The memories of all layers of one model under one policy, for one batch of texts.

    Layers in which the model attends to everything are the policy's. Those that see a window or a chunk keep
    what they see, and what else a layer has for a state is the model's own.

    While the model reads into it, it attends by this package's function, else as ever. Padding, on the left
    of a prompt, is told by `attention_mask`. What has been seen can be generated from again and again.
    Assisted decoding is refused unless `is_croppable`. One that is `marked` tells what it keeps, and holds
    four numbers more of each value.

    Raises TypeError on what is no policy or no model, ValueError on a model that the policy cannot serve and
    on a call of other rows than before, RuntimeError when read into after a call that
    was broken off.
    """

    layers: list[PolicyLayer | StateLayer | NothingLayer]

    def __init__(self, policy: ContextPolicy, model: PreTrainedModel, marked: bool = False) -> None:
        if not isinstance(policy, ContextPolicy):
            raise TypeError(f"policy={policy!r}: pass a policy, such as make('sinks', budget=1024)")
        if isinstance(model, type) or not hasattr(model, "config"):
            raise TypeError(f"model={model!r}: pass a loaded model of transformers")
        config = model.config.get_text_config(decoder=True)
        kinds = kinds_of(config)
        decoder = decoder_of(model)
        if not model._can_set_attn_implementation() and not serve_falcon(decoder):
            raise ValueError(
                f"{type(model).__name__} does not take attention functions of transformers' "
                "AttentionInterface, by which policies attend; use a model that does"
            )
        # It must not have changed when the cache is read into.
        self.attends_elsewhere = attend_by_policy(decoder)
        self.policy, self._config, self.marked = policy, config, marked
        policies = [_policy_of(policy, kind, index, len(kinds)) for index, kind in enumerate(kinds)]
        self.rotaries = _rotaries(model, policies)
        # Bamba would count from 0 in every call, and turn tokens to other places than they stand at.
        self.places = has_rotary(decoder) and takes_positions(decoder)
        # Tokens of every row, one tensor as soon as rows differ by their padding.
        self.count: int | Int[Tensor, " batch"] = 0
        # Of the present call of the model: where it put its tokens, and whether a layer has read them.
        self.position_ids: Tensor | None = None
        self.touched = False
        self._step: Step | None = None
        # Layers whose keys the present call has brought.
        self._updated: set[int] = set()
        # Of the layers that have read the present call.
        self._measured: list[LayerStats] = []
        super().__init__(layers=[self._layer(index, kinds[index], policies) for index in range(len(kinds))])

    def _layer(
        self, index: int, kind: Kind, policies: Sequence[ContextPolicy | None]
    ) -> PolicyLayer | StateLayer | NothingLayer:
        policy = policies[index]
        if policy is None:
            return StateLayer(self, kind.states) if kind.states else NothingLayer()
        ways = list(zip(policies, map(id, self.rotaries), strict=True))
        alike = ways.index(ways[index])
        if kind.states:
            return StateAndPolicyLayer(self, index, policy, alike, kind.states)
        return PolicyLayer(self, index, policy, alike)

    def begin_call(self, position_ids: Tensor | None, length: int) -> None:
        """Get ready for a call of the model with so many tokens, which it turns to these positions.

        None stands for the order of columns. Raises RuntimeError if an earlier call was broken off half-way,
        ValueError on several tokens after others where the model's states are wrong of them.
        """
        if self.touched:
            raise RuntimeError(BROKEN_OFF)
        if length > 1 and self._config.model_type in ONE_BY_ONE and self.get_seq_length():
            raise ValueError(
                f"{self._config.model_type} forgets its states where several tokens follow others, with its "
                "own cache, too: read a text in one call, and what follows one by one (`call_length` says "
                "how many tokens a call may have)"
            )
        self.position_ids = position_ids
        self._updated.clear()

    def call_length(self, length: int, block: int) -> int:
        """Return how many of the next `length` tokens to read in one call, where blocks of `block` would do.

        It is all of them under a policy that chooses at the end of a prompt. Some models need all in the
        first call, and one token in each call after it.
        """
        if self._config.model_type in ONE_BY_ONE:
            return 1 if self.get_seq_length() else max(length, 1)
        return self.policy.call_length(length, block)

    def end_call(self) -> None:
        """Note that all layers have read what the call brought."""
        self.touched = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand the layer to the attention function that is called next, which does the rest."""
        if self._config._attn_implementation != ATTENTION:
            raise RuntimeError(
                f"the model attends by {self._config._attn_implementation!r} and does not call the policy; "
                "build "
                "the cache for this model, after any set_attn_implementation"
            )
        if layer_idx in self._updated:
            raise ValueError(
                f"the model reads layer {layer_idx} twice in one call, as looped models do, and a policy "
                "would take the second reading for new tokens: use the model's own cache"
            )
        self._updated.add(layer_idx)
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if isinstance(layer, PolicyLayer):
            hand_over(layer)
            return key_states, value_states
        raise ValueError(
            f"the model attends in layer {layer_idx}, of which its config says no such thing: use the "
            "model's own cache"
        )

    def step(self, keys: Tensor, seen: int, mask: Tensor | None) -> Step:
        """Return the new tokens of this call, the same object for every layer."""
        batch, _, length, _ = keys.shape
        if self._step is not None and self._step.seen == seen and self._step.length == length:
            return self._step
        if seen and batch != (held := self.shape().batch):
            raise ValueError(
                f"the call has {batch} rows, the cache {held}; begin a new cache, or reset this one"
            )
        device = keys.device
        column = torch.arange(length, device=device)
        new = None
        if mask is not None:
            if mask.ndim != 2 or mask.shape != (batch, seen + length):
                raise ValueError(
                    f"attention_mask has shape {tuple(mask.shape)}; expected [{batch}, {seen + length}]: all "
                    "tokens seen so far and the new ones"
                )
            new = mask[:, -length:].bool()
        if isinstance(self.count, int) and (new is None or bool(new.all())):
            before, after = (
                torch.full((batch,), count, device=device) for count in (self.count, self.count + length)
            )
            time = (self.count + column).expand(batch, length)
            self.count += length
            padded = False
        else:
            before = torch.as_tensor(self.count, device=device).expand(batch)
            new = torch.ones(batch, length, dtype=torch.bool, device=device) if new is None else new
            counted = new.cumsum(dim=1)
            # Ahead of a row's first token time runs on backwards, which keeps it a run of integers.
            ahead = (before[:, None] + counted == 0).sum(dim=1, keepdim=True)
            time = torch.where(column < ahead, column - ahead, before[:, None] + counted - 1)
            time = time.masked_fill(~new & (column >= ahead), -1)
            self.count = after = before + counted[:, -1]
            padded = True
        given = (seen + column if self.position_ids is None else self.position_ids).expand(batch, length)
        self._step = Step(time, given, seen, before, after, padded, None)
        self._measured = []
        return self._step

    def allocate(self, index: int, length: int) -> None:
        """Give layers up to `index`, which has read `length` tokens, the budgets that the policy sets by now.

        Raises ValueError if it sets more of them or fewer, or some that a layer cannot have.
        """
        if length == 1 or not self.policy.allocates:
            return
        layers = [layer for layer in self._under_policy if layer.index <= index]
        self._measured.append(layers[-1].memory.measured())
        budgets = self.policy.allocate(tuple(self._measured), self.shape())
        if budgets is None:
            layers[-1].memory.settle()
        elif len(budgets) != len(layers):
            raise ValueError(
                f"{type(self.policy).__name__}.allocate returned {len(budgets)} budgets; return one for each "
                f"of the {len(layers)} layers seen"
            )
        else:
            for layer, budget in zip(layers, budgets, strict=True):
                layer.shrink(int(budget))
        if len(layers) == len(self._under_policy):
            for layer in layers:
                layer.memory.settle()

    def kept(self) -> dict[int, LayerKept]:
        """Return by layer what it keeps of the text, and what of it the last token read.

        Raises ValueError if the cache is not `marked`, and before the first token.
        """
        if not self.marked:
            raise ValueError(
                "a cache without marks; PolicyCache(policy, model, marked=True) tells what it keeps"
            )
        return {layer.index: layer.kept(self._count_tensor()) for layer in self.attending}

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes of keys, values and what goes with them.

        Those offloaded to `place`, "cpu" or "disk".
        """
        return sum(layer.nbytes(place) for layer in self.layers)

    @property
    def attending(self) -> list[PolicyLayer]:
        """Layers that have keys and values, the first first."""
        return [layer for layer in self.layers if isinstance(layer, PolicyLayer)]

    @property
    def _under_policy(self) -> list[PolicyLayer]:
        return [layer for layer in self.attending if layer.sees_everything]

    def shape(self) -> CacheShape:
        """Return the sizes by which `policy.nbytes` reckons, of the layers under the policy.

        Raises ValueError before the first token.
        """
        for layer in self._under_policy or self.attending:
            if layer.shape is not None:
                return dataclasses.replace(layer.shape, layers=len(self._under_policy))
        raise ValueError("the cache has seen no token yet, and no batch size")

    def reset(self) -> None:
        """Forget everything."""
        self.count, self._step, self.touched = 0, None, False
        super().reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of every row, as transformers has it: `crop(-3)` forgets three.

        Raises ValueError on a positive number, and where the policy has already dropped what it would need.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}): give the number of tokens to forget as a negative number"
            )
        if tokens_to_remove < -self.get_seq_length():
            raise ValueError(f"crop({tokens_to_remove}): the cache has seen {self.get_seq_length()} tokens")
        if tokens_to_remove == 0:
            return
        if any(isinstance(layer, StateLayer) for layer in self.layers):
            raise ValueError(
                f"crop({tokens_to_remove}): the model has layers with states of their own, of which no token "
                "can be taken back; save the cache before you try something, and load it"
            )
        count, layers = self._count_tensor(), self.attending
        # What may refuse is cropped aside, so that the cache is cropped whole or not at all.
        aside = [copy.copy(layer.memory) if not layer.policy.can_crop else None for layer in layers]
        for memory in filter(None, aside):
            memory.state = dict(memory.state)
            memory.crop(-tokens_to_remove, count)
        for layer, memory in zip(layers, aside, strict=True):
            if memory is None:
                layer.memory.crop(-tokens_to_remove, count)
            else:
                layer.memory = memory
            layer.seen += tokens_to_remove
        # A row may have had fewer tokens, and padding before them.
        self.count = (
            self.count + tokens_to_remove
            if isinstance(self.count, int)
            else (self.count + tokens_to_remove).clamp(min=0)
        )
        self._step = None

    def reorder_cache(self, beam_idx: Int[Tensor, " chosen"]) -> None:
        """Keep the given rows, in their order."""
        if not isinstance(self.count, int):
            self.count = self.count.index_select(0, beam_idx.to(self.count.device))
        for layer in self.layers:
            layer.reorder_cache(beam_idx)  # pyright: ignore[reportArgumentType]
        self._step = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows, in their order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.reorder_cache(torch.arange(self.shape().batch).repeat_interleave(repeats))

    @property
    def batch_size(self) -> int:
        """Rows, -1 before the first token."""
        return self.shape().batch if self.get_seq_length() else -1

    @property
    def is_croppable(self) -> bool:
        """Whether tokens may be read ahead, several in a call, and taken back by `crop` without a trace."""
        return (
            not self.policy.allocates
            and not any(isinstance(layer, StateLayer) for layer in self.layers)
            and all(layer.policy.can_crop and layer.policy.any_cut for layer in self.attending)
        )

    @property
    def is_compileable(self) -> bool:
        """Return False: what is kept has no fixed size, and masks are none of queries by keys."""
        return False

    def activate_past_recording(self) -> None:
        """Get ready for assisted decoding, which transformers announces so: nothing to do.

        Raises ValueError where it would change the text.
        """
        if not self.is_croppable:
            name = type(self.policy).__name__
            reason = f"under {name} the text would change; leave the assistant out, or use FullPolicy"
            under = [layer.policy for layer in self._under_policy]
            if not self.policy.allocates and all(policy.can_crop and policy.any_cut for policy in under):
                reason = "layers of the model's own making cannot be; leave the assistant out"
            raise ValueError(
                "assisted decoding requires a cache that can be cropped after a draft as if it had never "
                f"been read, and {reason}"
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything that is kept to one safetensors file, with the policy's name and sizes."""
        tensors = {
            f"{index}.{name}": tensor.detach().contiguous()
            for index, layer in enumerate(self.layers)
            for name, tensor in layer.saved().items()
        }
        if not isinstance(self.count, int):
            tensors["count"] = self.count
        about = {
            "policy": name_of(self.policy),
            "fields": dataclasses.asdict(self.policy),  # pyright: ignore[reportArgumentType]
            "seen": self.get_seq_length(),
            "layers": len(self.layers),
            "shape": dataclasses.asdict(self.shape()) if self.get_seq_length() else None,
        }
        if self.marked:
            about["marked"] = True
        budgets = [getattr(layer, "budget", None) for layer in self.layers]
        if any(budget is not None for budget in budgets):
            about["budgets"] = budgets
        save_file(tensors, path, metadata={"scrubjay": json.dumps(about)})

    @classmethod
    def load(cls, path: str | PathLike[str], policy: ContextPolicy, model: PreTrainedModel) -> Self:
        """Return the cache that `save` wrote, to go on as if it had not been away.

        Raises ValueError on a file that is damaged, of another policy, or of a model of other sizes or
        precision.
        """
        cache = cls(policy, model)
        ours = {
            "policy": name_of(policy),
            "fields": dataclasses.asdict(policy),  # pyright: ignore[reportArgumentType]
            "layers": len(cache.layers),
        }
        saved: list[dict[str, Tensor]] = [{} for _ in cache.layers]
        try:
            with safe_open(path, framework="pt", device=str(model.device)) as file:
                about = json.loads((file.metadata() or {}).get("scrubjay", "{}"))
                for name, value in ours.items():
                    if about.get(name) != value:
                        raise ValueError(f"{path} was saved with {name} {about.get(name)}, not {value}")
                cache._check_shape(about["shape"], model, path)
                cache.marked = about.get("marked") is True
                names = set(file.keys())
                for name in names - {"count"}:
                    index, _, part = name.partition(".")
                    saved[int(index)][part] = file.get_tensor(name)
                cache.count = file.get_tensor("count") if "count" in names else about["seen"]
        except (AttributeError, LookupError, RecursionError, SafetensorError) as error:
            raise ValueError(f"{path} is damaged, or no saved cache: {error}") from error
        budgets = about.get("budgets", [None] * len(cache.layers))
        for layer, tensors, budget in zip(cache.layers, saved, budgets, strict=True):
            if budget is not None and isinstance(layer, PolicyLayer):
                layer.shrink(budget)
            layer.restore(tensors)
            if isinstance(layer, PolicyLayer):
                layer.seen = about["seen"]
                layer.shape = CacheShape(**about["shape"]) if about["shape"] else None
        return cache

    def _check_shape(
        self, shape: dict[str, int] | None, model: PreTrainedModel, path: str | PathLike[str]
    ) -> None:
        if shape is None:
            return
        key_heads, key_width = turns_of(model).sizes[(self._under_policy or self.attending)[0].index]
        ours = {
            "heads": self._config.num_attention_heads,
            "key_heads": key_heads,
            "key_width": key_width,
            "itemsize": model.dtype.itemsize,
        }
        for name, value in ours.items():
            if shape[name] != value:
                raise ValueError(f"{path} is of a model with {name}={shape[name]}, not {value}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a cache of the same model that goes its own way, as for several questions about one text."""
        own = (layer.policy for layer in self.attending)
        for shared in (self._config, self.policy, *self.rotaries, *own):
            memo[id(shared)] = shared
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in vars(self).items():
            setattr(twin, name, None if name == "_step" else copy.deepcopy(value, memo))
        return twin

    def _count_tensor(self) -> Int[Tensor, " batch"]:
        return torch.as_tensor(self.count).expand(self.shape().batch)


def _policy_of(policy: ContextPolicy, kind: Kind, index: int, count: int) -> ContextPolicy | None:
    if not kind.attends:
        return None
    return policy.for_layer(index, count) if kind.window is None else OwnWindow(kind.window, kind.chunked)


def _rotaries(model: PreTrainedModel, policies: Sequence[ContextPolicy | None]) -> list[Rotary | None]:
    """Return how each layer under a policy that moves positions turns its keys.

    Raises ValueError on a model that turns them in a way that is not known.
    """
    moved = [policy is not None and policy.moves_positions for policy in policies]
    if not any(moved):
        return [None] * len(policies)
    turns = turns_of(model)
    if turns.changing is not None:
        raise ValueError(
            f"{type(model).__name__} has rope_type={turns.changing!r}, whose angles change with the length "
            "of the text; use the policy 'full'"
        )
    unknown = any(moves and rotary is None for moves, rotary in zip(moved, turns.by_layer, strict=True))
    if unknown and not turns.kinds:
        raise ValueError(
            f"{type(model).__name__} has no rotary positions of a known kind; use the policy 'full'"
        )
    for layer, (moves, rotary) in enumerate(zip(moved, turns.by_layer, strict=True)):
        if moves and rotary is None:
            raise ValueError(
                f"{type(model).__name__} turns keys or queries of layer {layer} in a way that is none of the "
                "known ones; use the policy 'full'"
            )
    return [rotary if moves else None for moves, rotary in zip(moved, turns.by_layer, strict=True)]
