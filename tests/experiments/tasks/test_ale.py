"""Atari environments with the unmodified command: the policy trains on the environment that a user plays."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from scrubjay.agents.rl.policy import Policy
from scrubjay.experiments import EnvConfig, Run

# An episode of random play lasts 1,000 steps or more.
SHORT = ["--env.kwargs", "max_episode_steps", 12]


@pytest.mark.requires("ale_py")
@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        pytest.param([], (210, 160, 3), marks=pytest.mark.slow),
        pytest.param(["obs_type", "ram"], (128,), marks=pytest.mark.matrix),
        pytest.param(["obs_type", "grayscale"], (210, 160), marks=pytest.mark.matrix),
    ],
)
def test_pong_trains_resumes_evaluates_and_exports(
    settings, shape, train_resume_and_evaluate, here, tmp_path
):
    train_resume_and_evaluate("ale_py:ALE/Pong-v5", *SHORT, *settings)
    code, _, err = here("export", "run")
    assert code == 0, err
    code, _, err = here("export", "run", "--pretrained")
    assert code == 0, err
    policies = [Run.load(tmp_path / "run").policy, Policy.from_pretrained(tmp_path / "run" / "pretrained")]
    kwargs = dict([settings]) if settings else {}
    with gymnasium.make("ale_py:ALE/Pong-v5", **kwargs) as env:
        observation, _ = env.reset(seed=0)
        assert np.shape(observation) == shape
        actions = [policy.act(observation)[0] for policy in policies]
        assert actions[0] == actions[1]
        assert env.action_space.contains(actions[0])


@pytest.mark.requires("ale_py")
def test_the_batch_has_the_rewards_of_the_single_environment():
    """Atari's own vector environment also clips rewards and adds no-ops after a reset."""
    config = EnvConfig("ale_py:ALE/Freeway-v5", {"obs_type": "ram"}, num_envs=1)
    envs, single = config.make_batch(), config.make()
    assert isinstance(envs, SyncVectorEnv)
    batch, observation = envs.reset(seed=3)[0], single.reset(seed=3)[0]
    for _ in range(200):
        assert np.array_equal(batch[0], observation)
        batch, rewards, *_ = envs.step(np.array([1]))
        observation, reward, *_ = single.step(1)
        assert rewards[0] == reward
    envs.close()
    single.close()
