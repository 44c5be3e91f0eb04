"""Scrubjay's policies as RLModules: stepping, training and sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from ray.rllib.core.columns import Columns

from scrubjay.agents import PolicyConfig, TeamPolicyConfig
from scrubjay.agents.rllib import MemoryModule, TeamModule
from scrubjay.memory import list_memories, make_config

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)


def module(memory="gru", action_space=None, **fields):
    torch.manual_seed(0)
    return MemoryModule(
        observation_space=BOX,
        action_space=action_space or spaces.Discrete(4),
        model_config={"policy": PolicyConfig(memory=make_config(memory, dim=16), **fields), "max_seq_len": 8},
    )


def test_a_separate_critic_steps_as_it_learns():
    test_module_steps_as_it_learns("gru", separate_critic=True, skip=True)


def test_statistics_that_rllib_does_not_update_are_refused():
    one = module(normalize_observations=True)
    state = {name: torch.as_tensor(value)[None] for name, value in one.get_initial_state().items()}
    batch = {Columns.OBS: torch.zeros(1, 2, 3), Columns.STATE_IN: state}
    assert one.forward_inference(batch)[Columns.ACTION_DIST_INPUTS].shape == (1, 2, 4)
    with pytest.raises(ValueError, match=r"normalize_observations=True: RLlib's learners .*SegmentPPO"):
        one.forward_train(batch)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("memory", [name for name in list_memories() if name != "none"])
def test_module_steps_as_it_learns(memory, **fields):
    """Stepwise sampling with carried states gives the same outputs as one forward pass in training."""
    one = module(memory, **fields)
    observations = torch.rand(2, 9, 3) * 2 - 1
    initial_state = {
        name: torch.as_tensor(value).expand(2, *value.shape)
        for name, value in one.get_initial_state().items()
    }
    whole = one.forward_train({Columns.OBS: observations, Columns.STATE_IN: initial_state})
    state, logits = initial_state, []
    for step in range(9):
        out = one.forward_exploration(
            {Columns.OBS: observations[:, step : step + 1], Columns.STATE_IN: state}
        )
        state = out[Columns.STATE_OUT]
        logits.append(out[Columns.ACTION_DIST_INPUTS])
    torch.testing.assert_close(
        torch.cat(logits, dim=1), whole[Columns.ACTION_DIST_INPUTS], rtol=1e-4, atol=1e-5
    )
    values = one.compute_values({Columns.OBS: observations, Columns.STATE_IN: initial_state})
    assert values.shape == (2, 9)
    torch.testing.assert_close(
        values, one.compute_values({}, embeddings=whole[Columns.EMBEDDINGS]), rtol=1e-4, atol=1e-5
    )
    assert one.is_stateful()


def test_a_module_that_remembers_nothing_has_no_time_axis():
    one = module("none")
    assert not one.is_stateful()
    out = one.forward_train({Columns.OBS: torch.zeros(5, 3)})
    assert out[Columns.ACTION_DIST_INPUTS].shape == (5, 4)
    assert one.compute_values({Columns.OBS: torch.zeros(5, 3)}).shape == (5,)


@pytest.mark.parametrize("memory", ["gru", "none"])
def test_a_mask_in_the_observations_restricts_rllibs_actions(memory):
    space = spaces.Dict({"observation": BOX, "action_mask": spaces.MultiBinary(4)})
    torch.manual_seed(0)
    one = MemoryModule(
        observation_space=space,
        action_space=spaces.Discrete(4),
        model_config={"policy": PolicyConfig(memory=make_config(memory, dim=16)), "max_seq_len": 8},
    )
    shape = (2, 5) if memory == "gru" else (10,)
    mask = torch.tensor([1, 0, 0, 1]).expand(*shape, 4)
    batch = {Columns.OBS: {"observation": torch.rand(*shape, 3), "action_mask": mask}}
    if memory == "gru":
        initial_state = one.get_initial_state().items()
        batch[Columns.STATE_IN] = {
            name: torch.as_tensor(value).expand(2, -1) for name, value in initial_state
        }
    probabilities = one.forward_train(batch)[Columns.ACTION_DIST_INPUTS].softmax(-1)
    assert (probabilities[..., [1, 2]] == 0).all()
    assert (probabilities[..., [0, 3]] > 0).all()


@pytest.mark.parametrize("memory", ["gru", "none"])
def test_what_is_seen_reaches_the_heads_beside_memory(memory):
    torch.manual_seed(0)
    config = PolicyConfig(memory=make_config(memory, dim=16), skip=True)
    model_config = {"policy": config, "max_seq_len": 8}
    one = MemoryModule(observation_space=BOX, action_space=spaces.Discrete(4), model_config=model_config)
    batch_observations = torch.rand(2, 3)
    own = one.policy.step(batch_observations, one.policy.initial_state(2))
    state = {name: value.expand(2, *value.shape) for name, value in get_initial_state(one).items()}
    batch = (
        {Columns.OBS: batch_observations[:, None], Columns.STATE_IN: state}
        if state
        else {Columns.OBS: batch_observations}
    )
    torch.testing.assert_close(one.compute_values(batch).reshape(2), own.value)


def get_initial_state(one: MemoryModule) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value) for name, value in one.get_initial_state().items()}


@pytest.mark.parametrize(
    ("space", "numbers"),
    [(spaces.Discrete(4), 4), (spaces.MultiDiscrete([3, 2]), 6), (spaces.Box(-1, 1, (2,), np.float32), 4)],
)
def test_rllib_draws_from_the_policy_it_is_given(space, numbers):
    one = module(action_space=space)
    state = {name: torch.as_tensor(value)[None] for name, value in one.get_initial_state().items()}
    out = one.forward_inference({Columns.OBS: torch.zeros(1, 1, 3), Columns.STATE_IN: state})
    inputs = out[Columns.ACTION_DIST_INPUTS]
    assert inputs.shape == (1, 1, numbers)
    distribution = one.get_exploration_action_dist_cls().from_logits(inputs[:, 0])
    features = out[Columns.EMBEDDINGS][:, 0]
    ours = one.policy.actor(features)
    action = ours.mode()
    torch.testing.assert_close(distribution.logp(action), ours.log_prob(action), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_built_is_refused_by_name():
    with pytest.raises(TypeError, match=r"model_config\['policy'\] is 'gru': expected a PolicyConfig"):
        MemoryModule(observation_space=BOX, action_space=BOX, model_config={"policy": "gru"})
    with pytest.raises(TypeError, match="expected a TeamPolicyConfig"):
        TeamModule(observation_space=BOX, action_space=BOX, model_config={"policy": PolicyConfig()})
    with pytest.raises(TypeError, match="expected Tuple spaces with one entry per agent"):
        TeamModule(observation_space=BOX, action_space=BOX, model_config={"policy": TeamPolicyConfig()})
    for space in (
        spaces.MultiBinary(2),
        spaces.Discrete(3, start=1),
        spaces.Dict({"go": spaces.Discrete(2)}),
    ):
        with pytest.raises(TypeError, match="is not supported by RLlib"):
            module(action_space=space)
