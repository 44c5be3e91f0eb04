from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scrubjay.agents.teams.graph import DENSE_NODES, GraphAttention


def case(
    nodes: int, density: float, seed: int = 0, graphs: tuple[int, ...] = (2, 3)
) -> tuple[Tensor, Tensor]:
    """Return random graphs; node 0 hears no other node, and no other node hears node 1."""
    generator = torch.Generator().manual_seed(seed)
    hears = torch.rand(*graphs, nodes, nodes, generator=generator) < density
    hears[..., 0, :] = False
    hears[..., :, 1] = False
    x = torch.randn(*graphs, nodes, 8, generator=generator, dtype=torch.float64)
    return x, hears | torch.eye(nodes, dtype=torch.bool)


def layer() -> GraphAttention:
    torch.manual_seed(1)
    attention = GraphAttention(8, heads=2).double()
    torch.nn.init.normal_(attention.bias)
    return attention


def derivatives(path, attention: GraphAttention, x: Tensor, hears: Tensor | None) -> list[Tensor]:
    """Return outputs, gradients and second derivatives for input and parameters."""
    x = x.clone().requires_grad_()
    inputs = [x, attention.source.weight, attention.target.weight, attention.score, attention.bias]
    y = path(x, hears)
    first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(torch.stack([part.cos().sum() for part in first]).sum(), inputs)
    return [y, *first, *second]


@pytest.mark.parametrize("complete", [False, True])
def test_edges_and_pairs_give_the_same_up_to_second_derivatives(complete: bool) -> None:
    attention = layer()
    x, hears = case(5, density=0.4)
    dense, sparse = (
        derivatives(path, attention, x, None if complete else hears)
        for path in (attention.dense, attention.sparse)
    )
    for one, other in zip(dense, sparse, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_large_graphs_go_over_edges_and_small_ones_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = layer()
    expected = {}
    for nodes in (DENSE_NODES, DENSE_NODES + 1):
        x, hears = case(nodes, density=0.1, graphs=(1,))
        expected[nodes] = (
            x,
            hears,
            x + attention.scale * torch.nn.functional.silu(attention.dense(attention.norm(x), hears)),
        )
        torch.testing.assert_close(attention(x, hears), expected[nodes][2])
    monkeypatch.setattr(GraphAttention, "dense", None)
    x, hears, y = expected[DENSE_NODES + 1]
    torch.testing.assert_close(attention(x, hears), y)
    with pytest.raises(TypeError):
        attention(expected[DENSE_NODES][0], None)


def test_agrees_with_the_equation_written_out() -> None:
    """Compare with Brody et al. 2021, equations 3, 4 and 7, for one pair after the other."""
    attention = layer()
    x, hears = case(4, density=0.5, graphs=())
    output = torch.zeros(4, 2, 4, dtype=torch.float64)
    for i in range(4):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores, values = [], []
            for j in range(4):
                if hears[i, j]:
                    sources, targets = attention.source(x[j])[part], attention.target(x[i])[part]
                    pair = targets + sources
                    scores.append(attention.score[head] @ torch.where(pair > 0, pair, 0.2 * pair))
                    values.append(sources)
            output[i, head] = torch.softmax(torch.stack(scores), 0) @ torch.stack(values)
    torch.testing.assert_close(attention.dense(x, hears), output.flatten(1) + attention.bias)


def test_second_derivatives_agree_with_differences() -> None:
    attention = layer()
    x, hears = case(3, density=0.5, graphs=())
    assert torch.autograd.gradgradcheck(lambda x: attention(x, hears), [x.requires_grad_()])


def test_who_is_not_heard_has_no_influence() -> None:
    attention = layer()
    x, hears = case(5, density=1.0)  # nobody hears node 1, node 0 hears nobody
    y = attention(x, hears)
    changed_nodes = x.clone()
    changed_nodes[..., 1, :] += 1
    others = [0, 2, 3, 4]
    assert torch.equal(attention(changed_nodes, hears)[..., others, :], y[..., others, :])
    changed_nodes = x.clone()
    changed_nodes[..., 1:, :] += 1
    assert torch.equal(attention(changed_nodes, hears)[..., 0, :], y[..., 0, :])
    assert not torch.equal(attention(changed_nodes, hears)[..., 2, :], y[..., 2, :])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"graph_heads=3.*8"):
        GraphAttention(8, heads=3)
