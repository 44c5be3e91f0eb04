"""FlexPrefill: a sparse reading of the prompt, in front of the cache of another policy."""

from typing import Any

import pytest
import torch
from by_layer import SMALL, close, pad, read
from families import make
from transformers import DynamicCache

from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache
from scrubjay.memory.context.policies.block_sparse import choose_blocks
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.flexprefill import FlexPrefillPolicy

pytestmark = pytest.mark.requires("transformers")

SPARSE: dict[str, Any] = {"block": 4, "gamma": 0.5, "min_budget": 4}
READERS = [
    name
    for name in context.list_policies()
    if name in SMALL and context.make(name, **SMALL[name]).reads_whole
]
SNAPKV = context.make("snapkv", budget=12, window=4, num_sinks=2)


def read_prompt(policy, rows: Any, valid=None, scoring=None):
    return policy.read_prompt(*rows, valid, scoring or Scoring(0.4))


def make_heads(tokens, rows=1, dtype=torch.float64, heads=(4, 2, 2)):
    generator = torch.Generator().manual_seed(tokens)
    return [2 * torch.randn(rows, n, tokens, 8, generator=generator, dtype=dtype) for n in heads]


def attend_slowly(query, keys, values, policy, scale):
    """Return the attention of one row under the mask of its blocks, with one softmax over all tokens."""
    blocks = choose_blocks(query, keys, policy.block, policy.gamma, policy.tau, 1, Scoring(scale))
    mask = blocks.repeat_interleave(policy.block, 1).repeat_interleave(policy.block, 2)
    tokens = query.shape[1]
    mask = mask[:, :tokens, :tokens].tril()
    assert not mask.equal(torch.ones_like(mask).tril())
    keys, values = (x.repeat_interleave(len(query) // len(x), dim=0) for x in (keys, values))
    scores = (scale * query @ keys.mT).masked_fill(~mask, -float("inf"))
    return torch.softmax(scores, dim=-1) @ values


@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("tokens", [24, 27])
def test_a_prompt_is_read_under_the_mask_of_its_blocks(tokens, tau):
    policy = FlexPrefillPolicy(tau=tau, **SPARSE)
    rows = make_heads(tokens, rows=2)
    out = read_prompt(policy, rows)
    for row in range(2):
        query, keys, values = (x[row] for x in rows)
        torch.testing.assert_close(out[row], attend_slowly(query, keys, values, policy, 0.4))


def test_padding_changes_nothing():
    policy = FlexPrefillPolicy(**SPARSE)
    rows = make_heads(30, rows=3)
    valid = torch.arange(30) >= torch.tensor([[0], [7], [23]])  # the last row is short enough for one call
    out = read_prompt(policy, rows, valid)
    for row, padding in enumerate((0, 7, 23)):
        own = read_prompt(policy, [x[row : row + 1, :, padding:] for x in rows])
        torch.testing.assert_close(out[row, :, padding:], own[0])
        assert not out[row, :, :padding].any()


@pytest.mark.parametrize("scoring", [Scoring(0.4, cap=2.0), Scoring(0.4, sinks=torch.zeros(4).double())])
def test_soft_caps_and_learned_sinks_are_read_by_dense_attention(scoring):
    rows = make_heads(30)
    out = read_prompt(FlexPrefillPolicy(**SPARSE), rows, scoring=scoring)
    torch.testing.assert_close(out, read_prompt(FlexPrefillPolicy(gamma=1.0), rows, scoring=scoring))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reads_as_float64_if_all_blocks_are_read(dtype):
    policy = FlexPrefillPolicy(block=4, gamma=1 - 1e-9, min_budget=4)
    rows = make_heads(26, dtype=dtype)
    out = read_prompt(policy, rows)
    exact = read_prompt(policy, [x.double() for x in rows])
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, atol=0.02, rtol=0.02)


def test_gamma_one_is_the_inner_policy(tiny_llama, text):
    model = tiny_llama()
    policy = FlexPrefillPolicy(SNAPKV, block=4, gamma=1, min_budget=4)
    cuts = [30, 31, 32]
    expected = read(model, PolicyCache(SNAPKV, model), text, cuts)
    close(read(model, PolicyCache(policy, model), text, cuts), expected)
    sparse = FlexPrefillPolicy(SNAPKV, **SPARSE)
    assert (read(model, PolicyCache(sparse, model), text, cuts) - expected).abs().max() > 1e-3


def test_a_short_prompt_and_later_calls_are_dense(tiny_llama, text):
    model = tiny_llama()
    policy = FlexPrefillPolicy(**SPARSE)
    assert policy.longest_dense == 8
    assert FlexPrefillPolicy().longest_dense == 1024
    expected = read(model, DynamicCache(config=model.config), text)
    for cuts in ([8], [1, 2, 3], [5, 30]):
        close(read(model, PolicyCache(policy, model), text, cuts), expected)
    assert (read(model, PolicyCache(policy, model), text, [9]) - expected).abs().max() > 1e-3


def test_the_cache_is_that_of_the_inner_policy(tiny_llama, text, tmp_path):
    model, path = tiny_llama(), tmp_path / "cache.safetensors"
    policy = FlexPrefillPolicy(SNAPKV, **SPARSE)
    cache = PolicyCache(policy, model)
    read(model, cache, text[:, :30])
    assert cache.nbytes() == SNAPKV.nbytes(30, cache.shape()) == policy.nbytes(30, cache.shape())
    cache.save(path)
    rest = text[:, 30:]
    expected = read(model, cache, rest, [1, 2])
    for loader in (SNAPKV, policy):
        close(read(model, PolicyCache.load(path, loader, model), rest, [1, 2]), expected)


def test_layers_with_windows_are_dense(text):
    """The layers of Gemma 3 up to its first one with full attention cache the same tokens."""
    model: Any = make("gemma3")
    ids, mask = pad(text, 9)
    dense = read(model, PolicyCache(context.make("full"), model), ids, mask=mask)
    cache: Any = PolicyCache(FlexPrefillPolicy(**SPARSE), model)
    sparse = read(model, cache, ids, mask=mask)
    assert not torch.equal(sparse, dense)
    first = next(index for index, layer in enumerate(cache.layers) if layer.sees_everything)
    full: Any = PolicyCache(context.make("full"), model)
    read(model, full, ids, mask=mask)
    for index in range(first + 1):  # the inputs of these layers do not depend on any sparse layer
        ours, theirs = (each.layers[index].memory.state_dict() for each in (cache, full))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", READERS)
def test_each_policy_that_reads_whole_can_follow(name, tiny_llama, text):
    model = tiny_llama()
    policy = FlexPrefillPolicy(context.make(name, **SMALL[name]), **SPARSE)
    cache = PolicyCache(policy, model)
    assert torch.isfinite(read(model, cache, text)).all()
    most = policy.nbytes(40, cache.shape())
    assert cache.nbytes() == most if policy.exact_bytes else cache.nbytes() <= most
    assert torch.isfinite(read(model, cache, text[:, :3], [1, 2])).all()


def test_a_name_gets_its_default_budget_and_weights(tiny_llama):
    model = tiny_llama()
    assert PolicyCache(context.make("flexprefill", policy="snapkv"), model).policy.inner == context.make(
        "snapkv", budget=512
    )
    with pytest.raises(ValueError, match="KVzapPolicy needs trained weights"):
        PolicyCache(context.make("flexprefill", policy="kvzap"), model)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gamma": 0}, "gamma=0"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"tau": -0.1}, "tau=-0.1"),
        ({"block": 0}, "block=0"),
        ({"min_budget": 0}, "min_budget=0"),
        ({"policy": "chunks"}, "ChunksPolicy.*does not read a prompt by full attention"),
        ({"policy": "flexprefill"}, "FlexPrefillPolicy.*does not read a prompt by full attention"),
        ({"policy": "snap"}, "snap"),
    ],
)
def test_wrong_fields_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        context.make("flexprefill", **fields)


def test_a_policy_that_is_no_policy_is_refused():
    with pytest.raises(TypeError, match="pass a policy"):
        FlexPrefillPolicy(policy=3)  # pyright: ignore[reportArgumentType]
