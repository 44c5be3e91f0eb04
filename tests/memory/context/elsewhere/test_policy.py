"""Attention elsewhere equals the full cache, in this process and in others; its traffic is what it says."""

import copy
import gc
from typing import Any

import pytest
import torch

from scrubjay.memory import context

from .. import families

pytestmark = pytest.mark.requires("transformers")

IDS = torch.arange(60)[None] * 7 % 61 + 2


def make_policy(num_stores=2, block=8, kind="table") -> Any:
    from scrubjay.memory.context.elsewhere.policy import ElsewherePolicy
    from scrubjay.memory.context.elsewhere.stores import StoreProcess, TableStore

    make_store = TableStore if kind == "table" else StoreProcess
    return ElsewherePolicy(tuple(make_store() for _ in range(num_stores)), block)


def run(model, policy, lengths, ids=IDS, **options):
    cache = context.PolicyCache(policy, model)
    logits = [model(part, cache=cache, **options).logits for part in ids.split(lengths, dim=1)]
    return torch.cat(logits, dim=1), cache


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[60], [1] * 60, [17, 1, 1, 30, 11]])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "falcon_h1"])
def test_it_equals_the_full_cache(family, lengths):
    model = families.make(family)
    expected, _ = run(model, context.make("full"), lengths)
    logits, cache = run(model, make_policy(3), lengths)
    tolerance = 1e-5 if model.dtype == torch.float32 else 1e-9
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)
    assert cache.dropped_tokens == 0


@torch.no_grad()
def test_padding_reordering_and_cropping(tiny_llama):
    model = tiny_llama(dtype=torch.float64)
    ids = torch.randint(2, 64, (2, 30))
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[0, :11] = 0
    results = []
    for policy in (context.make("full"), make_policy(2, 4)):
        cache = context.PolicyCache(policy, model)
        out = [model(ids, attention_mask=mask, cache=cache).logits[:, 11:]]
        cache.reorder_cache(torch.tensor([1, 1]))
        grown_mask = torch.cat([mask[[1, 1]], torch.ones(2, 1, dtype=torch.long)], dim=1)
        out.append(model(ids[:, :1], attention_mask=grown_mask, cache=cache).logits)
        cache.crop(-17)  # in the middle of a block
        assert cache.get_seq_length() == 14
        out.append(model(ids[:, :5], attention_mask=grown_mask[:, :19], cache=cache).logits)
        results.append(out)
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 11])
def test_caches_of_full_and_elsewhere_load_each_other(padding, tiny_llama, tmp_path):
    model = tiny_llama(dtype=torch.float64)
    mask = torch.ones(1, 60, dtype=torch.long)
    mask[:, :padding] = 0

    def read(cache, first, last):
        return model(IDS[:, first:last], attention_mask=mask[:, :last], cache=cache).logits

    policies = {"full": context.make("full"), "elsewhere": make_policy(), "other": make_policy(3, 5)}
    expected = None
    for first, second in [("full", "full"), ("full", "elsewhere"), ("elsewhere", "other"), ("other", "full")]:
        cache = context.PolicyCache(policies[first], model)
        read(cache, 0, 41)
        cache.save(tmp_path / first)
        other = context.PolicyCache.load(tmp_path / first, policies[second], model)
        logits = torch.cat([read(other, 41, 50), read(other, 50, 60)], dim=1)
        expected = logits if expected is None else expected
        torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-10)
    with pytest.raises(ValueError, match="was saved with policy=full, not sinks"):
        context.PolicyCache.load(tmp_path / "other", context.make("sinks"), model)


@torch.no_grad()
def test_a_copy_is_independent(tiny_llama):
    model = tiny_llama(dtype=torch.float64)
    _, cache = run(model, make_policy(), [41], IDS[:, :41])
    clone = copy.deepcopy(cache)
    expected = model(IDS[:, 41:], cache=cache).logits
    torch.testing.assert_close(model(IDS[:, 41:], cache=clone).logits, expected, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_assisted_decoding_takes_tokens_back(tiny_llama):
    model, options = tiny_llama(), {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    text = IDS[:, :9].repeat(1, 4)
    outputs = [
        model.generate(text, cache=context.PolicyCache(policy, model), **options, **drafts)
        for policy, drafts in (
            (context.make("full"), {}),
            (make_policy(2, 4), {"prompt_lookup_num_tokens": 3}),
        )
    ]
    assert outputs[0].tolist() == outputs[1].tolist()


@torch.no_grad()
def test_a_long_prompt_is_read_in_pieces(tiny_llama, monkeypatch):
    from scrubjay.memory.context.elsewhere.policy import ElsewhereMemory

    monkeypatch.setattr(ElsewhereMemory, "longest_piece", 7)
    model = tiny_llama()
    expected, _ = run(model, context.make("full"), [60])
    torch.testing.assert_close(run(model, make_policy(), [60])[0], expected, atol=1e-5, rtol=1e-5)


def memories(cache) -> list[Any]:
    return [layer.memory for layer in cache.layers]


@torch.no_grad()
def test_two_processes_equal_the_full_cache_and_count_their_traffic(tiny_llama):
    model = tiny_llama()
    policy = make_policy(2, 8, "process")
    try:
        expected, _ = run(model, context.make("full"), [40, *[1] * 20])
        logits, cache = run(model, policy, [40, *[1] * 18], IDS[:, :58])
        before = [(store.bytes_sent, store.bytes_received) for store in policy.stores]
        last = [model(IDS[:, at : at + 1], cache=cache).logits for at in (58, 59)]
        torch.testing.assert_close(torch.cat([logits, *last], dim=1), expected, atol=1e-5, rtol=1e-5)
        # Two tokens, two layers, four heads of width 8, numbers of four bytes; no block was full.
        query, reply = 2 * 2 * 4 * 8 * 4, 2 * 2 * 4 * (8 + 1) * 4
        for store, start in zip(policy.stores, before, strict=True):
            headers = 2 * 2 * 400
            assert query < store.bytes_sent - start[0] < query + headers
            assert reply < store.bytes_received - start[1] < reply + headers
        tokens = 56 * 2 * 2 * 8 * 2 * 4  # of 60 tokens seven blocks of eight
        table_bytes = sum(memory.nbytes("elsewhere") for memory in memories(cache))
        assert table_bytes >= tokens
        name = memories(cache)[0]._name
        del cache
        gc.collect()
        assert policy.stores[0].nbytes(name) == 0
    finally:
        for store in policy.stores:
            store.close()


@torch.no_grad()
def test_after_a_store_has_failed_the_other_serves_new_caches(tiny_llama):
    from scrubjay.memory.context.elsewhere import ElsewherePolicy

    model, policy = tiny_llama(), make_policy(2, 8, "process")
    with policy.stores[0] as first, policy.stores[1]:
        _, cache = run(model, policy, [20], IDS[:, :20])
        policy.stores[1]._process.kill()
        with pytest.raises(RuntimeError, match=r"the process of a store has ended \(exit code -9\)"):
            model(IDS[:, 20:21], cache=cache)
        logits, _ = run(model, ElsewherePolicy((first,), 8), [40, 1, 19])
        expected, _ = run(model, context.make("full"), [40, 1, 19])
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_gradients_are_refused(tiny_llama):
    with make_policy(1, 8, "process").stores[0] as store:
        from scrubjay.memory.context.elsewhere import ElsewherePolicy

        with pytest.raises(ValueError, match="no gradients flow through a store"):
            run(tiny_llama(), ElsewherePolicy((store,), 8), [20, 1], IDS[:, :21])


def test_wrong_sizes_are_refused():
    from scrubjay.memory.context.elsewhere.policy import ElsewherePolicy

    with pytest.raises(ValueError, match="at least one store"):
        ElsewherePolicy(())
    with pytest.raises(ValueError, match="block=0: must be at least 1"):
        make_policy(1, 0)
    store = make_policy(1).stores[0]
    with pytest.raises(TypeError, match=r"stores=\[.*: pass a tuple of stores"):
        ElsewherePolicy([store])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="a store is named twice"):
        ElsewherePolicy((store, store))
    with pytest.raises(ValueError, match="unknown policy 'elsewhere'"):
        context.make("elsewhere")
