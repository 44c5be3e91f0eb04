"""HCAM in place: chunks of equal summaries are chosen as by its steps."""

import pytest
import torch

from scrubjay import memory


@pytest.mark.parametrize("rows", [3, 120])
def test_of_equal_summaries_the_earlier_is_read(rows, check_stepper):
    """Few rows by exact scores at once, many by those of a product and where these are close."""
    module = memory.make("hcam", dim=16, chunk_size=2, num_chunks=6, top_k=2).double()
    x = torch.randn(rows, 60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # Every second chunk is the one before backwards: another content, the same mean.
    x = torch.cat([x[:, :2], x[:, :2].flip(1)], dim=1).repeat(1, 15, 1)
    check_stepper(module, x)
