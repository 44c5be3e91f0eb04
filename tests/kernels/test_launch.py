"""Kernel launches as objects."""

import pytest
import torch

from scrubjay.kernels.launch import Launch, ensure_dense_rows


class Kernel:
    """Fake kernel that records its launches."""

    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        return lambda **arguments: self.calls.append((grid, arguments))


def test_a_launch_gives_the_kernel_its_grid_arguments_constants_and_options():
    kernel, x = Kernel(), torch.zeros(2)
    Launch(kernel, (3, 2), {"x": x, "N": 2}, {"BLOCK": 16}, num_warps=8, num_stages=1).run()
    ((grid, arguments),) = kernel.calls
    assert grid == (3, 2)
    assert arguments.pop("x") is x
    assert arguments == {"N": 2, "BLOCK": 16, "num_warps": 8, "num_stages": 1}


@pytest.mark.parametrize("grid", [(0,), (3, 0)])
def test_an_empty_grid_launches_nothing(grid):
    kernel = Kernel()
    Launch(kernel, grid, {"x": torch.zeros(0)}, {}).run()
    assert not kernel.calls


def test_rows_are_copied_only_where_they_are_not_dense():
    x = torch.randn(3, 4, 5)
    for dense in (x, x[:, ::2], x.transpose(0, 1), x[..., 1:4], x[..., :1]):
        assert ensure_dense_rows(dense) is dense
    transposed_rows = x.transpose(1, 2)
    assert torch.equal(ensure_dense_rows(transposed_rows), transposed_rows)
    assert ensure_dense_rows(transposed_rows).stride(-1) == 1
    assert ensure_dense_rows(x[..., ::2]).stride(-1) == 1
