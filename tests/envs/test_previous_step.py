"""Previous-step wrappers: expected values, and equality of single and vector environments."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import iterate

from scrubjay.envs import PreviousStep, PreviousSteps

CASES = [
    ("scrubjay/TMaze-v0", {"corridor_length": 3}),
    ("scrubjay/Ballet-v0", {"num_dancers": 1, "delay": 1, "observation": "set", "max_steps": 22}),
    ("scrubjay/RepeatPrevious-v0", {"k": 2}),
]


def batch(env_id: str, options: dict[str, Any], mode: str = "SameStep") -> Any:
    return gymnasium.make_vec(env_id, num_envs=3, autoreset_mode=mode, **options)


def assert_alike(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_alike(left[name], right[name])
    elif isinstance(left, tuple) or (isinstance(left, np.ndarray) and left.dtype == object):
        for one, other in zip(left, right, strict=True):
            assert_alike(one, other)
    elif left is None or right is None:
        assert left is right
    else:
        np.testing.assert_array_equal(left, right)
        assert np.asarray(left).dtype == np.asarray(right).dtype


@pytest.mark.parametrize(("env_id", "options"), CASES)
def test_a_batch_shows_what_its_single_environments_show(env_id, options):
    ours = PreviousSteps(batch(env_id, options))
    theirs = SyncVectorEnv(
        [lambda: PreviousStep(gymnasium.make(env_id, **options))] * 3, autoreset_mode=AutoresetMode.SAME_STEP
    )
    assert ours.observation_space == theirs.observation_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert_alike(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    ours.action_space.seed(0)
    num_ended = 0
    for _ in range(60):
        actions = ours.action_space.sample()
        obs, _, terminated, truncated, infos = ours.step(actions)
        expected, *_, expected_infos = theirs.step(actions)
        assert_alike(obs, expected)
        assert obs in ours.observation_space
        if (terminated | truncated).any():
            num_ended += 1
            assert_alike(infos["final_obs"], expected_infos["final_obs"])
    assert num_ended


def test_observations_hold_the_previous_action_and_reward():
    env = PreviousStep(gymnasium.make("scrubjay/TMaze-v0", corridor_length=2))
    obs, _ = env.reset(seed=0)
    assert (obs["action"], obs["reward"].tolist()) == (4, [0.0])
    up = obs["observation"][3] == 1
    for action in (0, 0):
        obs, *_ = env.step(action)
        assert (obs["action"], obs["reward"].tolist()) == (action, [0.0])
    action = 1 if up else 3
    obs, reward, terminated, *_ = env.step(action)
    assert (obs["action"], obs["reward"].tolist(), terminated) == (action, [reward], True)
    assert env.reset()[0]["action"] == 4


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "scrubjay/TMaze-v0"])
def test_the_wrapped_environment_passes_gymnasiums_checker(env_id):
    env = gymnasium.make(env_id)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*wrapper applied to it|.*infinity|.*symmetric and normalized"
        )
        check_env(PreviousStep(env), skip_render_check=True)
    assert "PreviousStep" in str(PreviousStep(env).spec)


@pytest.mark.parametrize(
    ("space", "expected_space", "none"),
    [
        (spaces.Discrete(3, start=-1), spaces.Discrete(4, start=-1), 2),
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([3, 4]), [2, 3]),
        (spaces.Box(1.0, 2.0, (2,)), spaces.Box(0.0, 2.0, (2,)), [0.0, 0.0]),
        (spaces.MultiBinary(2), spaces.MultiBinary(2), [0, 0]),
    ],
)
def test_no_action_is_an_extra_index_or_zero(space, expected_space, none):
    class Still(gymnasium.Env):
        observation_space, action_space = spaces.Discrete(2), space

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[int, dict]:
            return 0, {}

    env = PreviousStep(Still(), ["action"])
    assert env.observation_space == spaces.Dict({"action": expected_space})
    obs = env.reset()[0]
    assert np.asarray(obs["action"]).tolist() == none
    assert obs in env.observation_space


def test_unsupported_inputs_and_environments_are_refused():
    env = gymnasium.make("scrubjay/TMaze-v0")
    for inputs in ((), ("observation", "actions"), ("reward", "reward")):
        with pytest.raises(ValueError, match="choose from observation, action, reward, each at most once"):
            PreviousStep(env, inputs)  # pyright: ignore[reportArgumentType]
    env.unwrapped.action_space = env.action_space = spaces.Dict({"go": spaces.Text(2)})
    with pytest.raises(
        TypeError, match=r"Text.*not supported; use Discrete, MultiDiscrete, Box, MultiBinary"
    ):
        PreviousStep(env)
    with pytest.raises(ValueError, match="autoreset_mode='SameStep'"):
        PreviousSteps(batch("scrubjay/TMaze-v0", {}, "NextStep"))
    with pytest.raises(ValueError, match="reset all environments"):
        PreviousSteps(batch("scrubjay/TMaze-v0", {})).reset(
            options={"reset_mask": np.array([True, False, True])}
        )


class Echo(gymnasium.Env):
    """Environment with nested actions; its observation is the time in the episode."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Dict(
        {
            "go": spaces.Discrete(3, start=-1),
            "arm": spaces.Tuple([spaces.Box(-1, 1, (2,), np.float32), spaces.MultiBinary(2)]),
            "hand": spaces.MultiDiscrete([2, 3], dtype=np.int32),
        }
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.time += 1
        return np.full(1, self.time, np.float32), float(self.time), self.time == 3, False, {}


def test_nested_actions_are_shown_part_by_part_alone_and_in_a_batch():
    singles = [PreviousStep(Echo()) for _ in range(2)]
    for env in singles:
        observation, _ = env.reset()
        assert observation in env.observation_space
        none = observation["action"]
        assert (none["go"], none["hand"].tolist()) == (2, [2, 3])
        assert [part.tolist() for part in none["arm"]] == [[0, 0], [0, 0]]
    envs = PreviousSteps(SyncVectorEnv([Echo] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    observations, _ = envs.reset()
    assert observations in envs.observation_space
    envs.action_space.seed(0)
    for step in range(1, 8):
        actions = envs.action_space.sample()
        observations, *_, infos = envs.step(actions)
        assert observations in envs.observation_space
        rows = iterate(envs.observation_space, observations)
        for number, (row, action) in enumerate(zip(rows, iterate(envs.action_space, actions), strict=True)):
            expected, *_ = singles[number].step(action)
            if step % 3 == 0:
                assert_alike(infos["final_obs"][number], expected)
                expected, _ = singles[number].reset()
            assert_alike(row, expected)
