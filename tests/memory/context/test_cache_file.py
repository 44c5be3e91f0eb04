"""A file of a saved cache that does not fit model and policy is an error of `load`, not of a later call."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from by_layer import SMALL
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache

pytestmark = pytest.mark.requires("transformers")

POLICIES = {"full": {}, "sinks": {"budget": 12}, "chunks": {"chunk_size": 4, "budget": 24}}
POLICIES |= {"snapkv": {"budget": 12, "window": 4, "kernel": 3}, "h2o": {"budget": 40}}
POLICIES |= {"recycled": {"budget": 16}, "refreshkv": {"budget": 16}}
POLICIES |= {"flexprefill": SMALL["flexprefill"]}
POLICIES |= {"duo": SMALL["duo"]}
POLICIES |= {"task_kv": {"budget": 20, "window": 4, "num_sinks": 2, "recent": 5}}
POLICIES |= {"kvzap": SMALL["kvzap"]}
POLICIES |= {"kvzip": {"budget": 12, "window": 4, "num_sinks": 2}}
METADATA: list[tuple[str, Any]] = [
    *(("seen", value) for value in ("5", -3, 10**30, 1.5, None, True, [1])),
    *(("budgets", value) for value in ([1], ["a", "b"], [-1, -1], [0, 0], "ab", {}, None, 5, [2**70] * 2)),
    *(("shape", value) for value in ([], None, {}, "x")),
    *(("marked", value) for value in (1, "yes")),
]
FREE = ("queries", "means")
"""Tensors whose number of columns is that of no other tensor."""
SIZES = [("batch", "x"), ("batch", -1), ("batch", 0), ("batch", None), ("batch", 2.5), ("batch", 2), ("z", 1)]
SIZES += [("value_width", 7), ("layers", [1])]


@pytest.fixture
def file_of(tiny_llama, text, tmp_path):
    """Return a function that saves a cache of 30 tokens; it returns file, policy, model and metadata."""

    def make(name):
        model = tiny_llama()
        policy = context.make(name, **POLICIES[name])
        cache, path = PolicyCache(policy, model), tmp_path / "cache.safetensors"
        with torch.no_grad():
            model(text[:1, :30], cache=cache)
        cache.save(path)
        with safe_open(path, "pt") as file:
            return path, policy, model, json.loads(file.metadata()["scrubjay"])

    return make


def refuse(path, policy, model, tensors, metadata):
    """Check that a changed file is refused."""
    save_file(tensors, path, metadata={"scrubjay": json.dumps(metadata)})
    with pytest.raises(ValueError, match="is damaged or is not a saved cache"):
        PolicyCache.load(path, policy, model)


@pytest.mark.parametrize("name", POLICIES)
def test_metadata_of_other_types_are_refused(file_of, name):
    path, policy, model, metadata = file_of(name)
    tensors = load_file(path)
    for key, value in METADATA:
        refuse(path, policy, model, tensors, {**metadata, key: value})
    for key, value in SIZES:
        refuse(path, policy, model, tensors, {**metadata, "shape": {**metadata["shape"], key: value}})


@pytest.mark.parametrize("name", POLICIES)
def test_tensors_of_other_sizes_and_types_are_refused(file_of, name):
    path, policy, model, metadata = file_of(name)
    tensors = load_file(path)
    assert any(part.startswith("0.") for part in tensors)
    for part, tensor in tensors.items():
        changes = [tensor.to(torch.complex64), tensor[None], torch.cat([tensor[None]] * 2).flatten()]
        changes += [] if part.endswith("valid") else [None]
        if tensor.ndim > 1:
            twice = [torch.cat([tensor, tensor], dim) for dim in range(tensor.ndim)]
            cut = [tensor.narrow(dim, 0, tensor.shape[dim] - 1) for dim in range(tensor.ndim)]
            is_free = part.endswith(FREE)
            changes += [
                one for dim, one in enumerate([*twice, *cut]) if not (is_free and dim % tensor.ndim == 2)
            ]
        for change in changes:
            others = {name: one for name, one in tensors.items() if name != part}
            if change is not None:
                others[part] = change.contiguous().clone()
            refuse(path, policy, model, others, metadata)


@pytest.mark.parametrize("value", [5, [3, 4], [-5], [5.5], [31]])
def test_counts_of_tokens_are_refused(file_of, value):
    path, policy, model, metadata = file_of("full")
    refuse(path, policy, model, {**load_file(path), "count": torch.tensor(value)}, metadata)


def test_metadata_that_is_nested_too_deeply_is_refused(file_of):
    path, policy, model, _ = file_of("full")
    save_file(load_file(path), path, metadata={"scrubjay": "[" * 100_000})
    with pytest.raises(ValueError, match="is nested too deeply"):
        PolicyCache.load(path, policy, model)
