"""Room ahead of a growing cache: as if everything were copied each time, and it is not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory import context
from scrubjay.memory.context.parts.room import BLOCK, append, columns_of_room, shrink

LENGTHS = st.lists(st.integers(1, 2 * BLOCK), min_size=1, max_size=6)


@given(lengths=LENGTHS, most=st.integers(1, 4 * BLOCK))
def test_room_for_no_more_than_most_has_zeros_behind(lengths, most):
    room, held = None, 0
    for length in lengths:
        room = append(room, held, torch.ones(1, 2, length), most)
        held += length
        assert room.shape[2] == columns_of_room(held, most) <= max(most, held)
        assert room[:, :, :held].all()
        assert not room[:, :, held:].any()


@given(lengths=LENGTHS, cut=st.floats(0, 1))
def test_room_holds_what_was_written_and_is_as_large_as_it_says(lengths, cut):
    room, held, written = None, 0, []
    for length in lengths:
        written.append(torch.rand(2, 1, length, 3))
        room = append(room, held, written[-1])
        held += length
        assert torch.equal(room[:, :, :held], torch.cat(written, dim=2))
        assert room.shape[2] == columns_of_room(held) < held + BLOCK
    assert room is not None
    left = int(cut * held)
    less = shrink(room, left)
    assert torch.equal(less[:, :, :left], room[:, :, :left])
    assert less.untyped_storage().nbytes() == less.nbytes == columns_of_room(left) * 2 * 3 * 4


@pytest.mark.parametrize("name", ["full", "recycled", "h2o"])
@torch.no_grad()
def test_a_token_leaves_the_others_where_they_lie(name, tiny_llama):
    model = tiny_llama()
    cache = context.PolicyCache(context.make(name), model)
    model(torch.arange(2, 42)[None], cache=cache)
    held = [layer.memory.state["values"].data_ptr() for layer in cache.attending]
    for token in range(42, 62):
        model(torch.tensor([[token]]), cache=cache)
    assert [layer.memory.state["values"].data_ptr() for layer in cache.attending] == held


@pytest.mark.parametrize("name", ["full", "recycled", "h2o"])
def test_gradients_of_a_text_outlive_the_tokens_after_it(name, tiny_llama):
    model, ids = tiny_llama(), torch.arange(2, 34)[None]
    cache = context.PolicyCache(context.make(name), model)
    loss = model(ids, cache=cache).logits[:, -1].square().sum()
    with torch.no_grad():
        model(ids[:, :1], cache=cache)
    given = torch.autograd.grad(loss, model.model.embed_tokens.weight)[0]
    loss = model(ids, cache=context.PolicyCache(context.make(name), model)).logits[:, -1].square().sum()
    torch.testing.assert_close(given, torch.autograd.grad(loss, model.model.embed_tokens.weight)[0])
