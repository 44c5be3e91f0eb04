"""H2O, SnapKV and chunks against their definitions, in a model with one layer and one key head."""

import re

import pytest
import torch
from transformers import DynamicCache

from scrubjay.memory import context

pytestmark = pytest.mark.requires("transformers")


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(dtype=torch.float64, num_hidden_layers=1, num_key_value_heads=1)


def weights_of(model, ids, positions=None):
    """Return the logits of the last token, and the attention weights summed over heads."""
    model.set_attn_implementation("eager")
    out = model(ids, position_ids=positions, cache=DynamicCache(config=model.config), output_attentions=True)
    return out.logits[:, -1], out.attentions[0][0].sum(dim=0)


@torch.no_grad()
def test_h2o_drops_what_received_least(model):
    ids = torch.randint(2, 64, (1, 40))
    budget, recent, num_sinks = 10, 4, 1
    tokens, sums, expected = [], torch.zeros(0, dtype=torch.float64), []
    for t in range(40):
        tokens, sums = [*tokens, t], torch.cat([sums, sums.new_zeros(1)])
        logits, weights = weights_of(model, ids[:, tokens])
        expected.append(logits)
        sums += weights[-1]
        if len(tokens) == budget:
            worst = num_sinks + int(sums[num_sinks : budget - recent].argmin())
            tokens.pop(worst)
            sums = torch.cat([sums[:worst], sums[worst + 1 :]])
    policy = context.make("h2o", budget=budget, recent=recent, num_sinks=num_sinks, interval=1)
    logits = model(ids, cache=context.PolicyCache(policy, model)).logits
    torch.testing.assert_close(logits, torch.stack(expected, dim=1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_snapkv_keeps_what_the_window_attends_to(model):
    ids = torch.randint(2, 64, (1, 41))
    budget, window, num_sinks = 14, 4, 2
    _, weights = weights_of(model, ids[:, :40])
    score = weights[36:, num_sinks:36].sum(dim=0)
    pooled_scores = torch.nn.functional.avg_pool1d(score[None, None], 3, 1, 1)[0, 0]
    best = num_sinks + pooled_scores.topk(budget - window - num_sinks).indices
    tokens = torch.tensor([0, 1, *sorted(best.tolist()), 36, 37, 38, 39, 40])
    expected, _ = weights_of(model, ids[:, tokens], tokens[None])
    cache = context.PolicyCache(
        context.make("snapkv", budget=budget, window=window, num_sinks=num_sinks, kernel=3), model
    )
    model(ids[:, :40], cache=cache)
    logits = model(ids[:, 40:], cache=cache).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_chunks_reads_those_whose_mean_key_suits(model):
    """The first chunk, three selected, two local and the current one, at consecutive positions."""
    ids = torch.randint(2, 64, (1, 50))
    layer = model.model.layers[0]
    hidden = layer.input_layernorm(model.model.embed_tokens(ids[0]))
    keys = layer.self_attn.k_proj(hidden)
    query = layer.self_attn.q_proj(hidden[-1]).view(-1, keys.shape[-1])
    means = keys[:48].view(12, 4, -1).mean(dim=1)
    votes = (query @ means[1:10].T * layer.self_attn.scaling).softmax(dim=-1).sum(dim=0)
    best = 1 + votes.topk(3).indices
    tokens = torch.tensor(
        [t for chunk in (0, *best.sort().values.tolist(), 10, 11) for t in range(4 * chunk, 4 * chunk + 4)]
    )
    tokens = torch.cat([tokens, torch.tensor([48, 49])])
    expected, _ = weights_of(model, ids[:, tokens])
    cache = context.PolicyCache(context.make("chunks", budget=28, chunk_size=4, local_chunks=2), model)
    model(ids[:, :49], cache=cache)
    logits = model(ids[:, 49:], cache=cache).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def first_values(cache) -> torch.Tensor:
    """Return the values that the first layer retains for row 0, in the order of the text."""
    memory = cache.attention_layers[0].memory
    state = memory.state_dict()
    return (state if "values" in state else memory.get_retained_values(torch.tensor([60]))._asdict())[
        "values"
    ][0]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("h2o", {"budget": 10, "recent": 4, "num_sinks": 1, "interval": 3}),
        ("snapkv", {"budget": 12, "window": 4, "num_sinks": 1}),
    ],
)
@torch.no_grad()
def test_heads_keep_different_tokens_and_all_the_sink(name, fields, tiny_llama):
    model = tiny_llama(num_hidden_layers=1)
    ids = 2 + torch.randperm(60)[None]  # so that a value identifies its token
    full = context.PolicyCache(context.make("full"), model)
    model(ids, cache=full)
    cache = context.PolicyCache(context.make(name, **fields), model)
    model(ids, cache=cache)
    sets = []
    values, all_values = map(first_values, (cache, full))
    for head in range(2):
        place = torch.cdist(values[head], all_values[head]).argmin(dim=1).tolist()
        assert place == sorted(place)
        assert place[0] == 0
        assert place[-3:] == [57, 58, 59]
        sets.append(place)
    assert sets[0] != sets[1]


def test_invalid_sizes_are_reported():
    with pytest.raises(ValueError, match="budget=8: too small"):
        context.make("h2o", budget=8)
    with pytest.raises(ValueError, match="interval=0"):
        context.make("h2o", interval=0)
    with pytest.raises(ValueError, match="budget=35"):
        context.make("snapkv", budget=35)
    with pytest.raises(ValueError, match="kernel=4: must be odd"):
        context.make("snapkv", kernel=4)
    with pytest.raises(ValueError, match="recent=0: must be at least 1"):
        context.make("h2o", recent=0)
    with pytest.raises(ValueError, match="budget=24: must be at least 32"):
        context.make("chunks", budget=24, local_chunks=1)


@pytest.mark.parametrize("budget", [-1, 0, 1, 12, 20, 32, 38])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("chunks", {}),
        ("chunks", {"local_chunks": 0}),
        ("h2o", {}),
        ("h2o", {"recent": 20}),
        ("h2o", {"num_sinks": 0, "interval": 1}),
        ("recycled", {}),
        ("sinks", {}),
        ("snapkv", {}),
    ],
)
def test_the_budget_in_an_error_message_is_the_smallest_valid_one(name, sizes, budget):
    try:
        context.make(name, budget=budget, **sizes)
    except ValueError as error:
        match = re.search(r"at least (\d+)", str(error))
        assert match is not None
        least = int(match[1])
        context.make(name, budget=least, **sizes)
        with pytest.raises(ValueError, match=f"at least {least}"):
            context.make(name, budget=least - 1, **sizes)
