"""Tests of linear attention by the Taylor series against full attention."""

import pytest
import torch

from scrubjay.memory.linear.taylor import TaylorConfig


def oracle(layer, x):
    """Return a layer's outputs of one episode: attention with 1 + s + s^2 / 2 instead of exp."""
    normed_x, time = layer.norm(x), len(x)
    query, key = layer.query_key(normed_x).view(time, 2, layer.heads, -1).unbind(1)
    value = layer.value(normed_x).view(time, layer.heads, -1)
    s = torch.einsum("thd,ihd->hti", query, key) / query.shape[-1] ** 0.5
    weights = (1 + s + s.square() / 2).tril()
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    y = x + layer.out(torch.einsum("hti,ihd->thd", weights, value).reshape(time, -1))
    return y + layer.feed_forward(y)


@pytest.mark.parametrize("sizes", [{}, {"num_heads": 4, "feature_width": 3}], ids=str)
@torch.no_grad()
def test_the_linear_part_is_attention_by_the_series(sizes):
    torch.manual_seed(0)
    module = TaylorConfig(16, **sizes).build().double()
    x = 2 * torch.randn(2, 150, 16, dtype=torch.float64)
    start = torch.zeros(2, 150, dtype=torch.bool)
    start[0, 40] = start[1, 99] = True
    y, _ = module(x, module.initial_state(2), start)
    for row, border in ((0, 40), (1, 99)):
        for part in (slice(0, border), slice(border, 150)):
            expected = oracle(module.layers[0], x[row, part])
            torch.testing.assert_close(y[row, part], expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_weights_are_positive_so_that_what_is_read_lies_among_the_values():
    """No denominator is near zero, however large queries and keys are."""
    torch.manual_seed(0)
    module = TaylorConfig(16, num_heads=1).build().double()
    layer = module.layers[0]
    for scale in (0.0, 1.0, 10.0):
        layer.query_key.weight.normal_(std=scale)
        x = torch.randn(1, 300, 16, dtype=torch.float64)
        tokens, _ = layer._tokens(x, torch.float64)
        weights = tokens.query[0, :, 0] @ tokens.key[0, :, 0].T
        assert (weights > 0.499).all()
        _, state = module(x, module.initial_state(1))
        count = torch.einsum("bthf,bhf->bth", tokens.query, state["matrix_0"][..., -1])
        assert (count >= 150 * 0.999).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feature_width": 0}, "feature_width=0: must be at least 1"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim=16"),
        ({"feed_forward_ratio": 0}, "feed_forward_ratio=0: must be at least 1"),
    ],
)
def test_sizes_that_cannot_work_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TaylorConfig(16, **fields)
