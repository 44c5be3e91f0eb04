"""The chunk that is being filled, by places: what it scores and reads, and what a state has of it."""

import pytest
import torch

from scrubjay.memory.chosen.own import OwnChunkAttention, own_scores
from scrubjay.memory.stepping.own import Last, OwnChunk, Places

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
def test_a_step_scores_its_own_chunk_and_asks_stored_ones_a_chunk_further(ages, layer, recent):
    time = torch.tensor(ages)
    place = time % SIZE
    x = torch.randn(3, DIM, dtype=torch.float64)
    query, scores = OwnChunk(layer, recent, time).take(layer.norm(x), Places(layer).of(time.numpy()), turns=2)
    tokens = layer.tokens(x[:, None], place[:, None], torch.float64)
    scale = (DIM // 2) ** -0.5
    torch.testing.assert_close(query[:, 0].view(3, 2, -1), tokens.query[:, 0] * scale)
    further = layer.turned(tokens.query, SIZE)[:, 0]
    torch.testing.assert_close(query[:, 1].view(3, 2, -1), further * scale)
    keys = torch.cat([recent["recent_keys"], tokens.key.flatten(2)], dim=1)
    expected = own_scores(tokens.query[:, 0], keys, place)
    for row, where in enumerate(place.tolist()):
        # Oldest first, the present one last; what lies behind it is of the chunk before.
        torch.testing.assert_close(scores[row, :, : where + 1], expected[row, :, SIZE - where :])
        assert (scores[row, :, where + 1 :] == float("-inf")).all()


@torch.no_grad()
def test_what_goes_in_comes_out(layer, recent):
    time = torch.tensor([5, 7, 23])
    own = OwnChunk(layer, recent, time)
    for rows in (torch.arange(3), torch.tensor([2, 0])):
        state = own.state(rows, Last.at(time[rows], SIZE))
        for name, value in recent.items():
            assert torch.equal(state[name], value[rows])
    own.forget(torch.tensor([1]))
    state = own.state(torch.tensor([1]), Last.at(time[1:2], SIZE))
    assert not any(value.any() for value in state.values())


def test_of_a_young_episode_only_what_there_was_is_told(layer, recent):
    time = torch.tensor([0, 2, 4])
    state = OwnChunk(layer, recent, time).state(torch.arange(3), Last.at(time, SIZE))
    for name, value in recent.items():
        for row, age in enumerate(time.tolist()):
            assert not state[name][row, : SIZE - age].any()
            assert torch.equal(state[name][row, SIZE - age :], value[row, SIZE - age :])
