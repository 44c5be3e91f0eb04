"""A prompt that many caches read by one call of the model: each has the tokens that it would have alone."""

import pytest
import torch

from scrubjay.experiments.lm.questions.shared_reading import record_prompt
from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache
from scrubjay.memory.context.identity import architecture
from scrubjay.memory.context.policies.scored.kvzap import KVzapWeights
from scrubjay.memory.context.policies.scored.second_pass import SecondPass

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
    text = record_prompt(model, TOKENS[:30])
    for record in (record_prompt(model, TOKENS), text.extend(TOKENS[30:]), text, text.extend(TOKENS[30:33])):
        for policy in policies:
            cache, logits, cpu = record.read(policy)
            alone = PolicyCache(policy, model)
            expected = model(record.tokens[None], cache=alone).logits[0, -1]
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


def test_budgets_of_one_policy_share_a_second_pass(model, monkeypatch):
    passes = []
    score = SecondPass.score
    monkeypatch.setattr(
        SecondPass, "score", lambda self, *arguments: (passes.append(1), score(self, *arguments))
    )
    policies = [context.make("kvzip", budget=budget, window=4) for budget in (20, 12, 26)]
    policies.append(context.make("kvzip", budget=20, window=4, chunk=7))
    record = record_prompt(model[0], TOKENS)
    readings = [record.read(policy) for policy in policies]
    assert len(passes) == 2
    own = [second.cpu for second in record.scores.values()]
    assert all(cpu >= record.cpu + min(own) for _, _, cpu in readings)
    compare_with_reading_alone(model[0], policies)


def test_a_policy_that_attends_otherwise_is_refused(model):
    record = record_prompt(model[0], TOKENS)
    with pytest.raises(ValueError, match="does not read a prompt by full attention"):
        record.read(context.make("sinks", budget=16))
    with pytest.raises(ValueError, match="cannot be extended again"):
        record.extend(TOKENS[:3]).extend(TOKENS[:3])


def test_every_policy_that_reads_whole_is_tested():
    whole = {name for name in context.list_policies() if context.make(name).reads_whole}
    assert whole == {*FIELDS, "kvzap"}
