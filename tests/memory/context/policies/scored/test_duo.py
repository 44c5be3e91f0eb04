"""DuoAttention against a slow definition with one mask for each head, and its choice of heads."""

import itertools
import math

import pytest
import torch
from by_layer import SCORES, close, make_for, pad, read
from families import make
from transformers import DynamicCache

from scrubjay.memory import context
from scrubjay.memory.context import head_scores, retrieval_heads
from scrubjay.memory.context.policies.base import CacheShape, Step
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.scored.duo import DuoPolicy

pytestmark = pytest.mark.requires("transformers")

GROUPS, SHARED, WIDTH, LENGTH = 3, 2, 6, 30
ROWS = ((0.1, 0.2, 0.9, 0.0, 0.3, 0.1), (0.8, 0.0, 0.0, 0.7, 0.1, 0.1))
"""Scores of two layers of three key heads: the best ones are head 1 and head 0, then head 1 of layer 1."""


def attend_slowly(query, keys, values, time, policy, full_heads, scoring):
    """Return the output of each query head and token of one row, by loops; padding gives zeros."""
    out = torch.zeros(len(query), len(time), WIDTH, dtype=torch.float64)
    for head, own in itertools.product(range(len(query)), range(len(time))):
        group = head // SHARED
        if time[own] < 0:
            continue
        exps, total = [], 0.0 if scoring.sinks is None else math.exp(scoring.sinks[head])
        for other in range(own + 1):
            is_last = time[other] > time[own] - policy.recent
            is_read = group in full_heads or time[other] < policy.num_sinks or is_last
            if time[other] >= 0 and is_read:
                score = float(query[head, own] @ keys[group, other]) * scoring.scale
                if scoring.cap is not None:
                    score = scoring.cap * math.tanh(score / scoring.cap)
                exps.append((other, math.exp(score)))
        total += sum(exp for _, exp in exps)
        out[head, own] = sum(exp / total * values[group, other] for other, exp in exps)
    return out


SINKS = torch.linspace(-1, 1, GROUPS * SHARED, dtype=torch.float64)


@pytest.mark.parametrize("scoring", [Scoring(0.5), Scoring(0.5, 1.5, SINKS)], ids=["plain", "capped"])
@pytest.mark.parametrize("padding", ["none", "left", "middle"])
@pytest.mark.parametrize("cuts", [[], [11, 12, 13, 22], [*range(1, LENGTH)]], ids=["one", "blocks", "tokens"])
def test_each_head_reads_as_in_the_definition(cuts, padding, scoring):
    torch.manual_seed(4)
    query = torch.randn(2, GROUPS * SHARED, LENGTH, WIDTH, dtype=torch.float64)
    keys, values = (torch.randn(2, GROUPS, LENGTH, WIDTH, dtype=torch.float64) for _ in range(2))
    is_token = torch.ones(2, LENGTH, dtype=torch.bool)
    if padding != "none":
        is_token[0, :7] = False
    if padding == "middle":
        is_token[1, 9:14] = False
    counts = is_token.cumsum(dim=1)
    time = torch.where(is_token, counts - 1, -1)
    for share, index in ((0.5, 0), (0.5, 1), (0.0, 0), (1.0, 1)):
        policy = DuoPolicy(share=share, num_sinks=3, recent=5, scores=ROWS)
        memory, parts, full_heads = policy.for_layer(index, 2).build(), [], policy.select_heads(GROUPS)[index]
        for first, last in itertools.pairwise([0, *cuts, LENGTH]):
            before = counts[:, first - 1] if first else torch.zeros(2, dtype=torch.long)
            own = time[:, first:last]
            step = Step(own, own, first, before, counts[:, last - 1], padding != "none", None)
            q, k, v = (x[:, :, first:last] for x in (query, keys, values))
            parts.append(memory.attend(q, k, v, step, scoring))
        out = torch.cat(parts, dim=2)
        for row in range(2):
            times = time[row].tolist()
            expected = attend_slowly(query[row], keys[row], values[row], times, policy, full_heads, scoring)
            torch.testing.assert_close(out[row][:, is_token[row]], expected[:, is_token[row]])


def test_the_best_key_heads_of_all_layers_are_selected():
    sizes = {
        share: DuoPolicy(share=share, scores=ROWS).select_heads(GROUPS) for share in (0, 0.3, 0.5, 0.6, 1)
    }
    assert sizes[0] == [[], []]
    assert sizes[0.3] == [[1], [0]]
    assert sizes[0.5] == [[1], [0, 1]]
    assert sizes[0.6] == [[1, 2], [0, 1]]
    assert sizes[1] == [[0, 1, 2], [0, 1, 2]]
    # With equal scores the first heads are selected.
    assert DuoPolicy(scores=((0.0,) * 6,) * 2).select_heads(GROUPS) == [[0, 1, 2], []]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("tokens", [0, 3, 40, 300])
def test_the_bytes_are_the_sum_over_the_layers(share, tokens):
    policy = DuoPolicy(share=share, num_sinks=3, recent=5, scores=ROWS)
    shape = CacheShape(2, 4, GROUPS * SHARED, GROUPS, 6, 10, 2)
    layers = [policy.for_layer(index, 2) for index in range(2)]
    one = CacheShape(1, 4, GROUPS * SHARED, GROUPS, 6, 10, 2)
    assert policy.nbytes(tokens, shape) == sum(layer.nbytes(tokens, one) for layer in layers)


@pytest.mark.parametrize(
    "family", ["gpt_oss", "gemma3", "gemma2", "falcon_h1", "smollm3", "qwen3_next", "falcon"]
)
def test_layers_of_all_kinds_read_tokens_as_they_read_texts(family, text):
    model = make(family)
    small = make_for(model, "duo", num_sinks=2, recent=6)
    ids, mask = pad(text, 0 if family == "gemma2" else 5)  # Gemma 2 outputs NaN for padding
    whole = read(model, context.PolicyCache(small, model), ids, mask=mask)
    cuts = [20, 27, *range(28, 40)]
    parts = read(model, context.PolicyCache(small, model), ids, cuts, mask)
    close(parts[mask.bool()], whole[mask.bool()])
    large = make_for(model, "duo", num_sinks=2, recent=38)
    expected = read(model, DynamicCache(config=model.config), text, cuts)
    close(read(model, context.PolicyCache(large, model), text, cuts), expected)


def test_evicted_tokens_are_freed(tiny_llama):
    model, ids = tiny_llama(), torch.randint(2, 64, (1, 512))
    sizes = {}
    for share in (0.0, 0.5, 1.0):
        cache = context.PolicyCache(DuoPolicy(share, num_sinks=2, recent=6, scores=SCORES), model)
        read(model, cache, ids)
        sizes[share] = cache.nbytes()
        assert cache.dropped_tokens == (0 if share == 1 else 504)
    token = cache.shape().token_bytes
    assert sizes[1.0] == 512 * token
    assert sizes[0.5] == (256 + 4) * token + 2 * 8
    assert sizes[0.0] == 8 * token + 4 * 8


def test_a_crop_that_a_later_layer_refuses_changes_nothing(tiny_llama, text):
    model = tiny_llama()
    scores = ((1.0,) * 4, (0.0,) * 4)
    cache = context.PolicyCache(DuoPolicy(num_sinks=4, recent=6, scores=scores), model)
    read(model, cache, text[:, :30])
    expected = read(model, context.PolicyCache(cache.policy, model), text)[:, 30:]
    with pytest.raises(ValueError, match="crop: DuoPolicy has evicted tokens of streaming heads"):
        cache.crop(-5)
    assert cache.get_seq_length() == 30
    close(read(model, cache, text[:, 30:]), expected)
    # The first tokens are never evicted.
    cache.crop(-37)
    close(read(model, cache, text[:, 3:]), read(model, context.PolicyCache(cache.policy, model), text)[:, 3:])


def test_the_stored_scores_of_a_model_are_used(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(head_scores, "SCORES_FILE", tmp_path / "heads.json")
    head_scores._load_scores.cache_clear()
    model, policy = tiny_llama(), context.make("duo")
    with pytest.raises(
        ValueError, match="retrieval scores, and none are stored for this LlamaForCausalLM"
    ) as error:
        context.PolicyCache(policy, model)
    assert "`python -m scrubjay.memory.context.retrieval_heads FOLDER`" in str(error.value)
    heads = retrieval_heads.RetrievalHeads(SCORES, probes=1)
    retrieval_heads.store(model, heads, "a command", tmp_path / "heads.json")
    gemma = make("gemma3")
    heads = retrieval_heads.RetrievalHeads(SCORES, probes=1)
    retrieval_heads.store(gemma, heads, "a command", tmp_path / "heads.json")
    head_scores._load_scores.cache_clear()
    assert context.PolicyCache(policy, model).policy == DuoPolicy(scores=SCORES)
    # Layer 0 has a sliding window, so the policy does not apply to it.
    assert context.PolicyCache(policy, gemma).policy == DuoPolicy(scores=SCORES[1:])
    head_scores._load_scores.cache_clear()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 1.5}, r"share=1\.5: must be from 0 to 1"),
        ({"recent": 0}, "recent=0: must be at least 1"),
        ({"num_sinks": -1}, "num_sinks=-1: must be at least 0"),
        ({"scores": ((0.0, math.nan),)}, r"scores\[0\]=.*: must be one finite number per query head"),
        ({"scores": ((),)}, r"scores\[0\]=\(\): must be one finite number"),
    ],
)
def test_invalid_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        context.make("duo", **fields)


def test_scores_of_another_model_are_refused(tiny_llama):
    model = tiny_llama()
    with pytest.raises(ValueError, match="scores has 1 rows: must have 2, one for each layer"):
        context.PolicyCache(DuoPolicy(scores=SCORES[:1]), model)
    with pytest.raises(ValueError, match=r"scores\[0\] has 6 numbers: must have 4, one for each query head"):
        context.PolicyCache(DuoPolicy(scores=ROWS), model)
    for without in (DuoPolicy().select_heads, lambda heads: DuoPolicy().for_layer(0, heads)):
        with pytest.raises(ValueError, match="scores=None: pass the retrieval scores"):
            without(2)
