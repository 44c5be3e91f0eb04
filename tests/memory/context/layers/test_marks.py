"""Token marks: the tokens that a policy reports as retained are those that later queries can read."""

from typing import Any

import pytest
import torch
from by_layer import BY_LAYER, close, pad, read
from test_contract import SMALL

from scrubjay.memory import context
from scrubjay.memory.context.layers.policy import FIRST, MARKS, add_marks, find_tokens

POLICIES = [*context.list_policies(), *BY_LAYER]
# Scores of `expected_attention` and summaries of `longheads` depend on the values, and `kvzip` reads again
# with a copy of its memories. `flexprefill` reports all tokens of a prompt that it has read sparsely.
OTHERS = ("expected_attention", "flexprefill", "kvzip", "longheads")
WITH_SHADOW = [name for name in POLICIES if name not in OTHERS]
pytestmark = [pytest.mark.requires("transformers"), pytest.mark.usefixtures("register_test_policies")]


class ShadowMemory:
    """Layer memory with a second memory of the same policy whose values are one-hot token numbers."""

    def __init__(self, layer):
        self.memory, self.shadow = layer.memory, layer.policy.build()
        self.shadow.layout = self.memory.layout
        self.weights = None

    def __getattr__(self, name):
        return getattr(self.memory, name)

    def attend(self, query, keys, values, step, scoring):
        number = torch.nn.functional.one_hot(step.time.clamp(min=0), 64) * (step.time >= 0)[..., None]
        number = number[:, None].expand(-1, keys.shape[1], -1, -1).to(values.dtype)
        weights = self.shadow.attend(query, keys, number.contiguous(), step, scoring)[:, :, -1]
        self.weights = weights.unflatten(1, (keys.shape[1], -1))
        return self.memory.attend(query, keys, values, step, scoring)

    def shrink(self, budget):
        self.memory.shrink(budget)
        self.shadow.shrink(budget)

    def settle(self):
        self.memory.settle()
        self.shadow.settle()


def read_and_record(policy, model, ids, cuts, mask=None):
    """Return the retained tokens and the last token's attention weights after each cut."""
    cache = context.PolicyCache(policy, model, track_tokens=True)
    layers: list[Any] = list(cache.attention_layers)
    for layer in layers:
        layer.memory = ShadowMemory(layer)
    records, begin = [], 0
    for end in cuts:
        options = {} if mask is None else {"attention_mask": mask[:, :end]}
        with torch.no_grad():
            model(ids[:, begin:end], cache=cache, **options)
        weights = {layer.index: layer.memory.weights for layer in layers}
        records.append((cache.get_retained_tokens(), weights))
        begin = end
    return records


@pytest.mark.one_in(3)
@pytest.mark.parametrize("cuts", [[20, *range(21, 41)], [1, 2, 3, 30, 31, 40], list(range(1, 41))])
@pytest.mark.parametrize("name", WITH_SHADOW)
def test_retained_tokens_are_those_that_are_read(name, cuts, tiny_llama, text):
    records = read_and_record(context.make(name, **SMALL[name]), tiny_llama(), text, cuts)
    for tokens_by_layer, weights in records:
        for layer, tokens in tokens_by_layer.items():
            reads = (weights[layer] > 0).any(dim=2)[..., : tokens.stored_mask.shape[-1]]
            # Tokens may be evicted right after they were read.
            assert torch.equal(tokens.read_mask, tokens.stored_mask & reads)
            assert not bool((tokens.fetched_mask & ~tokens.read_mask).any())
            torch.testing.assert_close(
                tokens.first_share.view(*weights[layer].shape[:3]), weights[layer][..., :FIRST].sum(-1)
            )
    for place, (tokens_by_layer, _) in enumerate(records):
        for _, weights in records[place + 1 :]:
            for layer, tokens in tokens_by_layer.items():
                later = (weights[layer] > 0).any(dim=2)[..., : tokens.stored_mask.shape[-1]]
                assert not bool((later & ~tokens.stored_mask).any())


@pytest.mark.parametrize("name", WITH_SHADOW)
def test_rows_of_different_lengths_have_their_own_tokens(name, tiny_llama, text):
    ids, mask = pad(text, 7)
    for tokens_by_layer, weights in read_and_record(
        context.make(name, **SMALL[name]), tiny_llama(), ids, [32, 33, 40], mask
    ):
        for layer, tokens in tokens_by_layer.items():
            reads = (weights[layer] > 0).any(dim=2)[..., : tokens.stored_mask.shape[-1]]
            assert not bool((tokens.read_mask & ~reads).any())
            assert torch.equal(tokens.read_mask, tokens.stored_mask & reads)


@pytest.mark.parametrize("name", POLICIES)
def test_marks_change_nothing_that_is_read(name, tiny_llama, text):
    model, policy, cuts = tiny_llama(), context.make(name, **SMALL[name]), [20, 21, 22, 30]
    plain = read(model, context.PolicyCache(policy, model), text, cuts)
    close(read(model, context.PolicyCache(policy, model, track_tokens=True), text, cuts), plain)


@pytest.mark.parametrize("name", POLICIES)
def test_a_marked_cache_comes_back_from_disk(name, tiny_llama, text, tmp_path):
    model, policy = tiny_llama(), context.make(name, **SMALL[name])
    cache = context.PolicyCache(policy, model, track_tokens=True)
    read(model, cache, text, [20, 21])
    cache.save(tmp_path / "cache")
    again = context.PolicyCache.load(tmp_path / "cache", policy, model)
    for each in (cache, again):
        read(model, each, text[:, :5])
    for layer, tokens in cache.get_retained_tokens().items():
        for mine, its in zip(tokens, again.get_retained_tokens()[layer], strict=True):
            torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_marks_are_exact(dtype):
    time = torch.tensor([[-1, 0, 3, 255, 256, 65_535, 65_536, 99_999]])
    values = add_marks(torch.zeros(1, 2, 8, 5, dtype=dtype), time)
    assert values.shape[-1] == 5 + MARKS
    assert values[0, 0, :, -1].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    for head in find_tokens(values, 100_000)[0]:
        assert head.nonzero().flatten().tolist() == time[0, 1:].tolist()
    # Tokens past the end of the text belong to a cropped text.
    assert find_tokens(values, 256)[0, 0].nonzero().flatten().tolist() == [0, 3, 255]


def test_a_cropped_text_is_not_kept(tiny_llama, text):
    model = tiny_llama()
    cache = context.PolicyCache(context.make("full"), model, track_tokens=True)
    read(model, cache, text)
    cache.crop(-30)
    read(model, cache, text[:, :2])
    assert cache.get_retained_tokens()[0].stored_mask.shape[-1] == 12
    assert bool(cache.get_retained_tokens()[0].stored_mask.all())


def test_a_cache_without_marks_raises(tiny_llama, text):
    model = tiny_llama()
    cache = context.PolicyCache(context.make("full"), model)
    read(model, cache, text)
    with pytest.raises(ValueError, match="track_tokens=True"):
        cache.get_retained_tokens()
    cache = context.PolicyCache(context.make("full"), model, track_tokens=True)
    with pytest.raises(ValueError, match="no token yet"):
        cache.get_retained_tokens()
