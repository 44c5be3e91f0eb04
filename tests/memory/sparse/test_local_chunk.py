"""Tests of own-chunk attention against a softmax over each query's steps."""

import pytest
import torch

from scrubjay.memory.sparse.local_chunk import OwnChunkAttention, attend_own_chunk


@pytest.mark.parametrize("chunk_size", [1, 3, 20])
@pytest.mark.parametrize("time", [1, 7, 50])
def test_each_step_reads_its_chunk_up_to_itself(chunk_size, time):
    torch.manual_seed(0)
    batch, heads, width = 3, 2, 4
    query = torch.randn(batch, time, heads, width, dtype=torch.float64)
    keys, values = torch.randn(2, batch, chunk_size + time, heads * width, dtype=torch.float64)
    age = torch.tensor([0, 1, 11])[:, None]
    place = (age + torch.arange(time)) % chunk_size
    read, lse = attend_own_chunk(query, keys, values, place, chunk_size)
    for row in range(batch):
        for t in range(time):
            end = chunk_size + t + 1
            visible = slice(end - 1 - int(place[row, t]), end)
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = keys[row, visible, part] @ query[row, t, head] / width**0.5
                expected = torch.softmax(scores, dim=0) @ values[row, visible, part]
                torch.testing.assert_close(read[row, t, head], expected)
                torch.testing.assert_close(lse[row, t, head], scores.logsumexp(0))


@pytest.mark.parametrize("dim", [16, 22])
def test_a_product_depends_on_the_distance_of_places_alone(dim):
    torch.manual_seed(0)
    module = OwnChunkAttention(dim, 2, chunk_size=9).double()
    query, key = torch.randn(2, 2, dim // 2, dtype=torch.float64)

    def product(there, here):
        return (module.rotate(query, here) * module.rotate(key, there)).sum(-1)

    torch.testing.assert_close(product(0, 3), product(6, 9), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(product(0, 3), product(0, 4))
    torch.testing.assert_close(
        module.rotate(module.rotate(query, 4), 5), module.rotate(query, 9), rtol=1e-5, atol=1e-5
    )
