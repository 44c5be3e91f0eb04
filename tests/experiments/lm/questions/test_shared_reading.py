"""A prompt that many caches read in one call of the model: each has the tokens that it would have alone."""

import pytest
import torch

from scrubjay.experiments.lm.questions import shared_reading
from scrubjay.experiments.lm.questions.shared_reading import LeadingCache, read_together
from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache
from scrubjay.memory.context.identity import architecture
from scrubjay.memory.context.policies.scored.kvzap import KVzapWeights

pytestmark = [pytest.mark.requires("transformers"), pytest.mark.requires("wonderwords")]

SCORED = ("adakv", "cake", "expected_attention", "keydiff", "kvzip", "pyramidkv", "snapkv", "tova", "zipvl")
FIELDS = {name: {"budget": 20} if name == "tova" else {"budget": 20, "window": 4} for name in SCORED}
FIELDS |= {"full": {}, "recycled": {"budget": 20}, "refreshkv": {"budget": 20}}
FIELDS |= {"task_kv": {"budget": 24, "window": 4, "num_sinks": 2, "recent": 5}}
TOKENS = torch.randperm(40, generator=torch.Generator().manual_seed(0)) + 3


def make_all(budget_change=0):
    fields = [(name, dict(sizes)) for name, sizes in FIELDS.items()]
    for _, sizes in fields:
        if "budget" in sizes:
            sizes["budget"] += budget_change
    return [context.make(name, **sizes) for name, sizes in fields]


@pytest.fixture
def gemma():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=92, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=8, initializer_range=0.4,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


@torch.no_grad()
def compare_with_reading_alone(model, policies):
    readings = read_together(model, TOKENS, policies)
    assert len(readings) == len(policies)
    for policy, (cache, logits, cpu) in zip(policies, readings, strict=True):
        alone = PolicyCache(policy, model)
        expected = model(TOKENS[None], cache=alone).logits[0, -1]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert cpu > 0
        for length in (3, 1, 1):
            assert cache.nbytes() == alone.nbytes(), policy
            tokens = TOKENS[None, :length]
            ours, theirs = (model(tokens, cache=each).logits for each in (cache, alone))
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def make_kvzap(model):
    config = model.config
    generator = torch.Generator().manual_seed(0)
    shape = config.num_key_value_heads, config.hidden_size + 1
    maps = {layer: torch.randn(shape, generator=generator) for layer in range(config.num_hidden_layers)}
    weights = KVzapWeights(maps, architecture(model), ()).register()
    return context.make("kvzap", budget=20, window=4, threshold=0.0, weights=weights)


def test_a_shared_reading_is_that_of_each_cache(model):
    compare_with_reading_alone(model[0], [*make_all(), make_kvzap(model[0])])


def test_layers_with_windows_are_shared_too(gemma):
    compare_with_reading_alone(gemma, make_all())


def test_many_caches_read_in_groups(model, monkeypatch):
    monkeypatch.setattr(shared_reading, "MAX_CACHES", 3)
    compare_with_reading_alone(model[0], [*make_all()[:4], *make_all(4)[:4]])


def test_a_policy_that_attends_otherwise_is_refused(model):
    cache = PolicyCache(context.make("sinks", budget=16), model[0])
    with pytest.raises(ValueError, match="does not read a prompt by full attention"):
        LeadingCache(model[0], [cache])


def test_every_policy_that_reads_whole_is_tested():
    whole = {name for name in context.list_policies() if context.make(name).reads_whole}
    assert whole == {*FIELDS, "kvzap"}
