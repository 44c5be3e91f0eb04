"""Reward scaling: properties of the scale, and learning that does not depend on the unit of rewards."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from scrubjay.agents import PPO, PPOConfig
from scrubjay.agents.rl.advantages import RewardScale
from scrubjay.agents.rl.learner import SingleProcess

from .test_learner import sample_segment

CONFIG = PPOConfig(epochs=2, num_minibatches=2, scale_rewards=True)


def scaled_by(segment: Any, factor: float) -> Any:
    return replace(segment, rewards=segment.rewards * factor)


def test_it_is_the_root_mean_square_of_discounted_returns() -> None:
    _, segment = sample_segment("none")
    segment = segment.rows(torch.tensor([0]))
    rewards, twice = torch.zeros(1, 12), torch.zeros(1, 12, dtype=torch.bool)
    rewards[0, :3] = torch.tensor([1.0, 0.0, 2.0])
    twice[0, [1, 2]] = True
    never = torch.zeros_like(twice)
    first_segment = replace(segment, rewards=rewards, terminated=twice, truncated=never)
    scale = RewardScale(0.5, SingleProcess())
    # Returns 1, 0 and 2, then zeros: none crosses the end of an episode, and values have no influence.
    first = 5 / 12
    torch.testing.assert_close(scale(first_segment).rewards, rewards / first**0.5)
    # Then 1 + 0 / 2 + 2 / 4, 1 and 2; of both segments alike.
    second = (1.5**2 + 1 + 4) / 12
    torch.testing.assert_close(
        scale(replace(first_segment, terminated=never)).rewards, rewards / ((first + second) / 2) ** 0.5
    )


class Replay(gymnasium.Env):
    """Environment with given rewards and ends of episodes."""

    observation_space = action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, rewards: list[float], ends: list[bool]) -> None:
        self.steps = iter(zip(rewards, ends, strict=True))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict]:
        return 0, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict]:
        reward, is_end = next(self.steps)
        return 0, reward, is_end, False, {}


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_on_the_reversed_segment_it_has_the_statistics_of_stable_baselines(mean: float) -> None:
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    _, segment = sample_segment("none")
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(segment.rewards.shape, generator=generator) * 20 + mean
    ends = torch.rand(rewards.shape, generator=generator) < 0.2
    is_cut = torch.rand(rewards.shape, generator=generator) < 0.5
    segment = replace(segment, rewards=rewards, terminated=ends & ~is_cut, truncated=ends & is_cut)
    scale = rewards / RewardScale(0.9, SingleProcess())(segment).rewards

    # After reversal, an episode ends after its first step, which is the step after an end.
    backwards, new = rewards.flip(1).double().numpy(), ends.flip(1)[:, 1:].tolist()
    replays = [Replay(row.tolist(), [*last, True]) for row, last in zip(backwards, new, strict=True)]
    venv = vec_env.VecNormalize(
        vec_env.DummyVecEnv([lambda env=env: env for env in replays]), norm_obs=False, gamma=0.9
    )
    venv.reset()
    for _ in range(rewards.shape[1]):
        venv.step(np.zeros(len(replays), dtype=np.int64))
    returns = venv.ret_rms
    # Without its initial variance of 1, which has the weight 1e-4, and with the square of the mean.
    square = ((returns.var + returns.mean**2) * returns.count - 1e-4) / (returns.count - 1e-4)
    torch.testing.assert_close(scale, torch.full_like(scale, square**0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("factor", [2.0**-20, 64.0])
def test_the_unit_of_rewards_changes_not_a_bit(factor: float) -> None:
    results = {}
    for unit in (1.0, factor):
        policy, segment = sample_segment("gru")
        learner = PPO(policy, CONFIG, seed=1)
        metrics = [learner.update(scaled_by(segment, unit)) for _ in range(3)]
        results[unit] = metrics, policy.state_dict()
    assert results[1.0][0] == results[factor][0]
    assert all(torch.equal(value, results[factor][1][name]) for name, value in results[1.0][1].items())


@pytest.mark.parametrize("factor", [2.0**-20, 64.0])
def test_the_minimum_of_the_deviation_has_the_unit_of_unscaled_rewards(factor: float) -> None:
    config = replace(CONFIG, scale_rewards=False, least_deviation=8.0)
    results = []
    for unit in (1.0, factor):
        policy, segment = sample_segment("gru")
        names = ("rewards", "values", "last_values", "bootstrap_values")
        segment = replace(segment, **{name: getattr(segment, name) * unit for name in names})
        learner = PPO(policy, config, seed=1)
        learner.update(segment)
        results.append(learner.advantages(segment)[0])
        again = PPO(policy, config, seed=1)
        again.set_state(learner.get_state())
        again.update(segment)
        torch.testing.assert_close(again.advantages(segment)[0], results[-1])
    assert torch.equal(*results)
    assert results[0].std(correction=0) < 0.5  # the minimum holds


def test_without_a_reward_nothing_is_divided() -> None:
    policy, segment = sample_segment("gru")
    silent = scaled_by(segment, 0.0)
    learner = PPO(policy, CONFIG, seed=1)
    assert all(map(math.isfinite, learner.update(silent).values()))
    assert RewardScale(0.99, SingleProcess())(silent) is silent


def test_a_restored_learner_goes_on_with_the_same_scale() -> None:
    policy, segment = sample_segment("gru")
    learner = PPO(policy, CONFIG, seed=1)
    learner.update(segment)
    again_policy, _ = sample_segment("gru")
    again_policy.load_state_dict(policy.state_dict())
    again = PPO(again_policy, CONFIG, seed=2)
    again.set_state(learner.get_state())
    other = scaled_by(segment, 3.0)
    assert learner.update(other) == again.update(other)


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"total": -1.0, "segments": 1},
        {"total": float("nan"), "segments": 1},
        {"total": 1.0, "segments": "1"},
    ],
)
def test_a_state_that_cannot_be_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match="reward scale: "):
        RewardScale(0.99, SingleProcess()).set_state(state)
