from __future__ import annotations

import gymnasium
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import ClipReward

from scrubjay.experiments import EnvConfig


def make_pendulum(limit: int = 9) -> gymnasium.Env:
    return gymnasium.make("Pendulum-v1", max_episode_steps=limit)


def make_from_file(path: str = "absent.png") -> gymnasium.Env:
    with open(path):
        return gymnasium.make("Pendulum-v1")


NOT_CALLABLE = 3


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "my_environments", sys.modules[__name__])


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("CartPole-v1", "CartPoleEnv"),
        ("scrubjay/TMaze-v0", "TMaze"),
        ("scrubjay.envs:scrubjay/TMaze-v0", "TMaze"),
        ("my_environments:make_pendulum", "PendulumEnv"),
    ],
)
def test_every_way_to_name_an_environment(name, inside):
    config = EnvConfig(name, num_envs=2)
    with config.make() as env:
        assert type(env.unwrapped).__name__ == inside
    envs = config.make_batch()
    assert envs.num_envs == 2
    assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    envs.close()


def test_the_batched_version_is_used_where_there_is_one():
    assert type(EnvConfig("scrubjay/TMaze-v0").make_batch().unwrapped).__name__ == "TMazeVector"
    # CartPole's own vector environment resets one step too late for our sampler.
    assert isinstance(EnvConfig("CartPole-v1").make_batch(), SyncVectorEnv)


class Counter(gymnasium.Env):
    """Counts to `limit`; the vector environments below are other tasks than this one."""

    action_space = Discrete(2)

    def __init__(self, limit: int = 5) -> None:
        self.limit = limit
        self.observation_space = Box(0, limit, (1,))


class CounterVector(VectorEnv):
    """As many of `Counter` at once; `autoreset_mode` is the only further setting."""

    def __init__(self, num_envs=1, limit=5, autoreset_mode=AutoresetMode.NEXT_STEP, shape=(1,), actions=2):
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = Box(0, limit, shape), Discrete(actions)


def stack_frames(num_envs, limit=5, autoreset_mode=AutoresetMode.NEXT_STEP):
    return CounterVector(num_envs, limit, autoreset_mode, shape=(4, 1))


def add_action(num_envs, limit=5, autoreset_mode=AutoresetMode.NEXT_STEP):
    return CounterVector(num_envs, limit, autoreset_mode, actions=3)


def change_default(num_envs, limit=6, autoreset_mode=AutoresetMode.NEXT_STEP):
    return CounterVector(num_envs, 5, autoreset_mode)


def drop_setting(num_envs, autoreset_mode=AutoresetMode.NEXT_STEP):
    return CounterVector(num_envs, 5, autoreset_mode)


def reset_later(num_envs, limit=5, autoreset_mode=AutoresetMode.NEXT_STEP):
    return CounterVector(num_envs, limit)


@pytest.mark.parametrize(
    ("creator", "settings", "spec", "expected"),
    [
        (CounterVector, {}, {}, CounterVector),
        (CounterVector, {"limit": 7}, {}, CounterVector),
        (CounterVector, {}, {"kwargs": {"limit": 7}}, CounterVector),
        (CounterVector, {}, {"max_episode_steps": 9}, SyncVectorEnv),  # it has no time limit
        (CounterVector, {"max_episode_steps": 9}, {}, SyncVectorEnv),
        (
            CounterVector,
            {},
            {"additional_wrappers": (ClipReward.wrapper_spec(min_reward=-1, max_reward=1),)},
            SyncVectorEnv,
        ),
        (stack_frames, {}, {}, SyncVectorEnv),
        (add_action, {}, {}, SyncVectorEnv),
        (change_default, {}, {}, SyncVectorEnv),
        (change_default, {"limit": 5}, {}, CounterVector),
        (drop_setting, {}, {"kwargs": {"limit": 7}}, SyncVectorEnv),
        (reset_later, {}, {}, SyncVectorEnv),
    ],
)
def test_a_vector_implementation_of_another_task_is_not_used(creator, settings, spec, expected, monkeypatch):
    gymnasium.register(
        "Counter-v0", entry_point="my_environments:Counter", vector_entry_point=creator, **spec
    )
    try:
        assert type(EnvConfig("Counter-v0", settings, num_envs=3).make_batch()) is expected
    finally:
        del gymnasium.registry["Counter-v0"]


def test_subprocesses():
    envs = EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 2}, num_envs=2, subprocesses=True).make_batch()
    assert isinstance(envs, AsyncVectorEnv)
    observation, _ = envs.reset(seed=0)
    assert observation.shape == (2, 4)
    envs.close()


def test_settings_reach_the_environment():
    env = EnvConfig("my_environments:make_pendulum", {"limit": 3}).make()
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[3] for _ in range(3)]
    assert ends == [False, False, True]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("CartPol-v1", {}, "unknown environment 'CartPol-v1'.*did you mean 'CartPole-v1'"),
        ("scrubjay/TMaz-v0", {}, "did you mean 'scrubjay/TMaze-v0'"),
        ("nowhere:make", {}, "No module named 'nowhere'"),
        ("my_environments:absent", {}, "has no attribute 'absent'"),
        ("my_environments:NOT_CALLABLE", {}, "NOT_CALLABLE is a int, not a callable"),
        ("my_environments:make_from_file", {}, "environment 'my_environments:make_from_file': .*absent.png"),
        ("scrubjay/TMaze-v0", {"wings": 2}, "rejects .*wings"),
        ("scrubjay/TMaze-v0", {"corridor_length": 0}, "corridor_length=0"),
    ],
)
def test_bad_names_and_settings_are_refused(name, kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        EnvConfig(name, kwargs).make()
