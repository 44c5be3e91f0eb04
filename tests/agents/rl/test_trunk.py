"""Separate trunks of actor and critic: gradients, states, steppers, export and saved weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from scrubjay.agents import PPO, Policy, PolicyConfig, PPOConfig, Sampler
from scrubjay.agents.rl.observations import from_leaves, to_leaves
from scrubjay.memory import list_memories, make_config

from .test_policy import SET, walk

FEW = ("gru", "hcam", "none", "sink", "titans")
"""Memories of the default tests: vectors, chunks, nothing, a window, weights that learn."""


def separate_policy(memory: str = "gru", **fields) -> Policy:
    torch.manual_seed(0)
    config = PolicyConfig(make_config(memory, dim=16), separate_critic=True, **fields)
    policy = Policy(SET, spaces.Discrete(3), config)
    actor: Any = policy.actor
    torch.nn.init.normal_(actor.linear.weight, std=0.7)
    return policy


def parts_with_gradient(policy: Policy) -> set[str]:
    """Return the parts of the policy that have a gradient other than 0."""
    return {
        name.partition(".")[0]
        for name, parameter in policy.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


def test_each_loss_changes_only_its_own_trunk() -> None:
    policy = separate_policy(skip=True, reconstruction=True, auxiliary=("next_observation", "verifier"))
    segment = walk(policy, batch=3, time=6)
    policy.evaluate(segment).values.square().sum().backward()
    assert parts_with_gradient(policy) == {"critic", "critic_trunk"}
    policy.zero_grad()
    policy.evaluate(segment).log_probs.sum().backward()
    assert parts_with_gradient(policy) == {"actor", "encoder", "memory", "view"}
    policy.zero_grad()
    evaluation = policy.evaluate(segment)
    sum(evaluation.auxiliary_losses.values(), evaluation.reconstruction_loss).backward()
    assert parts_with_gradient(policy) == {"auxiliary", "encoder", "memory", "reconstruction", "view"}


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "memory", [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in list_memories()]
)
@pytest.mark.parametrize("clock", [False, True])
def test_steps_steppers_and_a_segment_agree(memory: str, clock: bool) -> None:
    policy = separate_policy(memory, clock=clock, skip=clock)
    segment = walk(policy, batch=2, time=9)
    segment.state = state = policy.initial_state(2)
    stepper, log_probs, values = policy.stepper(state), [], []
    for t in range(9):
        observation = from_leaves({key: leaf[:, t] for key, leaf in to_leaves(segment.observations).items()})
        start, generators = segment.starts[:, t], [torch.Generator().manual_seed(t) for _ in range(2)]
        value = policy.value(observation, state, start)
        step = policy.step(observation, state, start, generators[0])
        fast = policy.advance(observation, stepper, start, generators[1])
        for one, other in ((fast.value, step.value), (fast.log_prob, step.log_prob)):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(step.value, value)
        state, segment.actions[:, t] = step.state, step.action
        log_probs.append(step.log_prob)
        values.append(step.value)
    evaluation = policy.evaluate(segment)
    torch.testing.assert_close(evaluation.log_probs, torch.stack(log_probs, 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(evaluation.values, torch.stack(values, 1), atol=1e-5, rtol=1e-4)
    own = stepper.state()
    assert own.keys() == state.keys() == policy.initial_state(2).keys()
    assert {key.partition("/")[0] for key in state} <= {"actor", "critic"}
    rows = stepper.state(torch.tensor([1]))
    for key, value in state.items():
        torch.testing.assert_close(own[key], value, atol=1e-4, rtol=1e-4, equal_nan=True)
        torch.testing.assert_close(rows[key], own[key][1:], equal_nan=True)


def test_the_names_of_the_default_policy_do_not_change() -> None:
    config = PolicyConfig(make_config("gru", dim=8), skip=True)
    shared = Policy(SET, spaces.Discrete(3), config)
    assert {name.partition(".")[0] for name in shared.state_dict()} == {
        "actor",
        "critic",
        "encoder",
        "memory",
        "view",
    }
    assert set(shared.initial_state(1)) == {"hidden"}
    apart = separate_policy(skip=True)
    trunk = {name for name in apart.state_dict() if name.startswith("critic_trunk.")}
    assert {name.removeprefix("critic_trunk.") for name in trunk} == {
        name for name in shared.state_dict() if name.partition(".")[0] in ("encoder", "memory", "view")
    }
    assert set(apart.state_dict()) - trunk == set(shared.state_dict())


def test_an_update_of_the_values_alone_leaves_the_actor_as_it_is(scripted_envs) -> None:
    torch.manual_seed(0)
    config = PolicyConfig(make_config("gru", dim=8), separate_critic=True)
    envs = scripted_envs(4)
    policy = Policy(envs.single_observation_space, envs.single_action_space, config)
    sampler = Sampler(envs, policy, 12)
    segment = sampler.collect()
    segment.rewards.zero_()
    segment.values.zero_()  # no advantages
    for values in (segment.last_values, segment.bootstrap_values):
        values.zero_()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    PPO(policy, PPOConfig(num_minibatches=2, entropy_coefficient=0.0, epochs=2)).update(segment)
    weights = policy.state_dict().items()
    parts = {name.partition(".")[0] for name, value in weights if not torch.equal(value, before[name])}
    assert parts == {"critic", "critic_trunk"}


def test_a_segment_from_a_sampler_continues_both_memories(scripted_envs) -> None:
    torch.manual_seed(0)
    envs = scripted_envs(3)
    config = PolicyConfig(make_config("hcam", dim=8), separate_critic=True)
    policy = Policy(envs.single_observation_space, envs.single_action_space, config)
    sampler = Sampler(envs, policy, 5)
    for _ in range(3):
        segment = sampler.collect()
        evaluation = policy.evaluate(segment)
        torch.testing.assert_close(evaluation.values, segment.values, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(evaluation.log_probs, segment.log_probs, atol=1e-5, rtol=1e-5)


def test_a_saved_policy_acts_as_before(tmp_path) -> None:
    policy = separate_policy("hcam", skip=True).eval()
    policy.save_pretrained(tmp_path)
    loaded_policy = Policy.from_pretrained(tmp_path)
    SET.seed(0)
    state, other_state = None, None
    for _ in range(4):
        observation = SET.sample()
        action, state = policy.act(observation, state)
        other_action, other_state = loaded_policy.act(observation, other_state)
        assert np.array_equal(action, other_action)
    assert state is not None
    assert other_state is not None
    assert all(torch.equal(value.nan_to_num(), other_state[key].nan_to_num()) for key, value in state.items())
