"""A policy's cache for transformers: `model.generate(**inputs, cache=PolicyCache(policy, model))`."""

from __future__ import annotations

import copy
import dataclasses
import json
from os import PathLike
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from scrubjay.memory.context.attention import ATTENTION, KEYWORD, register_attention
from scrubjay.memory.context.parts.rotary import Rotary
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerStats, Step
from scrubjay.memory.context.registry import name_of
from scrubjay.memory.context.switch import attend_by_policy

BROKEN_OFF = (
    "an earlier call with this cache was broken off, by Ctrl-C or an error, when some layers had read its "
    "tokens "
    "and others had not; reset the cache and read again, or load a saved one"
)


class PolicyCache(Cache):
    """The memories of all layers of one model under one policy, for one batch of texts.

    While the model reads into it, it attends by this package's function, else as ever. Padding, on the left
    of a prompt, is told by `attention_mask`. What has been seen can be generated from again and again.
    Assisted decoding is refused unless `is_croppable`.

    Raises ValueError on a model that the policy cannot serve, RuntimeError when read into after a call that
    was broken off.
    """

    layers: list[PolicyLayer]

    def __init__(self, policy: ContextPolicy, model: PreTrainedModel) -> None:
        config = model.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
            raise ValueError(
                f"{type(model).__name__} has layers of {', '.join(sorted(kinds))} (sliding_window="
                f"{getattr(config, 'sliding_window', None)}); a policy serves models that attend to "
                "everything"
            )
        if not model._can_set_attn_implementation():
            raise ValueError(
                f"{type(model).__name__} does not take attention functions of transformers' "
                "AttentionInterface, by which policies attend; use a model that does"
            )
        register_attention()
        # It must not have changed when the cache is read into.
        self.attends_elsewhere = attend_by_policy(model.get_decoder())
        self.policy, self._config = policy, config
        count = config.num_hidden_layers
        policies = [policy.for_layer(index, count) for index in range(count)]
        self.rotary = Rotary(model) if any(own.moves_positions for own in policies) else None
        # Tokens of every row, one tensor as soon as rows differ by their padding.
        self.count: int | Int[Tensor, " batch"] = 0
        self._step: Step | None = None
        # Of the layers that have read the present call.
        self._measured: list[LayerStats] = []
        super().__init__(
            layers=[PolicyLayer(self, index, own, policies.index(own)) for index, own in enumerate(policies)]
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand the layer to the attention function that is called next, which does the rest."""
        attention = options.get("kwargs")
        if attention is None or self._config._attn_implementation != ATTENTION:
            raise RuntimeError(
                f"the model attends by {self._config._attn_implementation!r} and does not call the policy; "
                "build "
                "the cache for this model, after any set_attn_implementation"
            )
        attention[KEYWORD] = self.layers[layer_idx]
        return key_states, value_states

    def step(self, keys: Tensor, seen: int, mask: Tensor | None, position_ids: Tensor | None) -> Step:
        """Return the new tokens of this call, the same object for every layer."""
        batch, _, length, _ = keys.shape
        if self._step is not None and self._step.seen == seen and self._step.length == length:
            return self._step
        if any(layer.seen != seen for layer in self.layers):
            raise RuntimeError(BROKEN_OFF)
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
        given = (seen + column if position_ids is None else position_ids).expand(batch, length)
        self._step = Step(time, given, seen, before, after, padded, self.rotary)
        self._measured = []
        return self._step

    def allocate(self, index: int, length: int) -> None:
        """Give layers up to `index`, which has read `length` tokens, the budgets that the policy sets by now.

        Raises ValueError if it sets more of them or fewer, or some that a layer cannot have.
        """
        if length == 1 or not self.policy.allocates:
            return
        layers = self.layers[: index + 1]
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
        if len(layers) == len(self.layers):
            for layer in layers:
                layer.memory.settle()

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes of keys, values and what goes with them.

        Those offloaded to `place`, "cpu" or "disk".
        """
        return sum(layer.memory.nbytes(place) for layer in self.layers)

    def shape(self) -> CacheShape:
        """Return the sizes by which `policy.nbytes` reckons. Raises ValueError before the first token."""
        for layer in self.layers:
            if layer.shape is not None:
                return layer.shape
        raise ValueError("the cache has seen no token yet, and no batch size")

    def reset(self) -> None:
        """Forget everything."""
        self.count, self._step = 0, None
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
        count = self._count_tensor()
        # What may refuse is cropped aside, so that the cache is cropped whole or not at all.
        aside = [copy.copy(layer.memory) if not layer.policy.can_crop else None for layer in self.layers]
        for memory in filter(None, aside):
            memory.state = dict(memory.state)
            memory.crop(-tokens_to_remove, count)
        for layer, memory in zip(self.layers, aside, strict=True):
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
            layer.reorder_cache(beam_idx)
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
        return not self.policy.allocates and all(
            layer.policy.can_crop and layer.policy.any_cut for layer in self.layers
        )

    def activate_past_recording(self) -> None:
        """Get ready for assisted decoding, which transformers announces so: nothing to do.

        Raises ValueError where it would change the text.
        """
        if not self.is_croppable:
            raise ValueError(
                "assisted decoding requires a cache that can be cropped after a draft as if it had never "
                f"been read, and under {type(self.policy).__name__} the text would change; leave the "
                "assistant out, or use FullPolicy"
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything that is kept to one safetensors file, with the policy's name and sizes."""
        tensors = {
            f"{index}.{name}": tensor.detach().contiguous()
            for index, layer in enumerate(self.layers)
            for name, tensor in layer.memory.saved().items()
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
        if any(layer.budget is not None for layer in self.layers):
            about["budgets"] = [layer.budget for layer in self.layers]
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
                names = set(file.keys())
                for name in names - {"count"}:
                    index, _, part = name.partition(".")
                    saved[int(index)][part] = file.get_tensor(name)
                cache.count = file.get_tensor("count") if "count" in names else about["seen"]
        except (AttributeError, LookupError, RecursionError, SafetensorError) as error:
            raise ValueError(f"{path} is damaged, or no saved cache: {error}") from error
        budgets = about.get("budgets", [None] * len(cache.layers))
        for layer, tensors, budget in zip(cache.layers, saved, budgets, strict=True):
            if budget is not None:
                layer.shrink(budget)
            layer.memory.restore(tensors)
            layer.seen = about["seen"]
            layer.shape = CacheShape(**about["shape"]) if about["shape"] else None
        return cache

    def _check_shape(
        self, shape: dict[str, int] | None, model: PreTrainedModel, path: str | PathLike[str]
    ) -> None:
        if shape is None:
            return
        heads = self._config.num_attention_heads
        ours = {
            "heads": heads,
            "key_heads": getattr(self._config, "num_key_value_heads", None) or heads,
            "key_width": getattr(self._config, "head_dim", None) or self._config.hidden_size // heads,
            "itemsize": model.dtype.itemsize,
        }
        for name, value in ours.items():
            if shape[name] != value:
                raise ValueError(f"{path} is of a model with {name}={shape[name]}, not {value}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a cache of the same model that goes its own way, as for several questions about one text."""
        for shared in (self._config, self.rotary, self.policy, *(layer.policy for layer in self.layers)):
            memo[id(shared)] = shared
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in vars(self).items():
            setattr(twin, name, None if name == "_step" else copy.deepcopy(value, memo))
        return twin

    def _count_tensor(self) -> Int[Tensor, " batch"]:
        return torch.as_tensor(self.count).expand(self.shape().batch)


class PolicyLayer(CacheLayerMixin):
    """One layer's memory under its own policy, as transformers sees it: it counts tokens seen, and attends.

    `alike` is the first layer under an equal policy.
    """

    def __init__(self, cache: PolicyCache, index: int, policy: ContextPolicy, alike: int) -> None:
        super().__init__()
        self.policy = policy
        self._cache, self._index, self._alike = cache, index, alike
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.memory = self.policy.build()
        # What `allocate` has set; None for what the policy is configured to.
        self.budget: int | None = None
        self.seen = 0
        self._attending = False
        self.shape: CacheShape | None = None

    def attend(
        self,
        query: Float[Tensor, "batch heads length width"],
        keys: Float[Tensor, "batch key_heads length width"],
        values: Float[Tensor, "batch key_heads length value_width"],
        mask: Tensor | None,
        position_ids: Tensor | None,
        scale: float,
    ) -> Float[Tensor, "batch heads length value_width"]:
        """Return what the new tokens read, and keep what the policy keeps of them.

        Args:
            query: Of the new tokens, as the model turned them.
            keys: Theirs.
            values: Theirs.
            mask: The tokenizer's padding mask, "batch columns"; None without padding.
            position_ids: What the model turned queries and keys by; None for the order of columns.
            scale: Of the scores.

        Raises:
            RuntimeError: if an earlier call was broken off half-way.
        """
        if self._attending:
            raise RuntimeError(BROKEN_OFF)
        # A layer with a budget of its own may hold other tokens than any other.
        policy = (self._alike,) if self.budget is None else (self._index, self.budget)
        step = self._cache.step(keys, self.seen, mask, position_ids).under(policy)
        self._attending = True
        out = self.memory.attend(query, keys, values, step, scale)
        self.seen += step.length
        if self.shape is None:
            batch, heads, _, width = keys.shape
            self.shape = CacheShape(
                len(self._cache.layers),
                batch,
                query.shape[1],
                heads,
                width,
                values.shape[-1],
                keys.element_size(),
            )
        self._cache.allocate(self._index, step.length)
        self._attending = False
        return out

    def shrink(self, budget: int) -> None:
        """Keep `budget` tokens from now on, of the prompt just read as well."""
        self.memory.shrink(budget)
        self.budget = budget

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: a memory allocates as it sees tokens."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the new tokens as they are; `PolicyCache.update` says who reads them."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns a padding mask has, and that it has them from the first on."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Return the columns seen, kept or not, padding included."""
        return self.seen

    def get_max_length(self) -> int:
        """Return -1: there is no text too long."""
        return -1

    def reorder_cache(self, beam_idx: Int[Tensor, " chosen"]) -> None:
        """Keep the given rows, in their order."""
        self.memory.reorder(beam_idx)
        if self.shape is not None:
            self.shape = dataclasses.replace(self.shape, batch=len(beam_idx))
