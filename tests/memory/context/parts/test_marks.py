"""Marked caches: what every policy says it keeps is what its queries go on to read, and nothing else."""

from typing import Any

import pytest
import torch
from by_layer import BY_LAYER, close, pad, read
from test_contract import SMALL

from scrubjay.memory import context
from scrubjay.memory.context.parts.marks import FIRST, MARKS, marked, tokens_of

POLICIES = [*context.list_policies(), *BY_LAYER]
pytestmark = pytest.mark.usefixtures("registered")


class Shadowed:
    """A layer's memory, and another one of the policy that reads tokens' numbers in place of their values."""

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


def looked_at(policy, model, ids, cuts, mask=None):
    """Return what is kept after each of the cuts, and what the last token before it read."""
    cache = context.PolicyCache(policy, model, marked=True)
    layers: list[Any] = list(cache.attending)
    for layer in layers:
        layer.memory = Shadowed(layer)
    found, begin = [], 0
    for end in cuts:
        given = {} if mask is None else {"attention_mask": mask[:, :end]}
        with torch.no_grad():
            model(ids[:, begin:end], cache=cache, **given)
        weights = {layer.index: layer.memory.weights for layer in layers}
        found.append((cache.kept(), weights))
        begin = end
    return found


@pytest.mark.parametrize("cuts", [[20, *range(21, 41)], [1, 2, 3, 30, 31, 40], list(range(1, 41))])
@pytest.mark.parametrize("name", POLICIES)
def test_what_is_kept_is_what_is_read(name, cuts, tiny_llama, text):
    found = looked_at(context.make(name, **SMALL[name]), tiny_llama(), text, cuts)
    for kept, weights in found:
        for layer, held in kept.items():
            reads = (weights[layer] > 0).any(dim=2)[..., : held.held.shape[-1]]
            # What was read may have been dropped right after.
            assert torch.equal(held.read, held.held & reads)
            assert not bool((held.fetched & ~held.read).any())
            torch.testing.assert_close(
                held.to_first.view(*weights[layer].shape[:3]), weights[layer][..., :FIRST].sum(-1)
            )
    for place, (kept, _) in enumerate(found):
        for _, weights in found[place + 1 :]:
            for layer, held in kept.items():
                later = (weights[layer] > 0).any(dim=2)[..., : held.held.shape[-1]]
                assert not bool((later & ~held.held).any())


@pytest.mark.parametrize("name", POLICIES)
def test_rows_of_unlike_length_tell_their_own(name, tiny_llama, text):
    ids, mask = pad(text, 7)
    for kept, weights in looked_at(context.make(name, **SMALL[name]), tiny_llama(), ids, [32, 33, 40], mask):
        for layer, held in kept.items():
            reads = (weights[layer] > 0).any(dim=2)[..., : held.held.shape[-1]]
            assert not bool((held.read & ~reads).any())
            assert torch.equal(held.read, held.held & reads)


@pytest.mark.parametrize("name", POLICIES)
def test_marks_change_nothing_that_is_read(name, tiny_llama, text):
    model, policy, cuts = tiny_llama(), context.make(name, **SMALL[name]), [20, 21, 22, 30]
    plain = read(model, context.PolicyCache(policy, model), text, cuts)
    close(read(model, context.PolicyCache(policy, model, marked=True), text, cuts), plain)


@pytest.mark.parametrize("name", POLICIES)
def test_a_marked_cache_comes_back_from_disk(name, tiny_llama, text, tmp_path):
    model, policy = tiny_llama(), context.make(name, **SMALL[name])
    cache = context.PolicyCache(policy, model, marked=True)
    read(model, cache, text, [20, 21])
    cache.save(tmp_path / "cache")
    again = context.PolicyCache.load(tmp_path / "cache", policy, model)
    for of in (cache, again):
        read(model, of, text[:, :5])
    for layer, kept in cache.kept().items():
        for mine, its in zip(kept, again.kept()[layer], strict=True):
            torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_marks_are_exact(dtype):
    time = torch.tensor([[-1, 0, 3, 255, 256, 65_535, 65_536, 99_999]])
    values = marked(torch.zeros(1, 2, 8, 5, dtype=dtype), time)
    assert values.shape[-1] == 5 + MARKS
    assert values[0, 0, :, -1].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    for head in tokens_of(values, 100_000)[0]:
        assert head.nonzero().flatten().tolist() == time[0, 1:].tolist()
    # What lies behind the text's end is of a text that was cropped.
    assert tokens_of(values, 256)[0, 0].nonzero().flatten().tolist() == [0, 3, 255]


def test_a_cropped_text_is_not_kept(tiny_llama, text):
    model = tiny_llama()
    cache = context.PolicyCache(context.make("full"), model, marked=True)
    read(model, cache, text)
    cache.crop(-30)
    read(model, cache, text[:, :2])
    assert cache.kept()[0].held.shape[-1] == 12
    assert bool(cache.kept()[0].held.all())


def test_who_has_no_marks_says_so(tiny_llama, text):
    model = tiny_llama()
    cache = context.PolicyCache(context.make("full"), model)
    read(model, cache, text)
    with pytest.raises(ValueError, match="marked=True"):
        cache.kept()
    cache = context.PolicyCache(context.make("full"), model, marked=True)
    with pytest.raises(ValueError, match="no token yet"):
        cache.kept()
