"""Caches with different policies per layer, and with budgets set while a prompt is read."""

import copy
import itertools
import os
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from by_layer import AlternatingPolicy, SpreadPolicy, close, pad, read
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scrubjay.memory import context
from scrubjay.memory.context import ContextPolicy, PolicyCache
from scrubjay.memory.context.policies.base import Step
from scrubjay.memory.context.policies.full import FullPolicy
from scrubjay.memory.context.policies.rotary import Rotary
from scrubjay.memory.context.policies.scored.snapkv import SnapKVPolicy
from scrubjay.memory.context.policies.sinks import SinksPolicy

SMALL = {
    "chunks": {"budget": 16, "chunk_size": 2, "local_chunks": 3},
    "full": {},
    "h2o": {"budget": 12, "recent": 5, "num_sinks": 2, "interval": 3},
    "recycled": {"budget": 12, "stride": 4, "num_sinks": 2},
    "refreshkv": {"budget": 8, "stride": 4, "num_sinks": 2, "similarity": 0.5},
    "sinks": {"budget": 8, "num_sinks": 2},
    "snapkv": {"budget": 12, "window": 4, "num_sinks": 2},
    "window": {"budget": 8},
}
SPREAD = SpreadPolicy(budget=12, window=4, num_sinks=2, kernel=5)

pytestmark = [pytest.mark.requires("transformers"), pytest.mark.usefixtures("register_test_policies")]


@dataclass(frozen=True)
class CyclicPolicy(ContextPolicy):
    """Several policies, assigned to the layers in turn."""

    parts: tuple[ContextPolicy, ...]

    def for_layer(self, index, count):
        return self.parts[index % len(self.parts)]

    def build(self):
        raise AssertionError("each layer builds its own policy")

    def nbytes(self, tokens, shape, at_once=True):
        raise AssertionError


@pytest.fixture
def model(tiny_llama):
    """Return a model of four layers with uneven attention."""
    return tiny_llama(num_hidden_layers=4, initializer_range=0.6)


def columns(cache):
    return [count_columns(layer) for layer in cache.attention_layers]


def count_columns(layer):
    """Return the largest number of tokens that a head of a layer retains."""
    return layer.memory.get_retained_values(torch.tensor([1000])).values.shape[2]


def budgets(cache) -> list[Any]:
    return [layer.budget for layer in cache.attention_layers]


def states(cache):
    return [layer.memory.state for layer in cache.attention_layers]


def test_even_layers_keep_64_keys_and_odd_ones_128(model):
    ids = torch.randint(2, 64, (1, 200))
    cache = PolicyCache(AlternatingPolicy(), model)
    read(model, cache, ids, [90, 91])
    assert columns(cache) == [64, 128, 64, 128]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("names", itertools.permutations(SMALL, 2), ids="-".join)
def test_layers_only_share_values_of_their_own_policy(names, padding, model, text, monkeypatch):
    """Results equal those without sharing, for two policies in two layers each."""
    policy = CyclicPolicy(tuple(context.make(name, **SMALL[name]) for name in names))
    ids, mask = pad(text, padding)
    cuts = [30, 31, 32, 36]
    shared = read(model, PolicyCache(policy, model), ids, cuts, mask)
    monkeypatch.setattr(Step, "compute_once", lambda step, name, make: make())
    assert torch.equal(read(model, PolicyCache(policy, model), ids, cuts, mask), shared)


@pytest.mark.parametrize("name", ["chunks", "h2o", "sinks"])
def test_sizes_of_one_policy_do_not_leak_into_layers_of_others(name, model, text, monkeypatch):
    policy = context.make(name, **SMALL[name])
    other = context.make(name, **SMALL[name] | {"budget": 20})
    ids, mask = pad(text, 5)
    cuts = [14, 30, 31, 32, 36]
    mixed_policy = CyclicPolicy((other, policy))
    shared = read(model, PolicyCache(mixed_policy, model), ids, cuts, mask)
    with monkeypatch.context() as patch:
        patch.setattr(Step, "compute_once", lambda step, name, make: make())
        assert torch.equal(read(model, PolicyCache(mixed_policy, model), ids, cuts, mask), shared)
    # The test detects errors: with one store for all, layers of the second policy get values of the first.
    for_policy = Step.for_policy
    monkeypatch.setattr(
        Step, "for_policy", lambda step, policy, rotary: for_policy(step, "one for all", rotary)
    )
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        close(read(model, PolicyCache(mixed_policy, model), ids, cuts, mask), shared)


def test_layers_under_equal_policies_compute_what_they_share_once(tiny_llama, text, monkeypatch):
    calls = []
    make_rotation = Rotary.make_rotation
    monkeypatch.setattr(Rotary, "make_rotation", lambda *args: calls.append(args) or make_rotation(*args))

    def count_calls(policy, layers):
        calls.clear()
        model = tiny_llama(num_hidden_layers=layers)
        read(model, PolicyCache(policy, model), text, [30, 31])
        return len(calls)

    sinks = SinksPolicy(budget=8, num_sinks=2)
    count = count_calls(sinks, 1)
    assert count == count_calls(sinks, 6)
    # Equal, but not the same object.
    assert count == count_calls(CyclicPolicy((sinks, replace(sinks))), 6)
    assert 2 * count == count_calls(AlternatingPolicy(budget=8, num_sinks=2), 6)


def test_a_mixed_cache_is_cropped_whole_or_not_at_all(model, text):
    wide, narrow = SinksPolicy(budget=30), SinksPolicy(budget=10)
    policy = CyclicPolicy((FullPolicy(), wide, narrow))
    cache = PolicyCache(policy, model)
    assert not cache.is_croppable
    read(model, cache, text[:, :9])
    cache.crop(-3)
    read(model, cache, text[:, 20:23])
    whole_text = torch.cat([text[:, :6], text[:, 20:23], text[:, 9:]], dim=1)
    read(model, cache, text[:, 9:20])
    # Only the narrow layers have evicted tokens that they would need.
    with pytest.raises(ValueError, match="budget of 10"):
        cache.crop(-3)
    assert cache.get_seq_length() == 20
    alone = PolicyCache(policy, model)
    close(read(model, cache, text[:, 20:]), read(model, alone, whole_text, [6, 9, 20])[:, 20:])


def test_decoding_with_an_assistant_asks_all_layers(model, text):
    options = {"do_sample": False, "max_new_tokens": 8}
    ids = text[:1].repeat(1, 2)
    for policy in (CyclicPolicy((FullPolicy(), SinksPolicy(budget=30))), AlternatingPolicy(), SPREAD):
        with pytest.raises(ValueError, match="requires a cache that can be cropped"):
            model.generate(ids, cache=PolicyCache(policy, model), prompt_lookup_num_tokens=3, **options)
    policy = CyclicPolicy((FullPolicy(), FullPolicy()))
    looked_up = model.generate(ids, cache=PolicyCache(policy, model), prompt_lookup_num_tokens=3, **options)
    assert torch.equal(looked_up, model.generate(ids, cache=PolicyCache(policy, model), **options))


def test_budgets_follow_measurements_and_sum_to_the_total(model, text):
    cache = PolicyCache(SPREAD, model)
    read(model, cache, text)
    assert columns(cache) == budgets(cache)
    assert sum(budgets(cache)) == 4 * SPREAD.num_tokens
    assert len({*budgets(cache)}) > 1
    # The definition: the model's own attention of the last 4 tokens, layer by layer.
    model.set_attn_implementation("eager")
    spreads = [
        torch.special.entr(weights[:, :, -4:].mean(dim=2)).sum(dim=-1).exp().mean().item()
        for weights in model(text, output_attentions=True).attentions
    ]
    shares = [48 * each / sum(spreads) for each in spreads]
    assert min(shares) > SPREAD.window + SPREAD.num_sinks
    assert all(abs(budget - share) < 1 for budget, share in zip(budgets(cache), shares, strict=True))


@pytest.mark.parametrize("padding", [0, 5, 33, 35])
def test_allocation_layer_by_layer_equals_allocation_at_the_end(padding, model, text, monkeypatch):
    ids, mask = pad(text, padding)
    cache = PolicyCache(SPREAD, model)
    logits = read(model, cache, ids, [36], mask)
    last, allocate = len(cache.attention_layers), SpreadPolicy.allocate

    def allocate_last(policy, all_stats, shape):
        return (
            allocate(policy, all_stats, shape)
            if len(all_stats) == last
            else [stats.columns for stats in all_stats]
        )

    monkeypatch.setattr(SpreadPolicy, "allocate", allocate_last)
    reference = PolicyCache(SPREAD, model)
    assert torch.equal(read(model, reference, ids, [36], mask), logits)
    assert budgets(reference) == budgets(cache)


def test_a_prompt_is_retained_as_with_fixed_budgets(model, text):
    cache = PolicyCache(SPREAD, model)
    read(model, cache, text[:, :36])
    fixed_policy = CyclicPolicy(
        tuple(SnapKVPolicy(budget, window=4, kernel=5, num_sinks=2) for budget in budgets(cache))
    )
    other = PolicyCache(fixed_policy, model)
    read(model, other, text[:, :36])
    for ours, theirs in zip(states(cache), states(other), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # Generated tokens are compressed alike.
    cuts = range(1, 12)
    assert torch.equal(read(model, cache, text[:, :12], cuts), read(model, other, text[:, :12], cuts))


def test_the_cache_never_exceeds_the_budgets_and_one_layers_prompt(tiny_llama, monkeypatch):
    model = tiny_llama(num_hidden_layers=8, initializer_range=0.6)
    ids = torch.randint(2, 64, (2, 300))
    counts, allocate = [], PolicyCache.allocate

    def record(cache, index, length):
        layers = cache.attention_layers[: index + 1]
        before = sum(count_columns(layer) for layer in layers)
        allocate(cache, index, length)
        counts.append((before, sum(count_columns(layer) for layer in layers)))

    monkeypatch.setattr(PolicyCache, "allocate", record)
    cache = PolicyCache(SPREAD, model)
    read(model, cache, ids)
    limit = 8 * SPREAD.num_tokens
    assert len(counts) == 8
    assert all(before <= limit + 300 and after <= limit for before, after in counts)
    assert cache.nbytes() == SPREAD.nbytes(300, cache.shape())
    # Further prompts and answers do not exceed the budgets.
    read(model, cache, ids[:, :50], [20, 21, 22])
    assert cache.nbytes() == SPREAD.nbytes(400, cache.shape())
    assert sum(budgets(cache)) == limit


def test_equal_preferences_are_the_policy_without_allocation(model, text):
    @dataclass(frozen=True)
    class EqualPreferences(SpreadPolicy):
        prefer = SnapKVPolicy.prefer

    ids, mask = pad(text, 5)
    cuts = [30, 31, 32, 36]
    cache = PolicyCache(EqualPreferences(12, window=4, kernel=5, num_sinks=2), model)
    logits = read(model, cache, ids, cuts, mask)
    assert budgets(cache) == [12] * 4
    assert torch.equal(
        logits,
        read(model, PolicyCache(SnapKVPolicy(12, window=4, kernel=5, num_sinks=2), model), ids, cuts, mask),
    )


def test_none_leaves_layers_as_they_are_configured(model, text):
    caches = []

    @dataclass(frozen=True)
    class NoneAllocatePolicy(SnapKVPolicy):
        def allocate(self, stats, shape):
            # Each layer is compressed at once, not all at the end.
            before = caches[0].attention_layers[: len(stats) - 1]
            assert all(count_columns(layer) == 12 for layer in before)

    cache = PolicyCache(NoneAllocatePolicy(12, window=4, kernel=5, num_sinks=2), model)
    caches.append(cache)
    logits = read(model, cache, text, [30, 31])
    assert budgets(cache) == [None] * 4
    assert torch.equal(
        logits,
        read(model, PolicyCache(SnapKVPolicy(12, window=4, kernel=5, num_sinks=2), model), text, [30, 31]),
    )


def test_rows_of_a_batch_share_the_budgets_of_their_mean(model, text, monkeypatch):
    records = []
    allocate = SpreadPolicy.allocate
    monkeypatch.setattr(
        SpreadPolicy,
        "allocate",
        lambda policy, stats, shape: records.append(stats) or allocate(policy, stats, shape),
    )
    for ids in (text, text[:1], text[1:]):
        read(model, PolicyCache(SPREAD, model), ids)
    both, one, other = (torch.tensor(records[last]) for last in (3, 7, 11))
    torch.testing.assert_close(both, (one + other) / 2)


def test_budgets_are_saved_copied_and_reset(model, text, tmp_path):
    cache = PolicyCache(SPREAD, model)
    read(model, cache, text[:, :30], [25])
    expected_budgets = budgets(cache)
    assert len({*expected_budgets}) > 1
    cache.save(tmp_path / "cache.safetensors")
    loaded_cache = PolicyCache.load(tmp_path / "cache.safetensors", SPREAD, model)
    clone = copy.deepcopy(cache)
    assert expected_budgets == budgets(loaded_cache) == budgets(clone)
    # Single tokens until all layers compress again, and then a further prompt.
    expected = read(model, cache, text[:, 24:], range(1, 7))
    for other in (loaded_cache, clone):
        assert torch.equal(read(model, other, text[:, 24:], range(1, 7)), expected)
        assert budgets(other) == budgets(cache)
    cache.reset()
    assert budgets(cache) == [None] * 4
    again = PolicyCache(SPREAD, model)
    assert torch.equal(read(model, cache, text), read(model, again, text))
    assert budgets(cache) == budgets(again)


def test_a_pipe_is_no_saved_cache(model, tmp_path):
    os.mkfifo(tmp_path / "cache.safetensors")
    with pytest.raises(ValueError, match="is not a regular file"):
        PolicyCache.load(tmp_path / "cache.safetensors", SPREAD, model)


@pytest.mark.parametrize("name", ["empty", "-1.keys", "9" * 5000 + ".keys", "4.keys", "01.keys"])
def test_a_saved_cache_with_a_tensor_of_no_layer_is_damaged(name, model, text, tmp_path):
    cache, file = PolicyCache(SPREAD, model), tmp_path / "cache.safetensors"
    read(model, cache, text[:, :30], [25])
    cache.save(file)
    with safe_open(file, "pt") as saved_file:
        metadata = saved_file.metadata()
    save_file({**load_file(file), name: torch.zeros(1)}, file, metadata=metadata)
    with pytest.raises(ValueError, match="is damaged or is not a saved cache"):
        PolicyCache.load(file, SPREAD, model)


def test_invalid_budgets_are_reported(model, text):
    @dataclass(frozen=True)
    class WrongPolicy(SnapKVPolicy):
        def allocate(self, stats, shape):
            return [5] * len(stats) if shape.batch == 1 else [12]

    cache = PolicyCache(WrongPolicy(12, window=4, kernel=5, num_sinks=2), model)
    with pytest.raises(ValueError, match=r"budget=5: must be at least 6"):
        read(model, cache, text[:1])
    with pytest.raises(RuntimeError, match="was interrupted"):
        read(model, cache, text[:1])
    with pytest.raises(
        ValueError, match=r"WrongPolicy.allocate returned 1 budgets; return one for each of the 2"
    ):
        read(model, PolicyCache(WrongPolicy(12, window=4, kernel=5, num_sinks=2), model), text)

    @dataclass(frozen=True)
    class SinksWithAllocate(SinksPolicy):
        def allocate(self, stats, shape):
            return [12] * len(stats)

    with pytest.raises(NotImplementedError, match=r"StreamMemory does not implement measure\(\)"):
        read(model, PolicyCache(SinksWithAllocate(12), model), text)
