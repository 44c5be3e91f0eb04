from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import RescaleAction, TimeLimit, TransformReward

from scrubjay.agents import PPO, EpisodeStats, Policy, PPOConfig, Sampler, Segment
from scrubjay.agents.rl.observations import leaf_spaces
from scrubjay.memory import MemoryConfig, make_config

from .test_segment import leaves

Envs = Callable[..., SyncVectorEnv]
MakePolicy = Callable[..., Policy]

# Memories with functional states, and some with buffers that are overwritten in place.
remembering = pytest.mark.parametrize(
    "memory",
    [
        make_config("gru", dim=8),
        make_config("hcam", dim=8, chunk_size=2, num_chunks=3, top_k=2),
        make_config("gtrxl", dim=8, window=3),
        make_config("sink", dim=8, window=2, num_sinks=1),
        make_config("titans", dim=8, chunk_size=3),
    ],
    ids=lambda config: type(config).__name__,
)


def assert_same(one: Segment, other: Segment) -> None:
    left, right = leaves(one), leaves(other)
    assert all(torch.equal(left[key], right[key]) for key in left | right)


def test_bookkeeping_agrees_with_a_loop_over_single_environments(
    scripted_envs: Envs, make_policy: MakePolicy
) -> None:
    """Two segments equal a replay of their actions by a loop with one memory state per environment."""
    rows, length = 4, 9
    policy = make_policy()
    sampler = Sampler(scripted_envs(rows), policy, length, seed=3)
    segments = [sampler.collect(), sampler.collect()]
    single_envs = scripted_envs(rows).envs
    finished_episodes: list[tuple[int, int, EpisodeStats]] = []
    for b, env in enumerate(single_envs):
        current_observation, _ = env.reset()
        state, start, episode_return, steps = policy.initial_state(1), True, 0.0, 0

        def observe(array: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(array)[None]

        for number, segment in enumerate(segments):
            torch.testing.assert_close(segment.state["hidden"][b : b + 1], state["hidden"])
            assert isinstance(segment.observations, torch.Tensor)
            for t in range(length):
                at = (b, t)
                assert torch.equal(segment.observations[at], torch.as_tensor(current_observation))
                assert segment.starts[at] == start
                if start:
                    state = policy.initial_state(1)
                torch.testing.assert_close(
                    segment.values[at], policy.value(observe(current_observation), state)[0]
                )
                state = policy.step(observe(current_observation), state).state
                current_observation, reward, terminated, truncated, info = env.step(int(segment.actions[at]))
                assert segment.rewards[at].item() == pytest.approx(reward)
                assert segment.terminated[at] == terminated
                assert segment.truncated[at] == truncated
                expected = (
                    policy.value(observe(current_observation), state)[0] if truncated else torch.tensor(0.0)
                )
                torch.testing.assert_close(segment.bootstrap_values[at], expected)
                episode_return, steps = episode_return + float(reward), steps + 1
                start = terminated or truncated
                if start:
                    stats = EpisodeStats(round(episode_return, 6), steps, float(info["success"]))
                    finished_episodes.append((number * length + t, b, stats))
                    current_observation, _ = env.reset()
                    episode_return, steps = 0.0, 0
            following = policy.initial_state(1) if start else state
            torch.testing.assert_close(
                segment.last_values[b], policy.value(observe(current_observation), following)[0]
            )
    assert any(segment.bootstrap_values.count_nonzero() for segment in segments)
    popped_episodes = [
        replace(stats, episode_return=round(stats.episode_return, 6)) for stats in sampler.pop_episodes()
    ]
    assert popped_episodes == [stats for _, _, stats in sorted(finished_episodes, key=lambda item: item[:2])]
    assert sampler.pop_episodes() == []


def test_whether_a_choice_was_reached_is_kept_beside_success(make_policy: MakePolicy) -> None:
    env = gymnasium.make_vec(
        "scrubjay.envs:scrubjay/TMaze-v0", num_envs=32, corridor_length=2, autoreset_mode="SameStep"
    )
    policy = make_policy(observation_space=env.single_observation_space, action_space=spaces.Discrete(4))
    sampler = Sampler(env, policy, 30)
    sampler.collect()
    outcomes = {(episode.measures["reached"], episode.success) for episode in sampler.pop_episodes()}
    assert outcomes == {(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)}


@remembering
def test_log_probs_are_those_of_the_actions(
    scripted_envs: Envs, make_policy: MakePolicy, memory: MemoryConfig
) -> None:
    policy = make_policy(memory=memory)
    sampler = Sampler(scripted_envs(3), policy, 12)
    sampler.collect()
    segment = sampler.collect()
    evaluation = policy.evaluate(segment)
    torch.testing.assert_close(evaluation.log_probs, segment.log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(evaluation.values, segment.values, atol=1e-5, rtol=1e-5)


def test_seeds_decide_everything(scripted_envs: Envs, make_policy: MakePolicy) -> None:
    policy = make_policy()
    segments = [Sampler(scripted_envs(3), policy, 20, seed).collect() for seed in (1, 1, 2)]
    assert_same(segments[0], segments[1])
    assert not torch.equal(segments[0].actions, segments[2].actions)


@remembering
def test_segments_stay_as_they_are_when_the_next_is_collected(
    scripted_envs: Envs, make_policy: MakePolicy, memory: MemoryConfig
) -> None:
    sampler = Sampler(scripted_envs(3), make_policy(memory=memory), 5)
    segment = sampler.collect()
    copied_segment = Segment.cat([segment])
    sampler.collect()
    assert_same(segment, copied_segment)


@remembering
def test_a_restored_sampler_goes_on_identically(
    scripted_envs: Envs, make_policy: MakePolicy, memory: MemoryConfig
) -> None:
    policy = make_policy(memory=memory)
    sampler = Sampler(scripted_envs(3), policy, 7, seed=1)
    sampler.collect()
    file = io.BytesIO()
    torch.save(sampler.get_state(), file)
    expected = [sampler.collect(), sampler.collect()]
    episodes = sampler.pop_episodes()
    file.seek(0)
    restored_sampler = Sampler(scripted_envs(3), policy, 7, seed=99)
    assert restored_sampler.restores_env
    restored_sampler.set_state(torch.load(file, weights_only=True))
    for segment in expected:
        assert_same(restored_sampler.collect(), segment)
    assert restored_sampler.pop_episodes() == episodes


def test_time_limits_are_restored_too(make_policy: MakePolicy, scripted_envs: Envs) -> None:
    def make_limited_envs() -> SyncVectorEnv:
        factories = [lambda env=env: TimeLimit(env, 3) for env in scripted_envs(2).envs]
        return SyncVectorEnv(factories, autoreset_mode=AutoresetMode.SAME_STEP)

    policy = make_policy()
    sampler = Sampler(make_limited_envs(), policy, 4)
    sampler.collect()
    state = sampler.get_state()
    expected = sampler.collect()
    restored_sampler = Sampler(make_limited_envs(), policy, 4)
    restored_sampler.set_state(state)
    assert_same(restored_sampler.collect(), expected)


def test_environments_that_hide_their_state_begin_anew(make_policy: MakePolicy, scripted_envs: Envs) -> None:
    def make_hidden_envs() -> SyncVectorEnv:
        factories = [lambda env=env: TransformReward(env, lambda r: r) for env in scripted_envs(2).envs]
        return SyncVectorEnv(factories, autoreset_mode=AutoresetMode.SAME_STEP)

    sampler = Sampler(make_hidden_envs(), make_policy(), 4)
    sampler.collect()
    assert not sampler.restores_env
    restored_sampler = Sampler(make_hidden_envs(), make_policy(), 4)
    restored_sampler.set_state(sampler.get_state())
    assert restored_sampler.collect().starts[:, 0].all()


def test_a_state_of_other_rows_is_refused(make_policy: MakePolicy, scripted_envs: Envs) -> None:
    state = Sampler(scripted_envs(2), make_policy(), 4).get_state()
    with pytest.raises(ValueError, match=r"2 environments.*has 3"):
        Sampler(scripted_envs(3), make_policy(), 4).set_state(state)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_kinds_of_autoreset_are_refused(
    make_policy: MakePolicy, scripted_envs: Envs, mode: AutoresetMode
) -> None:
    with pytest.raises(ValueError, match=r"autoreset_mode.*SAME_STEP"):
        Sampler(scripted_envs(2, mode), make_policy(), 4)


@pytest.mark.parametrize(("env_id", "advice"), [("scrubjay.envs:scrubjay/TMaze-v0", 0), ("CartPole-v1", 1)])
def test_the_advice_on_autoreset_is_right(make_policy: MakePolicy, env_id: str, advice: int) -> None:
    envs = gymnasium.make_vec(env_id, num_envs=2)
    policy = make_policy(envs.single_observation_space, envs.single_action_space)
    with pytest.raises(ValueError, match="autoreset_mode=NextStep") as error_info:
        Sampler(envs, policy, 4)
    calls = re.findall(r"gymnasium\.make_vec\(\.\.\..*?\)", str(error_info.value))
    assert len(calls) == 2
    new_envs = eval(calls[advice].replace("...", f"{env_id!r}, num_envs=2"), {"gymnasium": gymnasium})
    assert Sampler(new_envs, policy, 4).collect().rewards.shape == (2, 4)


def test_empty_segments_are_refused(make_policy: MakePolicy, scripted_envs: Envs) -> None:
    with pytest.raises(ValueError, match="segment_length=0"):
        Sampler(scripted_envs(2), make_policy(), 0)


class RandomEnv(gymnasium.Env):
    """Environment with random observations of any space; episodes are truncated after three steps."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.time += 1
        return self.observation_space.sample(), 1.0, False, self.time == 3, {}


class BatchedFinals(gymnasium.vector.VectorWrapper):
    """Wrapper that returns final observations as one batch, as batched environments may."""

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            filler = self.single_observation_space.sample()
            each = [filler if final is None else final for final in infos["final_obs"]]
            space = self.single_observation_space
            empty = gymnasium.vector.utils.create_empty_array(space, self.num_envs)
            infos = {**infos, "final_obs": gymnasium.vector.utils.concatenate(space, each, empty)}
        return observation, reward, terminated, truncated, infos


OBSERVATIONS = {
    "vector": spaces.Box(-1, 1, (3,), np.float64),
    "bytes": spaces.Box(0, 255, (4,), np.uint8),
    "discrete": spaces.Discrete(5, start=3),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(4),
    "image": spaces.Box(0, 255, (24, 20, 3), np.uint8),
    "channels_first": spaces.Box(0, 1, (1, 24, 20)),
    "nested": spaces.Dict(
        {
            "image": spaces.Box(0, 255, (12, 12, 3), np.uint8),
            "pair": spaces.Tuple([spaces.Discrete(3), spaces.Dict({"x": spaces.Box(-1, 1, (2,))})]),
        }
    ),
}
ACTIONS = {
    "discrete": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([2, 4], start=[0, 7]),
    "multi_binary": spaces.MultiBinary(2),
    "box": spaces.Box(-0.5, 0.5, (2, 1)),
}


def random_envs(observation: str, action: str, batched_finals: bool) -> VectorEnv:
    factories = [lambda: RandomEnv(OBSERVATIONS[observation], ACTIONS[action])] * 3
    envs = SyncVectorEnv(factories, autoreset_mode=AutoresetMode.SAME_STEP)
    return BatchedFinals(envs) if batched_finals else envs


@pytest.mark.one_in(4)
@pytest.mark.parametrize("batched_finals", [False, True])
@pytest.mark.parametrize(
    ("observation", "action"),
    [(observation, "discrete") for observation in OBSERVATIONS] + [("nested", action) for action in ACTIONS],
)
def test_every_space_is_sampled_and_learned_from(
    make_policy: MakePolicy, observation: str, action: str, batched_finals: bool
) -> None:
    envs = random_envs(observation, action, batched_finals)
    policy = make_policy(OBSERVATIONS[observation], ACTIONS[action], reconstruction=True)
    sampler = Sampler(envs, policy, 8)
    segment = sampler.collect()
    evaluation = policy.evaluate(segment)
    torch.testing.assert_close(evaluation.log_probs, segment.log_probs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(evaluation.values, segment.values, atol=1e-5, rtol=1e-4)
    assert segment.bootstrap_values[segment.truncated].count_nonzero() == segment.truncated.sum() == 6
    if isinstance(segment.observations, dict):
        assert segment.observations.keys() == leaf_spaces(OBSERVATIONS[observation]).keys()
    learner = PPO(policy, PPOConfig(epochs=1, num_minibatches=2, reconstruction_coefficient=0.5))
    before = [parameter.clone() for parameter in policy.parameters()]
    metrics = learner.update(segment)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["losses/reconstruction_loss"] > 0
    has_changed = [not torch.equal(*pair) for pair in zip(before, policy.parameters(), strict=True)]
    assert all(has_changed)


def test_both_forms_of_final_observations_give_the_same_values(make_policy: MakePolicy) -> None:
    policy = make_policy(OBSERVATIONS["nested"], ACTIONS["discrete"])
    one = Sampler(random_envs("nested", "discrete", False), policy, 3).collect()
    assert one.truncated[:, -1].all()
    two = Sampler(random_envs("nested", "discrete", True), policy, 3).collect()
    torch.testing.assert_close(one.bootstrap_values, two.bootstrap_values)


def test_numbers_out_of_bounds_are_clipped_for_the_environment_and_kept_for_the_learner(
    make_policy: MakePolicy,
) -> None:
    envs = random_envs("vector", "box", False)
    segment = Sampler(envs, make_policy(OBSERVATIONS["vector"], ACTIONS["box"]), 8).collect()
    assert segment.actions.abs().max() > 0.5


def test_wrappers_that_change_spaces_are_no_obstacle(make_policy: MakePolicy) -> None:
    factories = [
        lambda: RescaleAction(
            RandomEnv(OBSERVATIONS["vector"], ACTIONS["box"]), np.float32(-2), np.float32(2)
        )
    ]
    envs = SyncVectorEnv(factories, autoreset_mode=AutoresetMode.SAME_STEP)
    policy = make_policy(envs.single_observation_space, envs.single_action_space)
    assert Sampler(envs, policy, 4).collect().rewards.eq(1).all()
