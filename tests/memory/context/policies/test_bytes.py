"""`PolicyCache.nbytes` against an independent walk over all tensors that a cache holds."""

import copy

import pytest
import torch
from by_layer import SMALL, pad, read
from families import make
from torch import Tensor

from scrubjay.memory import context
from scrubjay.memory.context.elsewhere.stores import TableStore
from scrubjay.memory.context.policies.rotary import Rotary

pytestmark = [pytest.mark.requires("transformers"), pytest.mark.usefixtures("register_test_policies")]


def walk(cache) -> dict[str, int]:
    """Return the bytes of the storages that objects of the cache refer to, in memory and in files.

    A `TableStore` stands for another process.
    """
    stack, done_ids, sizes = [cache], set(), {"memory": {}, "disk": {}}
    while stack:
        value = stack.pop()
        if id(value) in done_ids:
            continue
        done_ids.add(id(value))
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            sizes["memory" if storage.filename is None else "disk"][storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list | tuple | set):
            stack += value
        elif not isinstance(value, Rotary | TableStore) and type(value).__module__.startswith("scrubjay"):
            stack += vars(value).values()
    return {place: sum(each.values()) for place, each in sizes.items()}


def check(cache):
    sizes = walk(cache)
    assert cache.nbytes() == sizes["memory"]
    assert cache.nbytes("disk") == sizes["disk"]
    assert cache.nbytes("cpu") == 0  # the model's device is the main memory


def policies():
    for name in SMALL:
        stores = ("model", "cpu", "disk") if name == "chunks" else (None,)
        for store in stores:
            yield pytest.param(
                name, {} if store is None else {"store": store}, id="-".join(filter(None, (name, store)))
            )


@pytest.mark.one_in(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "fields"), policies())
def test_bytes_are_those_of_all_tensors(name, fields, dtype, tiny_llama, text):
    model = tiny_llama(dtype=dtype)
    policy = context.make(name, **SMALL[name] | fields)
    for cuts in ([], [1, 2, 3], [5, 6, 7, 30, 31, 32, 33]):
        for track_tokens in (False, True):
            cache = context.PolicyCache(policy, model, track_tokens)
            check(cache)
            for end in [*cuts, 40]:
                read(model, cache, text[:, cache.get_seq_length() : end])
                check(cache)
            if not track_tokens and not cuts:
                most = policy.nbytes(40, cache.shape())
                assert cache.nbytes() == most or (not policy.exact_bytes and cache.nbytes() < most)
            check(copy.deepcopy(cache))
            cache.reorder_cache(torch.tensor([1, 1, 0]))
            check(cache)


@pytest.mark.parametrize(("name", "fields"), policies())
def test_bytes_of_rows_with_padding_and_of_a_cropped_cache_are_those_of_all_tensors(
    name, fields, tiny_llama, text
):
    model, policy = tiny_llama(), context.make(name, **SMALL[name] | fields)
    ids, mask = pad(text, 7)
    cache = context.PolicyCache(policy, model)
    for end in (20, 21, 22, 40):
        with torch.no_grad():
            model(ids[:, cache.get_seq_length() : end], cache=cache, attention_mask=mask[:, :end])
        check(cache)
    cache = context.PolicyCache(policy, model)
    read(model, cache, text[:, :7])
    if policy.can_crop or name in ("sinks", "window"):
        cache.crop(-4)
        check(cache)
        if fields.get("store") != "disk":
            assert cache.nbytes() <= policy.nbytes(3, cache.shape())


@pytest.mark.parametrize("store", ["model", "cpu"])
def test_chunks_in_the_memory_of_the_model_count(store, tiny_llama):
    model = tiny_llama()
    cache = context.PolicyCache(context.make("chunks", budget=40, store=store), model)
    read(model, cache, torch.randint(2, 60, (1, 500)))
    assert cache.nbytes() > 500 * cache.shape().token_bytes


@pytest.mark.parametrize("name", ["phi3", "qwen3_next", "mistral-window", "gemma3", "falcon_h1"])
@pytest.mark.parametrize("policy", ["sinks", "snapkv", "full"])
def test_bytes_of_models_with_windows_states_and_joint_projections(name, policy, text):
    model = make(name)
    cache = context.PolicyCache(context.make(policy, **SMALL[policy]), model)
    for end in (1, 2, 20, 21):
        read(model, cache, text[:, cache.get_seq_length() : end])
        check(cache)
