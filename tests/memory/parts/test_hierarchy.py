"""HCAM's read against published reference numbers, and the dense read against the selective one."""

import math

import pytest
import torch

from scrubjay.memory.hcam import weigh
from scrubjay.memory.parts import hierarchy
from scrubjay.memory.parts.hierarchy import ReadWeights, hierarchical_attention
from scrubjay.memory.parts.layers import sinusoids


def golden():
    """Return inputs and weights of a published run of the reference read path."""

    def wave(shape, offset):
        count = math.prod(shape)
        return torch.sin(0.37 * torch.arange(count, dtype=torch.float64) + offset).view(shape)

    contents = wave((2, 5, 4, 8), 0.2)
    order = [
        "summary_key",
        "summary_query",
        "key_bias",
        "key",
        "out_bias",
        "out",
        "query_bias",
        "query",
        "value_bias",
        "value",
    ]
    weights = ReadWeights(
        **{
            name: 0.5 * wave((8,) if name.endswith("bias") else (8, 8), 0.5 + 0.1 * i)
            for i, name in enumerate(order)
        }
    )
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[0, 0, 1:] = False
    mask[0, 1, 3] = False
    mask[1, 2] = False
    return wave((2, 3, 8), 0.1), contents.mean(dim=2), contents, mask, weights


POSITIONS = sinusoids(torch.arange(4), 8).flip(0)


def test_read_path_agrees_with_the_reference_implementation():
    queries, keys, contents, mask, weights = golden()
    out = hierarchical_attention(queries, keys, contents, mask, weights, POSITIONS, top_k=2, num_heads=2)
    expected = {
        (0, 0): [0.473348, 0.625912, 0.693762, 0.667714, 0.551295, 0.360260, 0.120465, -0.135633],
        (0, 1): [0.479695, 0.635287, 0.704897, 0.679101],
        (1, 1): [0.466612, 0.614794, 0.679765, 0.652734],
    }
    for place, values in expected.items():
        expected_values = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(out[place][: len(values)], expected_values, rtol=0, atol=1e-5)
    # The reference leaks through a fully masked row; ours returns zeros.
    assert (out[1, 2] == 0).all()


def test_read_ignores_the_order_of_chunks_and_position_matters():
    queries, keys, contents, mask, weights = golden()
    order = torch.tensor([3, 0, 4, 1, 2])
    out = hierarchical_attention(queries, keys, contents, mask, weights, POSITIONS, top_k=5)
    other_out = hierarchical_attention(
        queries, keys[:, order], contents[:, order], mask[..., order], weights, POSITIONS, top_k=5
    )
    torch.testing.assert_close(other_out, out)
    flat = hierarchical_attention(queries, keys, contents, mask, weights, top_k=5)
    assert (flat - out).abs().max() > 1e-2
    within = contents.flip(2)
    torch.testing.assert_close(hierarchical_attention(queries, keys, within, mask, weights, top_k=5), flat)


@pytest.mark.parametrize("top_k", [2, 5])
@pytest.mark.parametrize("position", [False, True])
def test_few_chunks_and_many_are_read_alike(top_k, position, monkeypatch):
    """Compare outputs and gradients, also into the store, of the dense read and the selective read."""
    queries, keys, contents, mask, weights = golden()
    queries = torch.cat([queries, queries.flip(1) * 2], dim=1)
    mask = torch.cat([mask, ~mask], dim=1)
    tensors = [queries, keys, contents, *weights]
    arguments = [tensor.clone().requires_grad_() for tensor in tensors]
    results = []
    for few in (True, False):
        monkeypatch.setattr(hierarchy, "_is_dense_cheaper", lambda *_, few=few: few)
        out = hierarchical_attention(
            arguments[0],
            arguments[1],
            arguments[2],
            mask,
            ReadWeights(*arguments[3:]),
            POSITIONS if position else None,
            top_k=top_k,
            num_heads=2,
            stop_memory_gradient=False,
        )
        slope = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append([out, *torch.autograd.grad(out, arguments, slope, allow_unused=True)])
    assert sum(tensor is None for tensor in results[0]) == 1  # the key bias
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_position_table_matches_the_reference_layout():
    table = sinusoids(torch.arange(4), 8).float().flip(0)
    oldest = [0.14112, 0.29552, 0.029996, 0.003, -0.989992, 0.955336, 0.99955, 0.999996]
    torch.testing.assert_close(table[0], torch.tensor(oldest), rtol=0, atol=1e-5)
    assert table[-1].tolist() == [0.0] * 4 + [1.0] * 4


@pytest.mark.parametrize("top_k", [1, 3, 9])
def test_weights_give_the_read_output(top_k):
    """With identity value projections the read is the weighted sum of the steps."""
    generator = torch.Generator().manual_seed(top_k)
    queries, keys, contents = (
        torch.randn(*shape, 8, generator=generator, dtype=torch.float64)
        for shape in ((2, 5), (2, 6), (2, 6, 3))
    )
    mask = torch.rand(2, 5, 6, generator=generator) < 0.7
    mask[0, 0] = False
    square = [torch.randn(8, 8, generator=generator, dtype=torch.float64) for _ in range(4)]
    identity = torch.eye(8, dtype=torch.float64)
    summary_key, summary_query, key, query = square
    weights = ReadWeights(summary_key, summary_query, key, query, identity, identity, query_bias=key[0])
    for heads in (1, 2):
        arguments = queries, keys, contents, mask, weights, None
        shares = weigh(*arguments, top_k, heads).unflatten(-2, (6,))
        by_head = contents.unflatten(-1, (heads, -1))
        read = torch.einsum("bthmc,bmche->bthe", shares, by_head).flatten(2)
        torch.testing.assert_close(read, hierarchical_attention(*arguments, top_k=top_k, num_heads=heads))
        assert int((shares.sum(dim=(2, 4)) > 0).sum(-1).max()) == min(top_k, 6)
