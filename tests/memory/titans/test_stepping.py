"""Titans in place: a stepper may be made in the middle of a chunk."""

import torch

from scrubjay import memory


def test_a_chunk_may_be_cut_anywhere(check_stepper):
    module = memory.make("titans", dim=16, chunk_size=5, num_heads=2, read_before_write=False).double()
    x = torch.randn(3, 60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_stepper(module, x)
