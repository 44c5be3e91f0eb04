from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium import spaces

from scrubjay.agents import Policy, PolicyConfig, Segment
from scrubjay.agents.rl.encoders.observation import Pooling
from scrubjay.agents.rl.observations import from_leaves, to_leaves, to_tensors
from scrubjay.memory import list_memories, make_config, serialization
from scrubjay.memory.gru import GRUConfig

MakePolicy = Callable[..., Policy]
ACTION_SPACES = {
    "discrete": spaces.Discrete(3, start=1),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-1, 1, (2,)),
}


def walk(policy: Policy, batch: int, time: int, seed: int = 0) -> Segment:
    """Return a segment of `policy.step` on random observations with random episode starts."""
    space = policy.observation_space
    space.seed(seed)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(batch, time, generator=generator) < 0.25
    state = first_state = {
        key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in policy.initial_state(batch).items()
    }
    observation_leaves, steps = [], []
    for t in range(time):
        samples = [to_leaves(to_tensors(space, space.sample(), policy.device)) for _ in range(batch)]
        observation_leaves.append(
            {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
        )
        step = policy.step(from_leaves(observation_leaves[-1]), state, starts[:, t], generator)
        steps.append(step)
        state = step.state
    zeros = torch.zeros(batch, time)
    return Segment(
        observations=from_leaves(
            {key: torch.stack([s[key] for s in observation_leaves], dim=1) for key in observation_leaves[0]}
        ),
        actions=torch.stack([step.action for step in steps], dim=1),
        log_probs=torch.stack([step.log_prob for step in steps], dim=1),
        values=torch.stack([step.value for step in steps], dim=1),
        rewards=zeros,
        starts=starts,
        terminated=zeros.bool(),
        truncated=zeros.bool(),
        bootstrap_values=zeros,
        last_values=zeros[:, 0],
        state=first_state,
    )


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_steps_and_a_whole_segment_agree(make_policy: MakePolicy, action: str) -> None:
    policy = make_policy(action_space=ACTION_SPACES[action])
    segment = walk(policy, batch=3, time=11)
    evaluation = policy.evaluate(segment)
    torch.testing.assert_close(evaluation.log_probs, segment.log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(evaluation.values, segment.values, atol=1e-5, rtol=1e-5)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", list_memories())
def test_steps_and_a_whole_segment_agree_for_every_memory(make_policy: MakePolicy, name: str) -> None:
    policy = make_policy(memory=make_config(name, dim=16))
    torch.manual_seed(0)
    segment = walk(policy, batch=2, time=24)
    segment.state = policy.initial_state(2)
    generator = torch.Generator().manual_seed(1)
    state, log_probs, values = segment.state, [], []
    for t in range(24):
        assert isinstance(segment.observations, torch.Tensor)
        step = policy.step(segment.observations[:, t], state, segment.starts[:, t], generator)
        segment.actions[:, t] = step.action
        log_probs.append(step.log_prob)
        values.append(step.value)
        state = step.state
    evaluation = policy.evaluate(segment)
    torch.testing.assert_close(evaluation.log_probs, torch.stack(log_probs, 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(evaluation.values, torch.stack(values, 1), atol=1e-5, rtol=1e-4)


SET = spaces.Dict(
    {
        "dancers": spaces.MultiDiscrete(np.array([[3, 4]] * 3)),
        "dancers_mask": spaces.MultiBinary(3),
        "told": spaces.Discrete(3),
    }
)


@pytest.mark.parametrize("pooling", ["attention", "sum"])
def test_steps_and_a_segment_agree_where_sets_are_seen_beside_memory(pooling: Pooling) -> None:
    torch.manual_seed(0)
    config = PolicyConfig(make_config("gru", dim=8), skip=True, pooling=pooling)
    policy = Policy(SET, spaces.Discrete(3), config)
    segment = walk(policy, batch=3, time=11)
    evaluation = policy.evaluate(segment)
    torch.testing.assert_close(evaluation.log_probs, segment.log_probs)
    torch.testing.assert_close(evaluation.values, segment.values)
    with torch.no_grad():
        rows = policy.stepper(segment.state)
        for t in range(11):
            observation = from_leaves(
                {key: leaf[:, t] for key, leaf in to_leaves(segment.observations).items()}
            )
            value = policy.advance(observation, rows, segment.starts[:, t]).value
            torch.testing.assert_close(value, segment.values[:, t])


def test_what_is_seen_reaches_the_heads_beside_memory_only_where_asked_for() -> None:
    def slopes(skip: bool) -> list[bool]:
        torch.manual_seed(0)
        policy = Policy(SET, spaces.Discrete(3), PolicyConfig(make_config("gru", dim=8), skip=skip))
        policy.memory.requires_grad_(False)
        for parameter in policy.memory.parameters():
            parameter.zero_()  # a memory whose output is zero
        policy.evaluate(walk(policy, batch=2, time=3)).values.sum().backward()
        encoders = [policy.encoder] if policy.view is None else [policy.encoder, policy.view]
        return [any(p.grad is not None and bool(p.grad.any()) for p in e.parameters()) for e in encoders]

    assert slopes(skip=False) == [False]
    assert slopes(skip=True) == [False, True]


@pytest.mark.parametrize("name", ["none", "gru", "hcam"])
def test_a_clock_tells_memory_how_old_an_episode_is(name: str) -> None:
    torch.manual_seed(0)
    policy = Policy(SET, spaces.Discrete(3), PolicyConfig(make_config(name, dim=8), clock=True))
    segment = walk(policy, batch=3, time=11)
    torch.testing.assert_close(policy.evaluate(segment).values, segment.values)
    initial_state = policy.initial_state(3)
    observation = from_leaves({key: leaf[:, 0] for key, leaf in to_leaves(segment.observations).items()})
    later_state = {key: value + 9 if key == "0.time" else value for key, value in initial_state.items()}
    at_start, later = (
        policy.step(observation, state, deterministic=True).value for state in (initial_state, later_state)
    )
    assert not torch.allclose(at_start, later)
    all_starts = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(
        policy.step(observation, later_state, all_starts, deterministic=True).value, at_start
    )


def test_value_looks_and_forgets(make_policy: MakePolicy) -> None:
    policy = make_policy()
    state = policy.initial_state(2)
    observation = torch.randn(2, 3)
    before = {key: value.clone() for key, value in state.items()}
    torch.testing.assert_close(policy.value(observation, state), policy.step(observation, state).value)
    assert all(torch.equal(value, before[key]) for key, value in state.items())


def test_start_forgets_in_its_row_only(make_policy: MakePolicy) -> None:
    policy = make_policy()
    observation = torch.randn(2, 3)
    state = policy.step(torch.randn(2, 3), policy.initial_state(2)).state
    mixed_values = policy.value(observation, state, torch.tensor([True, False]))
    fresh_values, continued_values = (
        policy.value(observation, policy.initial_state(2)),
        policy.value(observation, state),
    )
    torch.testing.assert_close(mixed_values, torch.stack([fresh_values[0], continued_values[1]]))
    assert (fresh_values - continued_values).abs().min() > 1e-4


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_act_takes_one_observation_or_many_arrays_or_tensors(make_policy: MakePolicy, action: str) -> None:
    policy = make_policy(action_space=ACTION_SPACES[action])
    observations = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    state, states = None, None
    for observation in observations:
        actions, states = policy.act(observation, states)
        alone, state = policy.act(torch.from_numpy(observation[2]), state)
        assert policy.action_space.contains(alone)
        np.testing.assert_allclose(alone, np.asarray(actions)[2], atol=1e-5)
        torch.testing.assert_close(state["hidden"], states["hidden"][2:3])
    restarted_actions, _ = policy.act(observations[0], states, start=np.ones(4, dtype=bool))
    np.testing.assert_allclose(restarted_actions, policy.act(observations[0])[0], atol=1e-6)


def test_act_is_repeatable_unless_asked_to_sample(make_policy: MakePolicy) -> None:
    policy = make_policy(action_space=spaces.Box(-9, 9, (2,)))
    observation = np.zeros(3, dtype=np.float32)
    assert np.array_equal(policy.act(observation)[0], policy.act(observation)[0])
    assert not np.array_equal(
        policy.act(observation, deterministic=False)[0], policy.act(observation, deterministic=False)[0]
    )


def test_act_reads_nested_observations() -> None:
    space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Dict({"c": spaces.Box(-1, 1, (2,))})})
    policy = Policy(space, spaces.Discrete(4, start=5), PolicyConfig(GRUConfig(dim=8)))
    action, state = policy.act(space.sample())
    assert action in range(5, 9)
    assert state["hidden"].shape == (1, 8)


def test_act_names_a_wrong_shape(make_policy: MakePolicy) -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\); expected \(3,\)"):
        make_policy().act(np.zeros(4))


def test_a_new_policy_is_nearly_indifferent() -> None:
    policy = Policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(4), PolicyConfig(GRUConfig(dim=32)))
    step = policy.step(torch.randn(64, 3), policy.initial_state(64))
    assert (step.log_prob.exp() - 0.25).abs().max() < 0.02


def test_gradients_stop_at_the_segments_border(make_policy: MakePolicy) -> None:
    policy = make_policy()
    segment = walk(policy, 2, 4)
    segment.state = {key: value.requires_grad_() for key, value in segment.state.items()}
    policy.evaluate(segment).values.sum().backward()
    assert all(value.grad is None for value in segment.state.values())


def test_a_stored_config_has_every_field() -> None:
    plain = PolicyConfig(make_config("gru", dim=8))
    names = [field.name for field in dataclasses.fields(PolicyConfig)]
    used = dataclasses.replace(plain, skip=True, pooling="sum", clock=True)
    assert list(serialization.encode(plain)) == list(serialization.encode(used)) == names
    assert serialization.decode(PolicyConfig, serialization.encode(used)) == used
