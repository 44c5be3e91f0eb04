"""Reductions of masks that are computed on bytes equal those on booleans."""

import pytest
import torch

from scrubjay.kernels.retrieval.problem import all_true, any_along


def masks() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    few = torch.rand(3, 5, 7, generator=generator) < 0.1
    return [
        few,
        few[:, :1].expand(3, 5, 7),
        few[:, :, 2:5],
        few.transpose(0, 2),
        few[:1, :1].expand(4, 6, 7),
        torch.ones(2, 3, 4, dtype=torch.bool),
        torch.ones(1, 1, 1, dtype=torch.bool).expand(2, 3, 4),
        torch.ones(2, 3, 0, dtype=torch.bool),
        torch.ones(0, 3, 4, dtype=torch.bool),
    ]


@pytest.mark.parametrize("mask", masks())
def test_any_and_all_of_any_layout(mask):
    for dim in (-1, 0, 1, (0, 1), (1, 2)):
        assert torch.equal(any_along(mask, dim), mask.any(dim=dim))
    assert all_true(mask) == bool(mask.all())
    assert all_true(~mask) == bool((~mask).all())


def test_a_compiled_graph_uses_the_plain_reduction():
    compiled_any = torch.compile(lambda mask: any_along(mask, 1), fullgraph=True, backend="eager")
    mask = masks()[0]
    assert torch.equal(compiled_any(mask), mask.any(dim=1))
