"""Recall density on memories and tasks with known dependencies."""

from typing import Any

import numpy as np
import pytest
import torch

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.experiments import RECIPES, EnvConfig, train, with_memory
from scrubjay.experiments.viz.density import recall_density
from scrubjay.experiments.viz.episode import trace_episode
from scrubjay.experiments.viz.look import recall_maps
from scrubjay.memory import make_config

from .conftest import policy_for

CARDS = EnvConfig("scrubjay/RepeatPrevious-v0")


def maps(policy, env, **fields):
    all_maps = recall_maps(trace_episode(policy, env, **fields))
    return {name.rpartition(" ")[2]: rows for name, rows in all_maps.items() if "density" in name}


def test_without_a_memory_all_is_of_the_last_step():
    for rows in maps(policy_for(CARDS, "none"), CARDS, max_steps=40).values():
        assert np.array_equal(rows, np.eye(40))


@pytest.mark.parametrize("memory", ["gru", "sink", "titans", "landmark"])
def test_each_row_is_shared_out_among_the_steps_so_far(memory):
    for rows in maps(policy_for(CARDS, memory), CARDS, max_steps=12).values():
        assert not np.triu(rows, 1).any()
        assert np.allclose(rows.sum(axis=1), 1, atol=0.05)


@pytest.mark.parametrize("skip", [False, True])
def test_it_is_the_gradient_by_finite_differences(skip):
    torch.manual_seed(0)
    config = PolicyConfig(memory=make_config("gru", dim=8), skip=skip)
    policy = config.build(CARDS.spaces()).double()
    encodings, time = torch.randn(5, 8, dtype=torch.float64), 4
    skip_features = torch.randn(5, 8, dtype=torch.float64) if skip else None
    actions = torch.tensor([0, 1, 2, 3, 1])
    density = recall_density(policy, encodings, skip_features, actions)

    def numbers(x, view):
        memory_output, _ = policy.memory(x[None], policy.initial_state(1))
        features = memory_output[0, time] + (view[time] if skip else 0)
        actor: Any = policy.actor
        logits = actor.linear(features)
        return {"action": logits[actions[time]] - logits.mean(), "value": policy.critic(features)[0]}

    width, apart = 1e-5, [part for part in (encodings, skip_features) if part is not None]
    for name, row in density.items():
        lengths = []
        for step in range(5):
            parts = [(0, step)] + ([(1, step)] if skip and step == time else [])
            total = 0.0
            for which, place in parts:
                slopes = []
                for unit in range(8):
                    ends = []
                    for sign in (1, -1):
                        inputs: list[Any] = [
                            encodings.clone(),
                            None if skip_features is None else skip_features.clone(),
                        ]
                        inputs[which][place, unit] += sign * width
                        ends.append(float(numbers(*inputs)[name].detach()))
                    slopes.append((ends[0] - ends[1]) / (2 * width))
                spread = np.cov(apart[which].numpy().T, bias=True)
                total += float(np.sqrt(slopes @ spread @ np.array(slopes)))
            lengths.append(total)
        assert np.allclose(row[time].numpy(), np.array(lengths) / sum(lengths), atol=1e-5)


def test_the_value_of_a_separate_critic_looks_back_with_its_own_memory():
    torch.manual_seed(0)
    policy = PolicyConfig(make_config("gru", dim=8), separate_critic=True).build(CARDS.spaces()).eval()
    before = maps(policy, CARDS, max_steps=8)
    assert policy.critic_trunk is not None
    cell: Any = policy.critic_trunk.memory.cell
    with torch.no_grad():  # the update gate stays open: the critic forgets everything at each step
        cell.weight_hh.zero_()
        cell.bias_ih[8:16] = -1e4
    after = maps(policy, CARDS, max_steps=8)
    assert np.array_equal(before["action"], after["action"])
    assert np.tril(after["action"], -1).any()
    assert np.tril(before["value"], -1).any()
    assert np.array_equal(after["value"], np.eye(len(after["value"])))


def test_a_window_is_all_that_a_memory_without_gradients_shows():
    fields = {"chunk_size": 3, "num_chunks": 4, "top_k": 2}
    cut, whole = (
        maps(policy_for(CARDS, "hcam", stop_memory_gradient=stop, **fields), CARDS, max_steps=20)["value"]
        for stop in (True, False)
    )
    assert not np.tril(cut, -4).any()
    assert np.tril(whole, -4).any()


def train_policy(memory, back):
    """Return a policy trained by supervision to name the suit from `back` cards ago."""
    policy = policy_for(CARDS, memory, dim=32).train()
    optimizer = torch.optim.Adam(policy.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        cards = torch.randint(0, 4, (32, 24), generator=generator)
        encodings = policy.encoder(cards.flatten()).unflatten(0, cards.shape)
        memory_output, _ = policy.memory(encodings, policy.initial_state(len(cards)))
        chances = policy.actor(memory_output[:, back:])
        loss = -chances.log_prob(cards[:, : cards.shape[1] - back]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    return policy.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "nearest"), [("gru", 0), ("landmark", 1)])
def test_who_names_the_fourth_last_card_looks_back_to_it(memory, nearest):
    """With k = 4, which counts the current card, the target is three steps back.

    The current step of `landmark` is left out, since it has a path around the memory.
    """
    policy = train_policy(memory, 3)
    trace = trace_episode(policy, CARDS)
    rewards = [reward for reward in trace.tracks["reward"] if reward is not None]
    assert sum(reward > 0 for reward in rewards) > 40
    all_maps = recall_maps(trace)
    density = all_maps["recall density of the action"]
    assert int(by_lag(density)[nearest:].argmax()) + nearest == 3
    if memory == "landmark":
        assert int(by_lag(all_maps["own chunk, layer 0"] + all_maps["chunks, layer 0"]).argmax()) == 3


def by_lag(rows):
    """Return the mean weight by lag in steps."""
    return np.array([[rows[t, t - lag] for lag in range(8)] for t in range(8, len(rows))]).mean(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "recall_name"),
    [
        pytest.param("gru", "recall density of the action", marks=pytest.mark.matrix),
        ("hcam", "chunks, layer 0"),
    ],
)
def test_who_learned_the_maze_looks_back_at_the_cue(memory, recall_name, tmp_path):
    """The reported reads of `hcam` are tested, since no gradient reaches its chunks."""
    config = with_memory(RECIPES["tmaze-demo"](), memory)
    run = train(config, tmp_path / memory)
    assert run.result["success"] > 0.9
    rows = recall_maps(trace_episode(run.policy, config.env))[recall_name]
    assert int(rows[-1, :-1].argmax()) == 0
