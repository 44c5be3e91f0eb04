"""The current chunk, stored by position: its scores and its state."""

import pytest
import torch

from scrubjay.memory.incremental.local_chunk import ChunkPositions, CurrentChunk, RecentSteps
from scrubjay.memory.sparse.local_chunk import OwnChunkAttention, score_own_chunk

DIM, SIZE = 12, 5


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return OwnChunkAttention(DIM, 2, SIZE).double()


@pytest.fixture
def recent():
    generator = torch.Generator().manual_seed(1)
    return {
        f"recent_{name}": torch.randn(3, SIZE, DIM, dtype=torch.float64, generator=generator)
        for name in ("keys", "values")
    }


@torch.no_grad()
@pytest.mark.parametrize("ages", [(5, 6, 7), (8, 9, 1234)])
def test_a_step_scores_its_chunk_and_rotates_queries_of_stored_chunks_further(ages, layer, recent):
    time = torch.tensor(ages)
    place = time % SIZE
    x = torch.randn(3, DIM, dtype=torch.float64)
    query, scores = CurrentChunk(layer, recent, time).append(
        layer.norm(x), ChunkPositions(layer).lookup(time.numpy()), num_rotations=2
    )
    tokens = layer.project(x[:, None], place[:, None], torch.float64)
    scale = (DIM // 2) ** -0.5
    torch.testing.assert_close(query[:, 0].view(3, 2, -1), tokens.query[:, 0] * scale)
    further = layer.rotate(tokens.query, SIZE)[:, 0]
    torch.testing.assert_close(query[:, 1].view(3, 2, -1), further * scale)
    keys = torch.cat([recent["recent_keys"], tokens.key.flatten(2)], dim=1)
    expected = score_own_chunk(tokens.query[:, 0], keys, place)
    for row, where in enumerate(place.tolist()):
        # Scores are oldest first, the present step last; later positions belong to the previous chunk.
        torch.testing.assert_close(scores[row, :, : where + 1], expected[row, :, SIZE - where :])
        assert (scores[row, :, where + 1 :] == float("-inf")).all()


@torch.no_grad()
def test_the_state_round_trips(layer, recent):
    time = torch.tensor([5, 7, 23])
    own = CurrentChunk(layer, recent, time)
    for rows in (torch.arange(3), torch.tensor([2, 0])):
        state = own.state(rows, RecentSteps.from_age(time[rows], SIZE))
        for name, value in recent.items():
            assert torch.equal(state[name], value[rows])
    own.clear(torch.tensor([1]))
    state = own.state(torch.tensor([1]), RecentSteps.from_age(time[1:2], SIZE))
    assert not any(value.any() for value in state.values())


def test_steps_before_the_episode_are_zero_in_the_state(layer, recent):
    time = torch.tensor([0, 2, 4])
    state = CurrentChunk(layer, recent, time).state(torch.arange(3), RecentSteps.from_age(time, SIZE))
    for name, value in recent.items():
        for row, age in enumerate(time.tolist()):
            assert not state[name][row, : SIZE - age].any()
            assert torch.equal(state[name][row, SIZE - age :], value[row, SIZE - age :])
