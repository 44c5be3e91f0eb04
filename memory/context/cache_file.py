"""File of a saved cache: safetensors with the tensors of all layers. Its content must fit model and policy.

A file may be from someone else. A wrong size would otherwise be an error of torch in the middle of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.memory.context.foreign.weights import check_density
from scrubjay.memory.context.layers.policy import MARKS, PolicyLayer
from scrubjay.memory.context.layers.rotation import find_rotation
from scrubjay.memory.context.policies.base import CacheShape

_MAX_TOKENS = 2**53
_MAX_SIZE = 2**31
_DIMENSIONS: Mapping[str, str] = {
    "keys": "batch key_heads columns key_width",
    "values": "batch key_heads columns value_width",
    "valid": "batch columns",
    "time": "batch columns",
    "sums": "batch key_heads columns",
    "queries": "batch heads queries key_width",
    "flat_keys": "flat key_width",
    "flat_values": "flat value_width",
    "lengths": "batch key_heads",
    "limits": "batch key_heads",
    "scores": "flat",
    "ids": "batch unscored",
    "copied_keys": "batch key_heads copies key_width",
    "copied_values": "batch key_heads copies value_width",
    "copied_valid": "batch copies",
    "mean_query": "batch key_width",
    "full_keys": "batch full_heads columns key_width",
    "full_values": "batch full_heads columns value_width",
    "stream_keys": "streamed key_width",
    "stream_values": "streamed value_width",
    "stream_lengths": "batch streams",
    "chunks": "batch key_heads tokens width",
    "chunk_queries": "batch key_heads tokens key_width",
    "summaries": "batch key_heads chunks summary_width",
    "width": "",
    "since": "",
}
"""Names of the dimensions of each tensor. A name has one size in all tensors of a layer."""
_COPIES = frozenset(("copied_keys", "copied_values"))
"""Names of tensors of which a state has both or none."""
_KINDS: Mapping[str, torch.dtype | None] = {
    **dict.fromkeys(("valid", "copied_valid"), torch.bool),
    **dict.fromkeys(("time", "width", "since", "lengths", "limits", "stream_lengths", "ids"), torch.int64),
    **dict.fromkeys(("sums", "scores"), torch.float32),
}
"""Types of the tensors that do not have the type of the model's weights."""


class CacheContent(NamedTuple):
    """Content of a file."""

    states: list[dict[str, Tensor]]
    """Tensors of each layer by name."""
    count: Tensor | int
    """Number of tokens, or that of each text."""
    length: int
    """Number of tokens with padding."""
    shape: CacheShape | None
    """Sizes of the cache; None if it has no tokens."""
    budgets: list[int | None]
    """Budget of each layer; None for the budget of the policy."""
    has_marks: bool
    """True if the values mark their tokens."""


def write_cache_file(
    path: str | PathLike[str], layers: Sequence[Any], count: Tensor | int, metadata: dict[str, Any]
) -> None:
    """Write the tensors and budgets of all layers, the number of tokens, and `metadata` to a file."""
    tensors = {
        f"{index}.{name}": tensor.detach().contiguous()
        for index, layer in enumerate(layers)
        for name, tensor in layer.state_dict().items()
    }
    if not isinstance(count, int):
        tensors["count"] = count
    budgets = [getattr(layer, "budget", None) for layer in layers]
    if any(budget is not None for budget in budgets):
        metadata = metadata | {"budgets": budgets}
    save_file(tensors, path, metadata={"scrubjay": json.dumps(metadata)})


def read_cache_file(
    path: str | PathLike[str], expected: Mapping[str, Any], num_layers: int, device: torch.device
) -> CacheContent:
    """Read a file. Raises ValueError if it is damaged, or if its metadata differs from `expected`."""
    if Path(path).exists():
        check_density(Path(path))  # a pipe would block
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = json.loads((file.metadata() or {}).get("scrubjay", "{}"))
            for name, value in expected.items():
                if metadata.get(name) != value:
                    raise ValueError(f"{path} was saved with {name}={metadata.get(name)}, not {value}")
            states: list[dict[str, Tensor]] = [{} for _ in range(num_layers)]
            layers = {str(index): state for index, state in enumerate(states)}
            names = set(file.keys())
            for name in names - {"count"}:
                index, _, part = name.partition(".")
                layers[index][part] = file.get_tensor(name)
            count = file.get_tensor("count") if "count" in names else metadata["seen"]
        return _check_content(metadata, states, count, device)
    except RecursionError:
        raise ValueError(f"{path} is damaged or is not a saved cache: it is nested too deeply") from None
    except (AttributeError, LookupError, RuntimeError, SafetensorError, TypeError) as error:
        raise ValueError(f"{path} is damaged or is not a saved cache: {error}") from error


def _check_content(
    metadata: dict[str, Any], states: list[dict[str, Tensor]], count: Tensor | int, device: torch.device
) -> CacheContent:
    """Return the content of a file. Raises TypeError if a value has another type or size."""
    length, sizes = metadata["seen"], metadata["shape"]
    budgets, has_marks = metadata.get("budgets", [None] * len(states)), metadata.get("marked", False)
    _expect("seen", length, type(length) is int and 0 <= length <= _MAX_TOKENS)
    _expect("marked", has_marks, isinstance(has_marks, bool))
    is_list = isinstance(budgets, list) and len(budgets) == len(states)
    _expect(
        "budgets",
        budgets,
        is_list and all(one is None or (type(one) is int and 0 < one < _MAX_SIZE) for one in budgets),
    )
    shape = None if sizes is None and not length else _read_shape(sizes, device)
    if isinstance(count, Tensor):
        is_count = shape is not None and count.shape == (shape.batch,)
        is_count = is_count and count.dtype in (torch.int64, torch.int32)
        is_count = is_count and bool(((count >= 0) & (count <= length)).all())
        _expect("count", count.flatten()[:9].tolist(), is_count)
    return CacheContent(states, count, length, shape, budgets, has_marks)


def _read_shape(sizes: Any, device: torch.device) -> CacheShape:
    names = {field.name for field in fields(CacheShape)}
    is_shape = isinstance(sizes, dict) and sizes.keys() == names
    numbers: list[Any] = [sizes[name] for name in names - {"device"}] if is_shape else []
    _expect("shape", sizes, is_shape and all(type(one) is int and 0 < one < _MAX_SIZE for one in numbers))
    return CacheShape(**{**sizes, "device": device.type})


def _expect(name: str, value: Any, is_valid: bool) -> None:
    if not is_valid:
        raise TypeError(f"{name}={value!r:.80} is not valid")


def check_state(
    state: Mapping[str, Tensor], sizes: Mapping[str, int], dtype: torch.dtype, names: frozenset[str]
) -> None:
    """Raise TypeError if the tensors of a layer have other sizes or types than a policy stores.

    Args:
        state: Tensors of the layer by name.
        sizes: Sizes of dimensions by name.
        dtype: Data type of the model.
        names: Names of the tensors that a state with tokens has.
    """
    if _COPIES & state.keys():
        names |= _COPIES
    if any(tensor.ndim for tensor in state.values()) and (missing := sorted(names - state.keys())):
        raise TypeError(f"a layer lacks the tensor {missing[0]!r}")
    known_sizes = dict(sizes)
    for name, tensor in state.items():
        dimensions = _DIMENSIONS.get(name)
        if dimensions is None:  # of a policy of the user
            is_valid = tensor.shape[:1] == (sizes["batch"],)
        else:
            pairs = list(zip(dimensions.split(), tensor.shape, strict=False))
            is_valid = tensor.ndim == len(dimensions.split()) and all(
                known_sizes.setdefault(dimension, size) == size for dimension, size in pairs
            )
            is_valid = is_valid and tensor.dtype == _KINDS.get(name, dtype)
        if not is_valid:
            raise TypeError(
                f"the tensor {name!r} has shape {list(tensor.shape)} and type {tensor.dtype}, which do not "
                "fit the model and the other tensors"
            )
    if {"full_heads", "streams"} & known_sizes.keys():
        heads = known_sizes.get("full_heads", 0) + known_sizes.get("streams", 0)
        if heads != sizes["key_heads"]:
            raise TypeError(f"the tensors have {heads} key heads, but the model has {sizes['key_heads']}")
    lengths = state.get("lengths")
    if lengths is not None and not (
        bool((lengths >= 0).all()) and int(lengths.sum()) == known_sizes.get("flat")
    ):
        raise TypeError(f"the lengths {lengths.flatten()[:9].tolist()} do not fit the number of tokens")


def _check_ids(state: Mapping[str, Tensor], model: PreTrainedModel) -> None:
    """Raise TypeError if token ids of a layer, negative for padding, are not those of its last tokens."""
    ids = state.get("ids")
    if ids is None:
        return
    size = model.config.get_text_config(decoder=True).vocab_size
    counts, lengths = (ids >= 0).sum(dim=1), state["lengths"].amin(dim=1)
    if not bool((ids < size).all() & (counts <= lengths).all()):
        raise TypeError("the token ids do not fit the vocabulary and the number of tokens")


def load_layer(
    layer: Any, budget: int | None, state: dict[str, Tensor], content: CacheContent, model: PreTrainedModel
) -> None:
    """Load the state of a layer from a file. Raises TypeError if its tensors have other sizes."""
    if not isinstance(layer, PolicyLayer):
        layer.load_state_dict(state)
        return
    layer.reset()  # the layer reads `track_tokens`
    if budget is not None:
        layer.shrink(budget)
    own = {name: tensor for name, tensor in state.items() if " " not in name}
    if own and content.shape is not None:
        key_heads, key_width = find_rotation(model).sizes[layer.index]
        sizes = {"batch": content.shape.batch, "heads": content.shape.heads}
        sizes |= {"key_heads": key_heads, "key_width": key_width}
        if (key_heads, key_width) == (content.shape.key_heads, content.shape.key_width):
            sizes["value_width"] = content.shape.value_width + (MARKS if content.has_marks else 0)
            sizes["width"] = key_width + sizes["value_width"]
        if not layer.policy.drops or "full_keys" in own:
            sizes["columns"] = content.length
        check_state(own, sizes, model.dtype, layer.memory.state_names)
        _check_ids(own, model)
    layer.load_state_dict(state)
    layer.past_length, layer.shape = content.length, content.shape


def check_shape(
    shape: CacheShape,
    config: Any,
    key_sizes: tuple[int, int],
    model: PreTrainedModel,
    path: str | PathLike[str],
) -> None:
    """Raise ValueError if a file has other sizes than the model, of which `key_sizes` are heads and width."""
    key_heads, key_width = key_sizes
    expected = {
        "heads": config.num_attention_heads,
        "key_heads": key_heads,
        "key_width": key_width,
        "itemsize": model.dtype.itemsize,
    }
    for name, value in expected.items():
        if getattr(shape, name) != value:
            raise ValueError(
                f"{path} was saved with {name}={getattr(shape, name)}, but the model has {value}"
            )
