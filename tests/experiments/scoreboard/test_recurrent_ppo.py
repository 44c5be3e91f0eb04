"""RecurrentPPO has the network, the batches, the first episodes and the test episodes of Scrubjay's LSTM."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.agents.rl.rollout import ActorInput
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.experiments import EnvConfig, TrainConfig
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.evaluation import evaluate_actor
from scrubjay.experiments.scoreboard.recurrent_ppo import RecurrentPPOActor, make_arguments, train_peer
from scrubjay.memory import make_config


@pytest.fixture
def config():
    config = TrainConfig(
        env=EnvConfig("CartPole-v1", num_envs=4),
        learner=PPOConfig(num_minibatches=2, epochs=1, scale_rewards=True, learning_rate=2e-3),
        segment_length=8,
        total_steps=60,
        seed=5,
    )
    return config.with_memory(make_config("lstm", dim=16))


def test_settings_come_from_the_config(config):
    arguments = make_arguments(config)
    assert arguments["n_steps"] == 8
    assert arguments["batch_size"] == 16
    assert arguments["learning_rate"] == 2e-3
    assert arguments["n_epochs"] == 1
    own = make_arguments(config, with_defaults=True)
    assert own.items() <= arguments.items()
    assert not own.keys() & {"learning_rate", "n_epochs", "ent_coef", "clip_range"}


def test_another_learner_is_refused(config):
    with pytest.raises(TypeError, match="learner=GAMATRConfig: RecurrentPPO corresponds to PPOConfig"):
        make_arguments(config.with_learner(GAMATRConfig()))


@pytest.mark.requires("sb3_contrib")
def test_schedules_are_linear(config):
    learner = dataclasses.replace(config.learner, anneal=True, clip_end=0.1)
    config = config.with_learner(learner)
    model, _ = train_peer(config, make_arguments(config), lambda: None)
    assert [model.lr_schedule(share) for share in (1.0, 0.5, 0.0)] == [2e-3, 1e-3, 0]
    np.testing.assert_allclose([model.clip_range(share) for share in (1.0, 0.5, 0.0)], [0.2, 0.15, 0.1])


@pytest.fixture
def peer(config, monkeypatch):
    """Return the model, its training score and the actions of its first episodes by vector step."""
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    starts = []
    reset = CartPoleEnv.reset

    def record(self, **kwargs):
        observation, info = reset(self, **kwargs)
        starts.append(observation)
        return observation, info

    monkeypatch.setattr(CartPoleEnv, "reset", record)
    num_steps = []
    model, score = train_peer(config, make_arguments(config), lambda: num_steps.append(1))
    return model, score, starts, len(num_steps)


@pytest.mark.requires("sb3_contrib")
def test_network_and_steps_are_those_of_scrubjay(config, peer):
    model, score, starts, num_steps = peer
    assert num_steps == config.planned_steps / config.env.num_envs == 16
    ours = config.make_policy()
    assert sum(map(torch.numel, model.policy.parameters())) == sum(map(torch.numel, ours.parameters()))
    envs = config.env.make_batch()
    expected, _ = envs.reset(seed=derive_seed(config.seed, "sampling"))
    envs.close()
    np.testing.assert_allclose(starts[:4], expected, rtol=1e-6)
    assert np.isnan(score) or 8 <= score <= 64


@pytest.mark.requires("sb3_contrib")
def test_the_actor_acts_as_predict_and_forgets_at_starts(peer):
    model, *_ = peer
    observations = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)
    starts = np.zeros((6, 3), bool)
    starts[0], starts[3, 1] = True, True
    actor, state = RecurrentPPOActor(model, deterministic=True), None
    for view, start in zip(observations, starts, strict=True):
        actions = actor.act(ActorInput({"": view}, start)).actions
        expected, state = model.predict(view, state, start, deterministic=True)
        np.testing.assert_array_equal(actions, expected)
    row = RecurrentPPOActor(model, deterministic=True)
    for t in range(3, 6):
        row.act(ActorInput({"": observations[t, 1:2]}, np.array([t == 3])))
    for whole, single in zip(actor._state, row._state, strict=True):
        np.testing.assert_allclose(whole[:, 1], single[:, 0], rtol=1e-5, atol=1e-7)


@pytest.mark.requires("sb3_contrib")
def test_observations_are_normalized_in_the_evaluation_as_in_training(config):
    policy = dataclasses.replace(config.policy, normalize_observations=True)
    config = dataclasses.replace(config, policy=policy)
    model, _ = train_peer(config, make_arguments(config), lambda: None)
    views = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    starts = np.ones(20, bool)
    actions = RecurrentPPOActor(model, deterministic=True).act(ActorInput({"": views}, starts)).actions
    mean, variance = model.env.obs_rms.mean, model.env.obs_rms.var
    expected_views = np.clip((views - mean) / np.sqrt(variance + 1e-8), -10, 10).astype(np.float32)
    np.testing.assert_array_equal(actions, model.predict(expected_views, None, starts, deterministic=True)[0])


@pytest.mark.requires("sb3_contrib")
def test_the_evaluation_does_not_depend_on_the_global_generator(config, peer):
    model, *_ = peer
    actor = lambda: RecurrentPPOActor(model, deterministic=False)
    first = evaluate_actor(actor(), config.env, 10, seed=3)
    torch.manual_seed(99)
    assert evaluate_actor(actor(), config.env, 10, seed=3).returns == first.returns
    assert len(first.returns) == 10
