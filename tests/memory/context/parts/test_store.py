"""The store of chunks, wherever it lies: what was written is read, however it has grown since."""

import copy

import pytest
import torch

from scrubjay.memory.context.parts.store import ChunkStore, Places

BATCH, HEADS, SIZE, WIDTH = 2, 3, 4, 5


@pytest.mark.parametrize("in_order", [True, False], ids=["run", "places"])
@pytest.mark.parametrize("place", ["model", "cpu", "disk"])
def test_what_was_written_is_read_as_it_grows(place, in_order, tmp_path):
    text = torch.randn(BATCH, HEADS, 150, WIDTH)
    store = ChunkStore(place, str(tmp_path), text, SIZE)
    held = 0
    for length in (1, 2, 3, 1, 30, 1, 80, 32):
        new = text[:, :, held : held + length]
        if in_order:
            store.append(new, held)
        else:
            store.write(new, Places.of(torch.arange(held, held + length).expand(BATCH, -1)))
        held += length
        assert torch.equal(store.run(0, held), text[:, :, :held].flatten(0, 1))
    chunks = torch.randint(0, 150 // SIZE, (BATCH * HEADS, 6))
    token = (chunks[..., None] * SIZE + torch.arange(SIZE)).flatten(1)
    expected = text.flatten(0, 1).gather(1, token[..., None].expand(-1, -1, WIDTH))
    assert torch.equal(store.fetch(chunks).flatten(1, 2), expected)
    twin = copy.deepcopy(store)
    twin.append(torch.zeros_like(text), 0)
    store.reorder(torch.tensor([1, 0, 1]))
    assert torch.equal(store.run(0, held), text[[1, 0, 1]].flatten(0, 1))
    assert not twin.run(0, held).any()
    assert len(list(tmp_path.iterdir())) == 2 * (place == "disk")
