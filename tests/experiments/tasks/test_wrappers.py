"""Wrappers by text: one environment equals gymnasium's own wrappers, and no untrusted text runs code."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.rl.sampler import can_restore, load_env, save_env
from scrubjay.experiments import EnvConfig, Run, TrainConfig
from scrubjay.experiments.tasks import environments as names
from scrubjay.experiments.tasks.wrappers import WrapperCall

MINE = """
import gymnasium
import numpy as np

class Scale(gymnasium.ObservationWrapper):
    stateless = True
    def __init__(self, env, factor=2.0):
        super().__init__(env)
        self.factor = factor
        space = env.observation_space
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    def observation(self, observation):
        return np.float32(self.factor) * observation

class Broken(Scale):
    def observation(self, observation):
        raise ValueError("no observation today")

class Wrong(Scale):
    def observation(self, observation):
        return observation[:1]

class Leaves(Scale):
    def observation(self, observation):
        raise SystemExit(0)

def nothing(env):
    return 3

NUMBER = 3
"""
TINY = ["--memory", "none", "--total-steps", 64, "--env.num-envs", 4, "--segment-length", 8]
TINY += ["--eval-episodes", 2, "--quiet"]
CART = ["train", "ppo", "--env", "CartPole-v1"]


@pytest.fixture(autouse=True)
def _mine(tmp_path, monkeypatch):
    """Write the wrappers to a folder of Python's path, as in a new process."""
    folder = tmp_path.parent / f"{tmp_path.name}-mine"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setattr(names, "_USER_NAMES", set())
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("mine", None)


words = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).filter(
    lambda word: word not in ("true", "false", "none", "null", "inf", "nan", "infinity")
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
arguments = st.dictionaries(words, scalars | st.lists(scalars, max_size=3).map(tuple), max_size=4)


@given(arguments, st.sampled_from(["", "module", "a.b"]), st.booleans())
def test_a_call_is_read_as_python_writes_it(kwargs, module, quotes):
    def write(value):
        if isinstance(value, tuple):
            return f"[{', '.join(map(write, value))}]"
        return repr(value) if quotes or not isinstance(value, str) else value

    prefix = f"{module}:" if module else ""
    text = f"{prefix}Name({', '.join(f'{name}={write(value)}' for name, value in kwargs.items())})"
    call = WrapperCall.parse(text)
    assert (call.module, call.name, call.kwargs) == (module, "Name", kwargs)
    assert {name: type(value) for name, value in call.kwargs.items()} == {
        name: type(value) for name, value in kwargs.items()
    }


@given(st.text(max_size=30) | st.text("A:=(,)[]'\" 1", max_size=12).map("A(".__add__))
def test_any_other_text_is_a_value_error(text):
    try:
        call = WrapperCall.parse(text)
    except ValueError as error:
        assert "write it as" in str(error)  # noqa: PT017
    else:
        assert call.name.isidentifier()


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            "A(",
            "A(b)",
            "A(b=)",
            "A(b=1 c=2)",
            "A(b=1,,c=2)",
            "A(=1)",
            "A(b='x)",
            "A(b=[1, [2]])",
            "A()x",
        ],
        *["A(b=[1,2)", "A(b=[1 2])", "a:b:c", "A(b=1, b=2)", "a-b:C", "A(b=" + "1" * 2000 + ")"],
    ],
)
def test_damaged_calls_are_refused_with_the_syntax(text):
    with pytest.raises(ValueError, match="write it as Name, module:Name or module:Name"):
        EnvConfig("CartPole-v1", wrappers=(text,))


def stored_env(path) -> EnvConfig:
    config = Run.load(path).config
    assert isinstance(config, TrainConfig)
    return config.env


def play(env, steps=40):
    rows = [env.reset(seed=3)[0]]
    env.action_space.seed(5)
    for _ in range(steps):
        observation, reward, *done, _ = env.step(env.action_space.sample())
        rows += [observation, reward, done]
        if any(done):
            rows.append(env.reset()[0])
    return rows


def assert_equal(rows, expected):
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_equal(row, other)


@pytest.mark.filterwarnings("ignore:.*precision lowered")
@pytest.mark.parametrize(
    ("env_id", "texts", "build"),
    [
        (
            "CartPole-v1",
            ["FrameStackObservation(stack_size=3)"],
            lambda e: wrappers.FrameStackObservation(e, 3),
        ),
        (
            "CartPole-v1",
            ["ClipReward(min_reward=0, max_reward=0.5)"],
            lambda e: wrappers.ClipReward(e, 0, 0.5),
        ),
        ("CartPole-v1", ["TimeLimit(max_episode_steps=5)"], lambda e: wrappers.TimeLimit(e, 5)),
        (
            "Pendulum-v1",
            [
                "RescaleAction(min_action=-1.0, max_action=1.0)",
                "TimeAwareObservation",
                "DelayObservation(delay=2)",
            ],
            lambda e: wrappers.DelayObservation(
                wrappers.TimeAwareObservation(wrappers.RescaleAction(e, np.float64(-1), np.float64(1))), 2
            ),
        ),
        (
            "CartPole-v1",
            ["ReshapeObservation(shape=[2, 2])"],
            lambda e: wrappers.ReshapeObservation(e, (2, 2)),
        ),
        (
            "CartPole-v1",
            ["StickyAction(repeat_action_probability=.5)"],
            lambda e: wrappers.StickyAction(e, 0.5),
        ),
    ],
)
def test_environments_equal_those_of_gymnasium(env_id, texts, build):
    with EnvConfig(env_id, wrappers=tuple(texts)).make() as env, build(gymnasium.make(env_id)) as expected:
        assert env.observation_space == expected.observation_space
        assert env.action_space == expected.action_space
        assert_equal(play(env), play(expected))


def test_the_first_wrapper_is_the_innermost_and_inputs_are_added_last():
    texts = ("FrameStackObservation(stack_size=2)", "mine:Scale(factor=3)")
    env: Any = EnvConfig("CartPole-v1", wrappers=texts, inputs=("observation", "reward")).make()
    assert [type(layer).__name__ for layer in (env, env.env, env.env.env)] == [
        "PreviousStep",
        "Scale",
        "FrameStackObservation",
    ]
    assert env.observation_space["observation"].shape == (2, 4)
    env.close()


@pytest.mark.parametrize("subprocesses", [False, True])
def test_vector_environments_have_the_wrapper_in_each_environment(subprocesses):
    texts = ("TimeLimit(max_episode_steps=9)", "TimeAwareObservation(normalize_time=true)")
    config = EnvConfig("scrubjay/TMaze-v0", num_envs=3, wrappers=texts, subprocesses=subprocesses)
    envs = config.make_batch()
    assert isinstance(envs, AsyncVectorEnv if subprocesses else SyncVectorEnv)
    assert envs.single_observation_space == config.spaces().observation
    observations, _ = envs.reset(seed=3)
    singles = [config.make() for _ in range(3)]
    for row, single in enumerate(singles):
        np.testing.assert_array_equal(observations[row], single.reset(seed=3 + row)[0])
        single.close()
    envs.close()


def test_a_wrapped_environment_has_no_known_success_without_memory():
    """A stack of observations, for example, shows what a memory would have to remember."""
    assert EnvConfig("scrubjay/TMaze-v0").success_without_memory() == 0.5
    config = EnvConfig("scrubjay/TMaze-v0", wrappers=("FrameStackObservation(stack_size=4)",))
    assert config.success_without_memory() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "FrameStakObservation",
            "unknown wrapper 'FrameStakObservation'; did you mean 'FrameStackObservation'",
        ),
        ("vector", "unknown wrapper 'vector'"),
        ("os", "unknown wrapper 'os'"),
        ("gymnasium", "unknown wrapper 'gymnasium'"),
        ("__dict__", "unknown wrapper '__dict__'"),
        ("TransformReward", "wrapper 'TransformReward' needs a function as 'func', which no text can be"),
        ("NormalizeObservation", "not supported: a run does not store its running statistics"),
        ("Autoreset", "not supported: the vector environment already resets"),
        (
            "FrameStackObservation",
            "wrapper 'FrameStackObservation' rejects it or the arguments: .*stack_size",
        ),
        ("FrameStackObservation(stack_size=0)", "rejects it or the arguments: ValueError"),
        ("FrameStackObservation(stack_size=2, wings=2)", "rejects it or the arguments: .*wings"),
        ("FrameStackObservation(stack_size=2, env=2)", "rejects it or the arguments: .*env"),
        ("GrayscaleObservation", "environment 'CartPole-v1': wrapper 'GrayscaleObservation' rejects it"),
        ("AtariPreprocessing", "wrapper 'AtariPreprocessing' rejects it"),
        ("nowhere:Scale", "wrapper 'nowhere:Scale': No module named 'nowhere'; write module:Name"),
        ("mine:Absent", "wrapper 'mine:Absent': module 'mine' has no attribute 'Absent'"),
        ("mine:NUMBER", "NUMBER is a int, not a callable"),
        (
            "mine:nothing",
            "environment 'CartPole-v1 with mine:nothing': it returned a int, not a gymnasium.Env",
        ),
        ("gymnasium.wrappers.vector:RecordEpisodeStatistics", "rejects it or the arguments"),
    ],
)
def test_bad_names_and_arguments_are_refused(text, message, usage_error):
    output = usage_error(*CART, "--wrap", text)
    assert re.search(message, output), output


def test_a_text_is_no_tuple_of_wrappers():
    with pytest.raises(TypeError, match="pass a tuple of texts"):
        EnvConfig("CartPole-v1", wrappers="TimeAwareObservation")  # pyright: ignore[reportArgumentType]


def test_faults_of_a_wrapper_are_faults_of_the_environment(here, usage_error):
    assert "environment 'CartPole-v1': observation" in usage_error(*CART, "--wrap", "mine:Wrong")
    code, _, err = here(*CART, "--wrap", "mine:Leaves", *TINY)
    assert code == 1
    assert "environment 'CartPole-v1'" in err
    code, _, err = here(*CART, "--wrap", "mine:Broken", *TINY)
    assert code == 1
    assert "environment 'CartPole-v1' raised ValueError: no observation today" in err


@pytest.mark.parametrize("recipe", ["team", "mqar"])
def test_only_recipes_of_one_agent_have_wrappers(recipe, usage_error):
    assert "--wrap requires a recipe with a" in usage_error("train", recipe, "--wrap", "TimeAwareObservation")


def test_a_run_with_wrappers_from_training_to_a_recording(here, monkeypatch):
    flags = ["--wrap", "TimeAwareObservation", "--env.wrappers", "mine:Scale(factor=0.5)"]
    code, _, err = here(*CART, *flags, *TINY, "--run-dir", "run")
    assert (code, err) == (0, "")
    config = json.loads(Path("run/config.json").read_text())
    assert config["env"]["wrappers"] == ["TimeAwareObservation", "mine:Scale(factor=0.5)"]
    assert Run.load("run").policy.observation_space.shape == (5,)
    for words, message in (
        (["eval", "run", "--episodes", 2], "CartPole-v1 in TimeAwareObservation in mine:Scale(factor=0.5)"),
        (["look", "run", "--out", "page.html", "--max-steps", 5], "page.html"),
        (["play", "run", "--max-steps", 5], "episode.gif: 6 frames"),
        (["resume", "run", "--total-steps", 96, "--quiet"], "done"),
        (["export", "run", "--pretrained", "--out", "policy"], "policy"),
        (
            ["train", "--config", "run/config.json", "--total-steps", 64, "--run-dir", "third", "--quiet"],
            "done",
        ),
    ):
        monkeypatch.setattr(names, "_USER_NAMES", set())
        code, out, err = here(*words)
        assert (code, err) == (0, ""), words
        assert message in out
    assert stored_env("third") == stored_env("run")
    card = Path("policy/README.md").read_text()
    assert "| wrappers | `TimeAwareObservation`, `mine:Scale(factor=0.5)` |" in card
    assert "env.step" not in card
    assert "--wrap requires" in here("play", "run", "--wrap", "TimeAwareObservation")[2]


def test_a_wrapper_from_a_file_needs_trust(here, monkeypatch):
    assert here(*CART, "--wrap", "mine:Scale", *TINY, "--run-dir", "run")[0] == 0
    monkeypatch.setattr(names, "_USER_NAMES", set())
    sys.modules.pop("mine")
    shutil.copytree("run", "copy")
    shutil.copy("run/config.json", "config.yaml")
    for command in (
        ["eval", "copy", "--episodes", 2],
        ["play", "copy", "--max-steps", 5],
        ["look", "copy", "--out", "page.html"],
        ["resume", "copy", "--total-steps", 96, "--quiet"],
        ["train", "--config", "copy/config.json", "--run-dir", "new", "--quiet"],
        ["train", "--config", "config.yaml", "--run-dir", "new", "--quiet"],
        ["train", "--config", "config.yaml", "--env", "CartPole-v1", "--run-dir", "new", "--quiet"],
    ):
        code, _, err = here(*command)
        assert (code, err.count("\n")) == (2, 1), command
        assert "wrapper 'mine:Scale': " in err
        assert "executes code from outside Scrubjay; add --trust" in err
        assert "mine" not in sys.modules
    assert "config.yaml names it and --wrap does not" in err
    flags = ["--wrap", "mine:Scale"]
    assert here("train", "--config", "config.yaml", *flags, "--run-dir", "new", "--quiet")[0] == 0
    monkeypatch.setattr(names, "_USER_NAMES", set())
    assert "does not use the wrapper 'mine:Scal'" in here("resume", "copy", "--wrap", "mine:Scal")[2]
    assert here("resume", "copy", "--total-steps", 96, *flags, "--quiet")[0] == 0
    monkeypatch.setattr(names, "_USER_NAMES", set())
    assert here("eval", "copy", "--episodes", 2, "--trust")[0] == 0


@pytest.mark.parametrize("command", ["eval", "train"])
def test_a_wrapper_that_writes_files_needs_trust(command, here, monkeypatch):
    text = "RecordVideo(video_folder=videos)"
    assert here(*CART, *TINY, "--run-dir", "run")[0] == 0
    config = json.loads(Path("run/config.json").read_text())
    config["env"] |= {"wrappers": [text], "kwargs": {"render_mode": "rgb_array"}}
    Path("run/config.json").write_text(json.dumps(config))
    monkeypatch.setattr(names, "_USER_NAMES", set())
    words = ["eval", "run"] if command == "eval" else ["train", "--config", "run/config.json"]
    code, _, err = here(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert f"wrapper {text!r}: its config.json has changed" in err or "this user did not train the run" in err
    assert "may write files or open windows; add --trust" in err
    assert not Path("videos").exists()


def test_safe_wrappers_of_a_file_need_no_trust(here, monkeypatch):
    Path("config.yaml").write_text(
        "format: 2\nrecipe: tmaze-demo\ntotal_steps: 64\neval_episodes: 2\n"
        "env: {num_envs: 4, wrappers: [FrameStackObservation(stack_size=2), FlattenObservation]}\n"
    )
    code, _, err = here("train", "--config", "config.yaml", "--memory", "none", "--run-dir", "run", "--quiet")
    assert (code, err) == (0, "")
    assert Run.load("run").policy.observation_space.shape == (8,)
    code, _, err = here(
        "train", "--config", "config.yaml", "--wrap", "FlattenObservation", "--run-dir", "two", "--quiet"
    )
    assert (code, err) == (0, "")
    assert stored_env("two").wrappers == ("FlattenObservation",), "--wrap replaces those of the file"


@pytest.mark.one_in(2, rest="slow")
@pytest.mark.parametrize(
    ("text", "is_exact"),
    [("mine:Scale", True), ("TimeLimit(max_episode_steps=7)", True), ("DelayObservation(delay=1)", False)],
)
def test_resuming_is_exact_with_stateless_wrappers_and_says_so_otherwise(text, is_exact, here, caplog):
    envs = EnvConfig("scrubjay/TMaze-v0", num_envs=3, wrappers=(text,)).make_batch()
    assert can_restore(envs) is is_exact
    if is_exact:
        envs.reset(seed=1)
        envs.action_space.seed(2)
        actions = [envs.action_space.sample() for _ in range(30)]
        for action in actions[:4]:
            envs.step(action)
        state = save_env(envs)
        expected = [envs.step(action)[:4] for action in actions[4:]]
        load_env(envs, state)
        assert_equal([envs.step(action)[:4] for action in actions[4:]], expected)
    envs.close()
    assert here("train", "tmaze-demo", "--wrap", text, *TINY, "--run-dir", "run")[0] == 0
    with caplog.at_level(logging.WARNING):
        assert here("resume", "run", "--total-steps", 96, "--quiet")[0] == 0
    assert ("a wrapper is not stateless: resuming with new episodes" in caplog.text) is not is_exact


@pytest.mark.slow
def test_comparisons_train_with_wrappers(here, trained_here):
    flags = ["--wrap", "FrameStackObservation(stack_size=2)", *TINY[2:-1]]
    words = ["--memories", "none", "--recipes", "tmaze-demo", "--seeds", 0, "--out", "out", "--", *flags]
    code, _, err = here("compare", *words)
    assert (code, err) == (0, "")
    (file,) = Path("out").glob("*/config.json")
    assert stored_env(file.parent).wrappers == (flags[1],)


def test_play_records_a_wrapped_environment(here):
    words = ["--wrap", "MaxAndSkipObservation(skip=4)", "--max-steps", 3, "--out", "x.gif"]
    code, out, err = here("play", "MountainCar-v0", *words)
    assert (code, err) == (0, "")
    assert "return -12" in out, "each step is four steps of the environment"
    assert "--wrap requires a single agent" in here("play", "uav", *words)[2]
