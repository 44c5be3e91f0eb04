"""Tokens that a policy drops are counted and reported, and the default budget follows the model's window."""

import logging

import pytest
import torch
from by_layer import SMALL, pad, read
from families import make

from scrubjay.memory import context
from scrubjay.memory.context import registry
from scrubjay.memory.context.policies import budget as budgets
from scrubjay.memory.context.policies.budget import resolve_budget

pytestmark = [pytest.mark.requires("transformers"), pytest.mark.usefixtures("register_test_policies")]


def count_invisible(cache) -> int:
    """Return the largest number of tokens that a head of a layer with full attention cannot read any more."""
    tokens_by_layer, counts = (
        cache.get_retained_tokens(),
        torch.as_tensor(cache.count).expand(cache.batch_size),
    )
    return max(
        int((counts[:, None] - tokens_by_layer[layer.index].stored_mask.sum(dim=-1)).max())
        for layer in cache.attention_layers
        if layer.sees_everything
    )


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "cuts", [[], [1, 2, 3, 30, 31], list(range(1, 40))], ids=["prompt", "calls", "tokens"]
)
@pytest.mark.parametrize("name", SMALL)
def test_the_count_is_the_number_of_invisible_tokens(name, cuts, tiny_llama, text):
    model, policy = tiny_llama(), context.make(name, **SMALL[name])
    cache = context.PolicyCache(policy, model, track_tokens=True)
    assert cache.dropped_tokens == 0
    for end in [*cuts, 40]:
        read(model, cache, text[:, cache.get_seq_length() : end])
        assert cache.dropped_tokens == count_invisible(cache)
    is_read_again = name == "kvzip" and len(cuts) > 10  # tokens that come one by one stay until a prompt
    assert (cache.dropped_tokens > 0) == (policy.drops and not is_read_again)
    cache.reset()
    assert cache.dropped_tokens == 0


@pytest.mark.parametrize("name", SMALL)
def test_the_count_of_rows_with_padding_is_the_number_of_invisible_tokens(name, tiny_llama, text):
    model, (ids, mask) = tiny_llama(), pad(text, 7)
    cache = context.PolicyCache(context.make(name, **SMALL[name]), model, track_tokens=True)
    for end in (20, 21, 22, 40):
        with torch.no_grad():
            model(ids[:, cache.get_seq_length() : end], cache=cache, attention_mask=mask[:, :end])
        assert cache.dropped_tokens == count_invisible(cache)


def test_tokens_outside_a_models_own_windows_are_not_dropped_by_a_policy(text):
    for name, drops in (("mistral-window", False), ("gemma3", True)):
        model = make(name)
        cache = context.PolicyCache(context.make("sinks", budget=8), model, track_tokens=True)
        read(model, cache, text)
        assert cache.dropped_tokens == (32 if drops else 0)


@pytest.fixture
def logs(caplog):
    registry.warn_of_dropped_tokens.cache_clear()
    budgets._log_budget.cache_clear()
    caplog.set_level(logging.INFO, logger="scrubjay")
    yield caplog
    registry.warn_of_dropped_tokens.cache_clear()


@pytest.mark.parametrize("name", SMALL)
def test_the_first_drop_warns_once_and_names_remedies(name, tiny_llama, text, logs):
    model, policy = tiny_llama(), context.make(name, **SMALL[name])
    for _ in range(2):
        cache = context.PolicyCache(policy, model)
        read(model, cache, text[:, :6])
        assert bool(logs.records) == (cache.dropped_tokens > 0) or _ == 1
        read(model, cache, text[:, 6:])
    warnings = [record.getMessage() for record in logs.records if record.levelno == logging.WARNING]
    if not policy.drops:
        assert not warnings
        return
    (warning,) = warnings
    assert repr(policy) in warning
    assert "Raise `budget` or `share`" in warning
    assert all(f"'{name}'" in warning for name in ("chunks", "full", "recycled"))


def test_generation_beyond_the_budget_warns_too(tiny_llama, text, logs):
    model = tiny_llama()
    cache = context.PolicyCache(context.make("sinks", budget=48), model)
    model.generate(text[:1], cache=cache, max_new_tokens=100, min_new_tokens=100, do_sample=False)
    assert cache.dropped_tokens == 139 - 48
    assert [record.levelname for record in logs.records] == ["WARNING"]


@pytest.mark.parametrize("window", [256, 8192, 100_000])
def test_the_default_budget_is_the_models_window_and_at_most_8192(window, tiny_llama, logs):
    model = tiny_llama(max_position_embeddings=window)
    for name in ("chunks", "h2o", "recycled", "refreshkv", "sinks", "snapkv", "window"):
        # A query of `chunks` also reads up to 64 tokens of its own call.
        expected = context.make(name, budget=min(window - 64 * (name == "chunks"), 8192))
        for _ in range(2):
            assert context.PolicyCache(context.make(name), model).policy == expected
        own = context.make(name, budget=60)
        assert context.PolicyCache(own, model).policy == own
        messages = [record.getMessage() for record in logs.records]
        assert sum(message.startswith(f"{type(own).__name__}: ") for message in messages) == 1
        assert resolve_budget(context.make(name), None) == context.make(name, budget=8192)


def test_a_window_too_small_for_a_policy_is_refused(tiny_llama):
    with pytest.raises(ValueError, match=r"budget=36: must be at least 40"):
        context.PolicyCache(context.make("chunks"), tiny_llama(max_position_embeddings=100))


def test_a_budget_must_be_an_integer():
    for budget in ("many", 2.5):
        with pytest.raises(ValueError, match=r"budget=.*must be an integer"):
            context.make("sinks", budget=budget)


def test_a_cache_with_the_default_budget_comes_back_from_disk(tiny_llama, text, tmp_path):
    model, policy = tiny_llama(), context.make("sinks")
    cache = context.PolicyCache(policy, model)
    read(model, cache, text)
    cache.save(tmp_path / "cache")
    assert context.PolicyCache.load(tmp_path / "cache", policy, model).policy == cache.policy
