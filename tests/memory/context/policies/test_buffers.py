"""Buffers give the results of a copy at each step; eviction keeps the best columns in order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory import context
from scrubjay.memory.context.policies.buffers import (
    BLOCK,
    append,
    compute_capacity,
    drop_worst,
    gather_columns,
    keep_best,
    shrink,
)

LENGTHS = st.lists(st.integers(1, 2 * BLOCK), min_size=1, max_size=6)


@given(lengths=LENGTHS, most=st.integers(1, 4 * BLOCK))
def test_capacity_is_limited_and_unused_columns_are_zero(lengths, most):
    buffer, count = None, 0
    for length in lengths:
        buffer = append(buffer, count, torch.ones(1, 2, length), most)
        count += length
        assert buffer.shape[2] == compute_capacity(count, most) <= max(most, count)
        assert buffer[:, :, :count].all()
        assert not buffer[:, :, count:].any()


@given(lengths=LENGTHS, cut=st.floats(0, 1))
def test_the_buffer_holds_the_inputs_and_has_the_stated_capacity(lengths, cut):
    buffer, count, inputs = None, 0, []
    for length in lengths:
        inputs.append(torch.rand(2, 1, length, 3))
        buffer = append(buffer, count, inputs[-1])
        count += length
        assert torch.equal(buffer[:, :, :count], torch.cat(inputs, dim=2))
        assert buffer.shape[2] == compute_capacity(count) < count + BLOCK
    assert buffer is not None
    left = int(cut * count)
    less = shrink(buffer, left)
    assert torch.equal(less[:, :, :left], buffer[:, :, :left])
    assert less.untyped_storage().nbytes() == less.nbytes == compute_capacity(left) * 2 * 3 * 4


@pytest.mark.parametrize("name", ["full", "recycled", "refreshkv", "h2o"])
@torch.no_grad()
def test_a_new_token_does_not_copy_the_others(name, tiny_llama):
    model = tiny_llama()
    cache = context.PolicyCache(context.make(name), model)
    model(torch.arange(2, 42)[None], cache=cache)
    addresses = [layer.memory.state["values"].data_ptr() for layer in cache.attention_layers]
    for token in range(42, 62):
        model(torch.tensor([[token]]), cache=cache)
    assert [layer.memory.state["values"].data_ptr() for layer in cache.attention_layers] == addresses


@pytest.mark.parametrize("name", ["full", "recycled", "refreshkv", "h2o"])
def test_gradients_of_a_text_outlive_the_tokens_after_it(name, tiny_llama):
    model, ids = tiny_llama(), torch.arange(2, 34)[None]
    cache = context.PolicyCache(context.make(name), model)
    loss = model(ids, cache=cache).logits[:, -1].square().sum()
    with torch.no_grad():
        model(ids[:, :1], cache=cache)
    gradient = torch.autograd.grad(loss, model.model.embed_tokens.weight)[0]
    loss = model(ids, cache=context.PolicyCache(context.make(name), model)).logits[:, -1].square().sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, model.model.embed_tokens.weight)[0])


@st.composite
def worths(draw):
    """Draw scores, many of them equal and some infinite, and the number of columns to keep."""
    columns = draw(st.integers(2, 40))
    worth = st.sampled_from([-1.0, 0.0, 0.5, 2.0, float("inf")])
    rows = draw(st.lists(st.lists(worth, min_size=columns, max_size=columns), min_size=4, max_size=4))
    return torch.tensor(rows).view(2, 2, columns), draw(st.integers(1, columns - 1))


@given(worths())
def test_the_worst_go_and_the_rest_stay_in_order(case):
    worth, most = case
    best_columns = drop_worst(worth, most)
    assert torch.equal(best_columns, keep_best(worth, torch.tensor([most, most]), most))
    for row, columns in zip(worth.flatten(0, 1).tolist(), best_columns.flatten(0, 1).tolist(), strict=True):
        ranking = sorted(range(len(row)), key=lambda column: (-row[column], column))
        assert columns == sorted(ranking[:most])


def test_each_head_takes_its_own():
    table = torch.randn(2, 3, 7, 4)
    columns = torch.randint(0, 7, (2, 3, 5))
    gathered_columns = gather_columns(table, columns)
    assert torch.equal(gathered_columns, table.gather(2, columns[..., None].expand(-1, -1, -1, 4)))
