from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from scrubjay.agents import PPO, Policy, PolicyConfig, PPOConfig, Sampler, Segment
from scrubjay.agents.rl.learner import minibatches
from scrubjay.memory.gru import GRUConfig

Envs = Callable[..., SyncVectorEnv]
MakePolicy = Callable[..., Policy]


def segment_of(policy: Policy, envs: SyncVectorEnv, length: int = 12) -> Segment:
    sampler = Sampler(envs, policy, length)
    sampler.collect()  # so that the next segment starts within episodes, with a memory state
    return sampler.collect()


def test_before_any_step_nothing_has_moved(scripted_envs: Envs, make_policy: MakePolicy) -> None:
    policy = make_policy()
    segment = segment_of(policy, scripted_envs(4))
    learner = PPO(policy, PPOConfig(num_minibatches=2))
    advantages, returns = learner.advantages(segment)
    for index in minibatches(4, 1, 2, learner.generator):
        _, metrics = learner.loss(segment.rows(index), advantages[index], returns[index])
        assert metrics["losses/approx_kl"].abs() < 1e-10
        assert metrics["losses/clipfrac"] == 0
        # With every ratio at 1 the surrogate is the advantages' mean.
        torch.testing.assert_close(
            metrics["losses/policy_loss"], -advantages[index].mean(), atol=1e-5, rtol=1e-4
        )


def test_loss_agrees_with_the_paper_element_by_element(scripted_envs: Envs, make_policy: MakePolicy) -> None:
    policy = make_policy()
    segment = segment_of(policy, scripted_envs(3))
    with torch.no_grad():  # changed since sampling: ratios within the clip range and beyond
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    config = PPOConfig(clip=0.1, entropy_coefficient=0.3, barrier_coefficient=0.2, value_coefficient=0.7)
    learner = PPO(policy, config)
    advantages, returns = learner.advantages(segment)
    loss, metrics = learner.loss(segment, advantages, returns)
    with torch.no_grad():
        evaluation = policy.evaluate(segment)
    total, num_clipped = 0.0, 0
    for b in range(3):
        for t in range(12):
            ratio = float((evaluation.log_probs[b, t] - segment.log_probs[b, t]).exp())
            advantage = float(advantages[b, t])
            surrogate = min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage)
            error = float(evaluation.values[b, t] - returns[b, t])
            total += -surrogate + 0.7 * 0.5 * error**2 - 0.3 * float(evaluation.entropy[b, t])
            chances = evaluation.distribution.outputs()[b, t].tolist()
            total -= 0.2 * (sum(chances) / len(chances) + math.log(len(chances)))
            num_clipped += abs(ratio - 1) > 0.1
    assert loss.item() == pytest.approx(total / 36, rel=1e-4)
    assert metrics["losses/clipfrac"].item() == pytest.approx(num_clipped / 36)
    assert 0 < num_clipped < 36


@pytest.mark.parametrize(
    "action_space", [spaces.Discrete(3), spaces.Box(-9, 9, (2,))], ids=["discrete", "box"]
)
def test_gradients_agree_with_finite_differences(make_policy: MakePolicy, action_space: spaces.Space) -> None:
    policy = make_policy(spaces.Box(-9, 9, (3,)), action_space, reconstruction=True).double()
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    none = torch.zeros(2, 5, dtype=torch.bool)
    segment = Segment(
        observations=numbers(2, 5, 3),
        actions=numbers(2, 5, 2) if isinstance(action_space, spaces.Box) else torch.randint(3, (2, 5)),
        log_probs=numbers(2, 5) * 0.1 - 1.1,
        values=numbers(2, 5),
        rewards=numbers(2, 5),
        starts=torch.rand(2, 5, generator=generator) < 0.3,
        terminated=none,
        truncated=none,
        bootstrap_values=torch.zeros(2, 5, dtype=torch.float64),
        last_values=numbers(2),
        state={key: numbers(*value.shape) for key, value in policy.initial_state(2).items()},
    )
    learner = PPO(policy, PPOConfig(reconstruction_coefficient=0.5))
    advantages, returns = learner.advantages(segment)

    def loss() -> torch.Tensor:
        return learner.loss(segment, advantages, returns)[0]

    loss().backward()
    step = 1e-6
    for parameter in policy.parameters():
        direction = numbers(*parameter.shape)
        with torch.no_grad():
            parameter += step * direction
            above = loss()
            parameter -= 2 * step * direction
            below = loss()
            parameter += step * direction
        expected = (above - below) / (2 * step)
        assert parameter.grad is not None
        slope = torch.sum(parameter.grad * direction)
        torch.testing.assert_close(slope, expected, atol=1e-7, rtol=1e-5)


def test_advantages_are_normalised_over_the_whole_batch(scripted_envs: Envs, make_policy: MakePolicy) -> None:
    policy = make_policy()
    segment = segment_of(policy, scripted_envs(4))
    advantages, returns = PPO(policy, PPOConfig()).advantages(segment)
    assert advantages.mean().item() == pytest.approx(0, abs=1e-6)
    assert advantages.std(correction=0).item() == pytest.approx(1, rel=1e-5)
    plain, same_returns = PPO(policy, PPOConfig(normalize_advantage=False)).advantages(segment)
    assert torch.equal(returns, same_returns)
    torch.testing.assert_close(plain, returns - segment.values)


def test_advantages_that_differ_little_are_not_stretched(
    scripted_envs: Envs, make_policy: MakePolicy
) -> None:
    policy = make_policy()
    segment = segment_of(policy, scripted_envs(4))
    plain, _ = PPO(policy, PPOConfig(normalize_advantage=False)).advantages(segment)
    deviation = plain.std(correction=0).item()
    normalized, _ = PPO(policy, PPOConfig(least_deviation=deviation / 2)).advantages(segment)
    assert torch.equal(normalized, PPO(policy, PPOConfig()).advantages(segment)[0])
    bounded_advantages, _ = PPO(policy, PPOConfig(least_deviation=2 * deviation)).advantages(segment)
    torch.testing.assert_close(bounded_advantages, (plain - plain.mean()) / (2 * deviation))
    with pytest.raises(ValueError, match=r"least_deviation=0\.2: .* normalize_advantage=True"):
        PPOConfig(least_deviation=0.2, normalize_advantage=False)
    with pytest.raises(ValueError, match="least_deviation=-1"):
        PPOConfig(least_deviation=-1)


def test_minibatches_are_a_partition_drawn_from_the_learners_own_generator(make_policy: MakePolicy) -> None:
    config = PPOConfig(num_minibatches=3)
    learners = [PPO(make_policy(), config, seed) for seed in (5, 5, 6)]
    parts = []
    for number, learner in enumerate(learners):
        torch.manual_seed(number)
        parts.append([index.tolist() for index in minibatches(7, 2, 3, learner.generator)])
    assert parts[0] == parts[1] != parts[2]
    assert [len(index) for index in parts[0]] == [3, 2, 2, 3, 2, 2]
    assert sorted(itertools.chain(*parts[0][:3])) == list(range(7))
    assert parts[0][:3] != parts[0][3:]


def test_more_minibatches_than_rows_are_refused(make_policy: MakePolicy, scripted_envs: Envs) -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match="num_minibatches=4 is more than the 3 environments"):
        PPO(policy, PPOConfig(num_minibatches=4)).update(segment_of(policy, scripted_envs(3)))


@pytest.mark.parametrize(
    "bad",
    [
        *({"gamma": 1.1}, {"gae_lambda": -0.1}, {"epochs": 0}, {"learning_rate": 0.0}, {"clip": -1.0}),
        *({name: np.nan} for name in ("learning_rate", "clip", "max_grad_norm", "barrier_coefficient")),
        *({name: np.inf} for name in ("learning_rate", "entropy_coefficient", "least_deviation")),
        *({name: 1e39} for name in ("learning_rate", "clip", "clip_end", "least_deviation", "target_kl")),
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{next(iter(bad))}={next(iter(bad.values()))}")):
        PPOConfig(**bad)


def test_reconstruction_without_its_head_is_refused(make_policy: MakePolicy) -> None:
    with pytest.raises(ValueError, match="reconstruction=True"):
        PPO(make_policy(), PPOConfig(reconstruction_coefficient=1.0))


def test_undiscounted_updates_are_finite(make_policy: MakePolicy, scripted_envs: Envs) -> None:
    policy = make_policy()
    learner = PPO(policy, PPOConfig(gamma=1.0, gae_lambda=1.0))
    metrics = learner.update(segment_of(policy, scripted_envs(4)))
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_small_target_kl_ends_the_update_early(make_policy: MakePolicy, scripted_envs: Envs) -> None:
    policy = make_policy()
    segment = segment_of(policy, scripted_envs(4))
    learner = PPO(policy, PPOConfig(epochs=10, num_minibatches=2, learning_rate=0.01, target_kl=1e-5))
    learner.update(segment)
    (state, *_) = learner.optimizer.state.values()
    assert 2 <= state["step"].item() < 20


def test_a_restored_learner_makes_the_same_update(make_policy: MakePolicy, scripted_envs: Envs) -> None:
    policy = make_policy()
    learner = PPO(policy, PPOConfig(num_minibatches=2), seed=1)
    segment = segment_of(policy, scripted_envs(4))
    learner.update(segment)
    other_policy = make_policy(seed=9)
    other_policy.load_state_dict(policy.state_dict())
    other = PPO(other_policy, PPOConfig(num_minibatches=2), seed=2)
    other.set_state(learner.get_state())
    assert learner.update(segment) == other.update(segment)
    weights = zip(policy.parameters(), other_policy.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in weights)


def test_the_step_size_falls_in_a_line_and_goes_on_where_it_was(
    make_policy: MakePolicy, scripted_envs: Envs
) -> None:
    policy = make_policy()
    segment = segment_of(policy, scripted_envs(4))
    config = PPOConfig(num_minibatches=2, learning_rate=0.01, anneal=True).with_total_steps(
        4 * segment.num_steps
    )
    learner = PPO(policy, config)
    rates = [learner.update(segment)["charts/learning_rate"] for _ in range(2)]
    again = PPO(policy, config)
    again.set_state(learner.get_state())
    rates += [again.update(segment)["charts/learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025, 0.0025, 0.0025])
    before = policy.critic.weight.clone()
    again.optimizer.param_groups[0]["lr"] = 0.0
    again.update(segment)
    assert torch.equal(before, policy.critic.weight), "the reported rate must be the one that is used"


def test_a_falling_step_size_needs_a_length(make_policy: MakePolicy) -> None:
    with pytest.raises(ValueError, match=r"with_total_steps\(total_steps\)"):
        PPOConfig(anneal=True).build(make_policy())
    assert PPOConfig().with_total_steps(100) == PPOConfig()
    assert PPOConfig(anneal=True, anneal_steps=7).with_total_steps(100).anneal_steps == 7
    learner = PPOConfig(anneal=True).with_total_steps(100).build(make_policy())
    with pytest.raises(ValueError, match="steps=-1"):
        learner.set_state({**learner.get_state(), "steps": -1})


def test_a_barrier_needs_choices(make_policy: MakePolicy) -> None:
    policy = make_policy(spaces.Box(-9, 9, (3,)), spaces.Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match=r"barrier_coefficient=0\.1 needs a discrete action space, not Box"):
        PPO(policy, PPOConfig(barrier_coefficient=0.1))


class Recall(gymnasium.Env):
    """Environment with a cue of 0 or 1, then 2; the reward is 1 if the last action equals the cue."""

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.cue, self.time = int(self.np_random.integers(2)), 0
        return self.cue, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict]:
        self.time += 1
        done = self.time == 3
        return 2, float(done and action == self.cue), done, False, {}


@pytest.mark.slow
def test_a_policy_learns_to_remember() -> None:
    torch.manual_seed(0)
    envs = SyncVectorEnv([Recall] * 16, autoreset_mode=AutoresetMode.SAME_STEP)
    policy = Policy(Recall.observation_space, Recall.action_space, PolicyConfig(GRUConfig(dim=16)))
    sampler = Sampler(envs, policy, 16)
    learner = PPO(policy, PPOConfig(learning_rate=5e-3, gamma=1.0, num_minibatches=2))
    for _ in range(50):
        learner.update(sampler.collect())
    sampler.pop_episodes()
    sampler.collect()
    returns = [episode.episode_return for episode in sampler.pop_episodes()]
    # Without memory the mean return is one half; with a wrong sign of the loss it is 0.
    assert np.mean(returns) > 0.9
