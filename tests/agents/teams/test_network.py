"""The shared network of actors and critics: memory streams per agent and graph attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from scrubjay.agents.rl.encoders.observation import ADJACENCY
from scrubjay.agents.teams.network import TeamNetwork, build_hearing_mask
from scrubjay.memory import make_config

BATCH, TIME, AGENTS = 2, 4, 3
SPACE = spaces.Dict(
    {"own": spaces.Box(-1, 1, (3,), np.float32), ADJACENCY: spaces.MultiBinary(AGENTS)},
)


def make_network(rounds: int, memory: str = "gru", identities: int | None = None) -> TeamNetwork:
    torch.manual_seed(0)
    return TeamNetwork(SPACE, make_config(memory, dim=8), rounds, 2, identities)


def make_inputs(seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return leaves, alive masks and episode starts."""
    generator = torch.Generator().manual_seed(seed)
    leaves = {
        "own": torch.randn(BATCH, TIME, AGENTS, 3, generator=generator),
        ADJACENCY: (torch.rand(BATCH, TIME, AGENTS, AGENTS, generator=generator) < 0.5).float(),
    }
    alive = torch.rand(BATCH, TIME, AGENTS, generator=generator) < 0.8
    start = torch.zeros(BATCH, TIME, dtype=torch.bool)
    start[1, 2] = True
    return leaves, alive, start


@pytest.mark.parametrize("rounds", [0, 1, 2])
@pytest.mark.parametrize("memory", ["none", "gru", "hcam"])
@pytest.mark.parametrize("identities", [None, AGENTS])
def test_steps_give_what_a_segment_gives_at_once(rounds: int, memory: str, identities: int | None) -> None:
    network = make_network(rounds, memory, identities)
    leaves, alive, start = make_inputs()
    state = network.initial_state(BATCH, AGENTS)
    whole, last = network(leaves, alive, state, start)
    for t in range(TIME):
        now = {name: leaf[:, t] for name, leaf in leaves.items()}
        step, state = network.step(now, alive[:, t], state, start[:, t])
        torch.testing.assert_close(step, whole[:, t], rtol=1e-4, atol=1e-5)
    for name, value in last.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("agent", range(AGENTS))
@pytest.mark.parametrize("identities", [None, AGENTS])
def test_an_agent_asked_alone_is_its_column_of_all(rounds: int, agent: int, identities: int | None) -> None:
    network = make_network(rounds, identities=identities)
    leaves, alive, start = make_inputs()
    whole, _ = network(leaves, alive, network.initial_state(BATCH, AGENTS), start)
    own, _ = network(leaves, alive, network.initial_state(BATCH), start, agent=agent)
    torch.testing.assert_close(own, whole[:, :, agent], rtol=1e-4, atol=1e-5)
    now = {name: leaf[:, 0] for name, leaf in leaves.items()}
    step, _ = network.step(now, alive[:, 0], network.initial_state(BATCH), agent=agent)
    torch.testing.assert_close(step, own[:, 0], rtol=1e-4, atol=1e-5)


def test_the_living_hear_themselves_and_their_living_neighbours() -> None:
    leaves, alive, _ = make_inputs()
    hears = build_hearing_mask(leaves[ADJACENCY], alive)
    assert hears is not None
    for place in np.ndindex(BATCH, TIME, AGENTS, AGENTS):
        *where, listener, speaker = place
        lives = bool(alive[*where, listener] and alive[*where, speaker])
        expected = listener == speaker or (lives and bool(leaves[ADJACENCY][place]))
        assert bool(hears[place]) is expected
    assert build_hearing_mask(None, None) is None, "everybody hears all"


def test_a_bit_is_needed_for_each_agent() -> None:
    with pytest.raises(ValueError, match="4 bits in a team of 3"):
        build_hearing_mask(torch.ones(1, 3, 4), None)


@pytest.mark.parametrize("rounds", [0, 1])
def test_an_identity_equals_an_index_in_the_observation(rounds: int) -> None:
    network, (leaves, alive, start) = make_network(rounds, identities=AGENTS), make_inputs()
    space = spaces.Dict({**SPACE.spaces, "index": spaces.Discrete(AGENTS)})
    reference = TeamNetwork(space, make_config("gru", dim=8), rounds, 2)
    reference.load_state_dict(network.state_dict())
    state = network.initial_state(BATCH, AGENTS)
    index = torch.arange(AGENTS).expand(BATCH, TIME, AGENTS)
    expected, _ = reference({**leaves, "index": index}, alive, state, start)
    torch.testing.assert_close(network(leaves, alive, state, start)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("identities", [None, AGENTS])
def test_agents_with_equal_observations_differ_only_by_identity(identities: int | None) -> None:
    network, (leaves, _, start) = make_network(0, identities=identities), make_inputs()
    leaves["own"] = leaves["own"][:, :, :1].expand(-1, -1, AGENTS, -1)
    features, _ = network(leaves, None, network.initial_state(BATCH, AGENTS), start)
    assert torch.allclose(features[:, :, 0], features[:, :, 1]) == (identities is None)


def test_identities_serve_one_team_size_and_need_their_own_name() -> None:
    network, (leaves, alive, start) = make_network(0, identities=AGENTS + 1), make_inputs()
    with pytest.raises(ValueError, match="identities of 4 agents, and the team has 3"):
        network(leaves, alive, network.initial_state(BATCH, AGENTS), start)
    space = spaces.Dict({"identity": spaces.Discrete(3)})
    with pytest.raises(ValueError, match="already have one; rename that one or set identity=False"):
        TeamNetwork(space, make_config("gru", dim=8), 0, 2, 3)
