"""Contract of all scrubjay environments; a new environment needs one line in `CASES`.

The example of `docs/extending/environment.md` is one of the cases.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import sys
import types
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import load_env_creator
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import (
    DictInfoToList,
    FlattenObservation,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scrubjay.envs import list_environments
from scrubjay.envs.batched_env import BatchedEnv

PAGE = Path(__file__).parents[2] / "docs" / "extending" / "environment.md"
EXAMPLE = "extending/Coin-v0"


def register_example() -> None:
    """Register the environment of the page about new environments."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    module = types.ModuleType("extending_environment")
    sys.modules[module.__name__] = module
    exec(compile(code, str(PAGE), "exec"), module.__dict__)  # noqa: S102 - a page of this repository
    single = f"{module.__name__}:Coin"
    gymnasium.register(EXAMPLE, entry_point=single, vector_entry_point=f"{single}Vector")


register_example()

CASES = [
    ("scrubjay/Ballet-v0", {"num_dancers": 1, "delay": 2, "max_steps": 25}),
    ("scrubjay/Ballet-v0", {"num_dancers": 2, "delay": 1, "max_steps": 40, "dtype": "uint8"}),
    ("scrubjay/Ballet-v0", {"num_dancers": 2, "delay": 1, "observation": "symbolic"}),
    ("scrubjay/Ballet-v0", {"num_dancers": 3, "observation": "symbolic", "max_steps": 100}),
    ("scrubjay/Ballet-v0", {"num_dancers": 2, "delay": 1, "observation": "set", "max_steps": 50}),
    ("scrubjay/Ballet-v0", {"num_dancers": 3, "min_dancers": 1, "delay": 1, "walk_steps": 9}),
    ("scrubjay/Autoencode-v0", {}),
    ("scrubjay/Autoencode-v0", {"num_cards": 12}),
    ("scrubjay/CountRecall-v0", {}),
    ("scrubjay/CountRecall-v0", {"num_cards": 24, "num_values": 4}),
    ("scrubjay/KeyToDoor-v0", {}),
    ("scrubjay/KeyToDoor-v0", {"num_colours": 1, "explore_steps": 4, "distract_steps": 0}),
    (
        "scrubjay/KeyToDoor-v0",
        {"num_colours": 6, "distract_steps": 3, "apple_reward": 1.0, "shuffle_doors": False},
    ),
    ("scrubjay/MemoryPlanning-v0", {}),
    ("scrubjay/MemoryPlanning-v0", {"size": 2, "max_steps": 3}),
    ("scrubjay/MemoryPlanning-v0", {"size": 5, "max_steps": 40}),
    ("scrubjay/TMaze-v0", {"corridor_length": 1}),
    ("scrubjay/TMaze-v0", {"corridor_length": 7}),
    ("scrubjay/TMaze-v0", {"corridor_length": 4, "active": True}),
    ("scrubjay/RepeatPrevious-v0", {}),
    ("scrubjay/RepeatPrevious-v0", {"k": 32, "num_decks": 2}),
    (EXAMPLE, {}),
    (EXAMPLE, {"delay": 12}),
]
every_case = pytest.mark.parametrize(("env_id", "options"), CASES, ids=lambda value: str(value))
every_id = pytest.mark.parametrize("env_id", [*list_environments(), EXAMPLE])


def make_single(env_id, options, **more) -> Any:
    return gymnasium.make(env_id, **options, **more).unwrapped


def make_ours(env_id, options, num_envs, mode: Any = AutoresetMode.SAME_STEP) -> Any:
    return gymnasium.make_vec(
        env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", autoreset_mode=mode, **options
    )


def make_sync(env_id, options, num_envs, mode) -> Any:
    return SyncVectorEnv([lambda: make_single(env_id, options) for _ in range(num_envs)], autoreset_mode=mode)


def random_actions(rng, size, env):
    # Mostly action 0, so that the end of the corridor is reached too.
    return np.where(rng.random(size) < 0.7, 0, rng.integers(0, action_count(env), size))


def action_count(env):
    return int(getattr(env, "single_action_space", env.action_space).n)


def flat(observation):
    """Flatten an observation, or a dict of arrays, to one vector."""
    parts = observation.values() if isinstance(observation, dict) else [observation]
    return np.concatenate([np.ravel(part) for part in parts])


def overwrite(values):
    for part in values.values() if isinstance(values, dict) else [values]:
        if isinstance(part, np.ndarray):
            part[...] = 0


def assert_same(left, right):
    """Assert equal types, dtypes and values, recursively."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
        return
    if isinstance(left, (tuple, list)):
        assert type(left) is type(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
        return
    if left is None:
        assert right is None
        return
    if isinstance(left, int):  # integers of a generator's state do not fit an array
        assert (type(left), left) == (type(right), right)
        return
    left, right = np.asarray(left), np.asarray(right)
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    if left.dtype == object:
        for one, other in zip(left, right, strict=True):
            assert type(one) is type(other)
            if one is not None:
                assert_same(one, other)
    else:
        np.testing.assert_array_equal(left, right)


def test_every_listed_environment_is_tested_here():
    assert {env_id for env_id, _ in CASES} == {*list_environments(), EXAMPLE}


@every_case
@pytest.mark.parametrize("render_mode", [None, "rgb_array", "ansi"])
def test_gymnasium_checker_finds_nothing(env_id, options, render_mode):
    env = make_single(env_id, options, render_mode=render_mode)
    check_env(env)
    env.close()


@pytest.mark.one_in(3)
@every_case
def test_same_seed_same_episodes_other_seed_others(env_id, options):
    def play(seed):
        env = make_single(env_id, options)
        rng = np.random.default_rng(0)
        results = [env.reset(seed=seed)[0]]
        for _ in range(200):
            observation, reward, terminated, truncated, _ = env.step(random_actions(rng, (), env))
            results += [observation, reward]
            if terminated or truncated:
                results.append(env.reset()[0])
        return np.concatenate([flat(value) for value in results])

    assert np.array_equal(play(3), play(3))
    assert len({play(seed).tobytes() for seed in range(8)}) > 4


@every_case
def test_a_generator_set_by_the_user_is_obeyed(env_id, options):
    def play(env):
        env.np_random = np.random.default_rng(11)
        return np.concatenate([flat(env.reset()[0]) for _ in range(20)])

    env = make_single(env_id, options)
    env.reset(seed=5)
    np.testing.assert_array_equal(play(env), play(make_single(env_id, options)))


@pytest.mark.one_in(9, rest="slow")
@pytest.mark.one_in(3)
@every_case
@pytest.mark.parametrize("mode", list(AutoresetMode))
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**40))
@example(seed=1)
def test_batch_equals_sync_vector_env_in_every_mode(env_id, options, mode, seed):
    rng = np.random.default_rng(seed)
    num_envs = int(rng.integers(1, 6))
    ours, sync = make_ours(env_id, options, num_envs, mode), make_sync(env_id, options, num_envs, mode)
    assert ours.metadata["autoreset_mode"] is mode
    assert ours.observation_space == sync.observation_space
    assert ours.action_space == sync.action_space
    assert_same(ours.reset(seed=seed), sync.reset(seed=seed))
    for step in range(150):
        actions = random_actions(rng, num_envs, ours)
        result = ours.step(actions)
        assert_same(result, sync.step(actions))
        mask = rng.random(num_envs) < 0.03
        if mode is AutoresetMode.DISABLED:
            mask |= result[2] | result[3]
        if mask.any():
            mine, theirs = (env.reset(options={"reset_mask": mask.copy()}) for env in (ours, sync))
            assert_same(mine, theirs)
        if step == 70:
            seeds = [seed + 100 if row % 2 else None for row in range(num_envs)]
            assert_same(ours.reset(seed=seeds), sync.reset(seed=seeds))


@pytest.mark.one_in(5)
@every_id
@pytest.mark.parametrize(
    "wrapper",
    [RecordEpisodeStatistics, NormalizeObservation, NormalizeReward, FlattenObservation, DictInfoToList],
)
def test_gymnasiums_vector_wrappers_find_what_they_expect(env_id, wrapper):
    # Gymnasium does not normalize Dict observations.
    options: Any = {"observation": "symbolic"} if env_id == "scrubjay/Ballet-v0" else {}
    ours, sync = (
        wrapper(gymnasium.make_vec(env_id, num_envs=3, vectorization_mode=mode, **options))
        for mode in (None, "sync")
    )
    assert isinstance(ours.unwrapped, BatchedEnv)
    assert_same(ours.reset(seed=3), sync.reset(seed=3))
    rng, num_ended = np.random.default_rng(0), 0
    for _ in range(120):
        actions = random_actions(rng, 3, ours)
        mine, theirs = ours.step(actions), sync.step(actions)
        for *_, infos in (mine, theirs):
            if "episode" in infos:
                num_ended += int(infos["_episode"].sum())
                del infos["episode"]["t"]
        assert_same(mine, theirs)
    assert wrapper is not RecordEpisodeStatistics or num_ended >= 2


@every_case
def test_sync_mode_of_make_vec_works(env_id, options):
    env = gymnasium.make_vec(env_id, num_envs=2, vectorization_mode="sync", **options)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()


@pytest.mark.one_in(6, rest="slow")
@pytest.mark.one_in(2)
@every_case
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32), before=st.integers(0, 80))
def test_state_goes_back_to_the_very_same_future(env_id, options, seed, before):
    def play(env, steps):
        rng = np.random.default_rng(seed)
        results = []
        for _ in range(steps):
            observation, reward, terminated, truncated, info = env.step(random_actions(rng, (), env))
            results += [observation, reward, terminated, info.get("success", -1.0), env.np_random.random()]
            if terminated or truncated:
                results.append(env.reset()[0])
        return np.concatenate([flat(value) for value in results])

    env = make_single(env_id, options)
    env.reset(seed=seed)
    if before:
        play(env, before)
    state = pickle.loads(pickle.dumps(env.get_state()))
    future = play(env, 150)
    other = make_single(env_id, options)
    for target in (env, other, copy.deepcopy(other)):
        target.set_state(state)
        np.testing.assert_array_equal(play(target, 150), future)


@every_id
@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
@pytest.mark.parametrize("reset_since", [False, True])
def test_state_knows_a_generator_set_by_the_user(env_id, kind, reset_since):
    def play(env):
        return np.concatenate([flat(env.reset()[0]) for _ in range(20)] + [env.np_random.random(3)])

    env, other = make_single(env_id, {}), make_single(env_id, {})
    env.reset(seed=5)
    env.np_random = np.random.Generator(kind(11))
    if reset_since:
        env.reset()
    state = pickle.loads(pickle.dumps(env.get_state()))
    future = play(env)
    for target in (env, other):
        target.set_state(state)
        np.testing.assert_array_equal(play(target), future)


@pytest.mark.one_in(9, rest="slow")
@pytest.mark.one_in(3)
@every_case
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_batched_state_goes_back_to_the_very_same_future(env_id, options, mode):
    def play(env):
        rng = np.random.default_rng(1)
        results = []
        for _ in range(120):
            *result, infos = env.step(random_actions(rng, 6, env))
            results.append((*result, infos))
            if mode is AutoresetMode.DISABLED and (result[2] | result[3]).any():
                results.append(env.reset(options={"reset_mask": result[2] | result[3]}))
        return tuple(results)

    env = make_ours(env_id, options, 6, mode)
    env.reset(seed=2)
    play(env)
    state = pickle.loads(pickle.dumps(env.get_state()))
    future = play(env)
    other = make_ours(env_id, options, 6, mode)
    for target in (env, other):
        target.set_state(state)
        assert_same(play(target), future)


@every_case
def test_state_and_results_are_copies(env_id, options):
    env, twin = (make_ours(env_id, options, 3) for _ in range(2))
    rng = np.random.default_rng(0)
    observations = [e.reset(seed=0)[0] for e in (env, twin)]
    for _ in range(120):
        overwrite(observations[0])
        overwrite(env.get_state())
        actions = random_actions(rng, 3, env)
        overwritten_results, twin_results = env.step(actions), twin.step(actions)
        assert_same(overwritten_results, twin_results)
        observations = [overwritten_results[0], twin_results[0]]
        for values in overwritten_results[1:4]:
            values[...] = 0


@every_id
def test_success_is_reported_at_the_last_step_only(env_id):
    env = make_single(env_id, {})
    env.reset(seed=0)
    done = False
    while not done:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        done = terminated or truncated
        assert ("success" in info) == done
    assert 0.0 <= info["success"] <= 1.0


@pytest.mark.parametrize(
    ("env_id", "options", "expected"),
    [
        ("scrubjay/TMaze-v0", {}, 0.5),
        ("scrubjay/RepeatPrevious-v0", {}, 13 / 51),
        ("scrubjay/RepeatPrevious-v0", {"k": 1}, None),
        ("scrubjay/Ballet-v0", {"num_dancers": 5}, 0.2),
        ("scrubjay/Autoencode-v0", {"num_cards": 8}, 0.34375),
        ("scrubjay/KeyToDoor-v0", {}, 1 / 3),
        ("scrubjay/CountRecall-v0", {}, (1 + 26 / 27) / 51),
        ("scrubjay/MemoryPlanning-v0", {}, None),
    ],
)
def test_success_without_memory_is_offered_as_documented(env_id, options, expected):
    assert make_single(env_id, options).success_without_memory == pytest.approx(expected)
    assert make_ours(env_id, options, 2).success_without_memory == pytest.approx(expected)


@every_id
@pytest.mark.parametrize("render_mode", ["rgb_array", "ansi"])
def test_pictures_keep_their_size_and_change_with_the_episode(env_id, render_mode):
    env = make_single(env_id, {}, render_mode=render_mode)
    env.reset(seed=0)
    frames, done = [env.render()], False
    while not done and len(frames) < 10:
        _, _, terminated, truncated, _ = env.step(0)
        frames.append(env.render())
        done = terminated or truncated
    if render_mode == "rgb_array":
        assert {(frame.shape, frame.dtype) for frame in frames} == {(frames[0].shape, np.dtype(np.uint8))}
        frames = [frame.tobytes() for frame in frames]
    assert len(set(frames)) == len(frames) > 1
    batch = make_ours(env_id, {"render_mode": render_mode}, 3)
    batch.reset(seed=0)
    assert len(batch.render()) == 3


@every_id
def test_single_and_batched_defaults_agree(env_id):
    spec = gymnasium.spec(env_id)
    single, batch = (
        inspect.signature(load_env_creator(name)).parameters
        for name in map(str, (spec.entry_point, spec.vector_entry_point))
    )
    assert set(batch) - set(single) == {"num_envs", "autoreset_mode"}
    assert all(batch[name].default == parameter.default for name, parameter in single.items())
    assert batch["autoreset_mode"].default is AutoresetMode.NEXT_STEP
    vector_env: Any = gymnasium.make_vec(env_id, num_envs=2)
    assert vector_env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert vector_env.unwrapped.autoreset_mode is AutoresetMode.NEXT_STEP


@every_id
def test_wrong_use_is_refused_by_name(env_id):
    with pytest.raises(ValueError, match="autoreset_mode='sometimes'"):
        make_ours(env_id, {}, 2, "sometimes")
    with pytest.raises(ValueError, match="num_envs=0"):
        make_ours(env_id, {}, 0)
    with pytest.raises(ValueError, match="render_mode='human'"):
        make_ours(env_id, {"render_mode": "human"}, 2)
    single = make_single(env_id, {})
    with pytest.raises(ResetNeeded):
        single.step(0)
    env = make_ours(env_id, {}, 3)
    for call in (lambda: env.step(np.zeros(3, np.int64)), env.get_state):
        with pytest.raises(ResetNeeded):
            call()
    with pytest.raises(ResetNeeded):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    env.reset(seed=0)
    for actions in ([0, 0, action_count(env)], [0, -1, 0], [0, 0], [0.0, 0.5, 1.0]):
        with pytest.raises(ValueError, match="actions="):
            env.step(np.array(actions))
    with pytest.raises(ValueError, match="2 entries"):
        env.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": np.array([True])})
    single.reset()
    while not any(single.step(1)[2:4]):
        pass
    with pytest.raises(ResetNeeded):
        single.step(1)


@every_id
def test_a_state_of_another_environment_is_refused(env_id):
    env, wider = make_ours(env_id, {}, 3), make_ours(env_id, {}, 4)
    env.reset(seed=0)
    state = env.get_state()
    with pytest.raises(ValueError, match="expected"):
        wider.set_state(state)
    with pytest.raises(ValueError, match="settings"):
        env.set_state({**state, "settings": {"corridor_length": 3}})
    with pytest.raises(ValueError, match="keys"):
        make_single(env_id, {}).set_state(state)
    single = make_single(env_id, {})
    single.reset(seed=0)
    for target, whole in ((env, state), (single, single.get_state())):
        target.reset(seed=1)
        before = target.get_state()
        for name in whole:
            partial_state = {key: value for key, value in whole.items() if key != name}
            with pytest.raises(ValueError, match=name if target is env else "state has the keys"):
                target.set_state(partial_state)
            if name != "new_stream":
                invalid_state = {**whole, name: {} if name == "row" else [object()]}
                with pytest.raises(ValueError, match="state"):
                    target.set_state(invalid_state)
            assert_same(before, target.get_state())


@every_id
def test_metadata_is_that_of_the_batch(env_id):
    single, batch = make_single(env_id, {}), make_ours(env_id, {}, 2)
    assert {**single.metadata, "autoreset_mode": AutoresetMode.SAME_STEP} == batch.metadata
