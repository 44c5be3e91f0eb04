"""Stepper of HCAM: chunks with equal summaries are selected as in its steps."""

import pytest
import torch

from scrubjay import memory


@pytest.mark.parametrize("rows", [3, 120])
def test_the_earlier_of_two_equal_summaries_is_read(rows, check_stepper):
    """Few rows use exact scores; many use those of a product, and exact ones where these are close."""
    module = memory.make("hcam", dim=16, chunk_size=2, num_chunks=6, top_k=2).double()
    x = torch.randn(rows, 60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # Every second chunk is the previous one reversed: different contents with the same mean.
    x = torch.cat([x[:, :2], x[:, :2].flip(1)], dim=1).repeat(1, 15, 1)
    check_stepper(module, x)
