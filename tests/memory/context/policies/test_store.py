"""Chunk store on every device: written tokens are read back while the store grows."""

import copy

import pytest
import torch

from scrubjay.memory.context.policies.store import ChunkStore, TokenPlaces

BATCH, HEADS, SIZE, WIDTH = 2, 3, 4, 5


@pytest.mark.parametrize("in_order", [True, False], ids=["range", "indices"])
@pytest.mark.parametrize("place", ["model", "cpu", "disk"])
def test_stored_tokens_are_read_back_as_the_store_grows(place, in_order, tmp_path):
    text = torch.randn(BATCH, HEADS, 150, WIDTH)
    store = ChunkStore(place, str(tmp_path), text, SIZE)
    count = 0
    for length in (1, 2, 3, 1, 30, 1, 80, 32):
        new = text[:, :, count : count + length]
        if in_order:
            store.append(new, count)
        else:
            store.write(new, TokenPlaces.from_times(torch.arange(count, count + length).expand(BATCH, -1)))
        count += length
        assert torch.equal(store.read_range(0, count), text[:, :, :count].flatten(0, 1))
    chunks = torch.randint(0, 150 // SIZE, (BATCH * HEADS, 6))
    token = (chunks[..., None] * SIZE + torch.arange(SIZE)).flatten(1)
    expected = text.flatten(0, 1).gather(1, token[..., None].expand(-1, -1, WIDTH))
    assert torch.equal(store.fetch(chunks).flatten(1, 2), expected)
    clone = copy.deepcopy(store)
    clone.append(torch.zeros_like(text), 0)
    store.reorder(torch.tensor([1, 0, 1]))
    assert torch.equal(store.read_range(0, count), text[[1, 0, 1]].flatten(0, 1))
    assert not clone.read_range(0, count).any()
    assert len(list(tmp_path.iterdir())) == 2 * (place == "disk")
