"""Code of an environment that ends the process: the command fails with a message that names it."""

from __future__ import annotations

import re
import signal
import sys
import time

import pytest

from scrubjay.agents.rl.exits import describe_exit
from scrubjay.experiments import EnvConfig, Run, TrainConfig, train
from scrubjay.experiments.cli.failures import FailedError
from scrubjay.experiments.launch.parallel import run_in_processes
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.status import read_status
from scrubjay.experiments.user_modules import search_current_folder

MODULE = """
import os, sys, time
from gymnasium import spaces
import gymnasium
import numpy as np
from pettingzoo import ParallelEnv


def fail(how):
    if how == "exit":
        sys.exit(0)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "end":
        os._exit(0)
    if how == "hang":
        open("hangs", "w").close()
        time.sleep(600)
    if how == "pipe":
        raise BrokenPipeError(32, "Broken pipe")


class Quits(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, where="", when=0, how="exit", render_mode=None):
        self.where, self.when, self.how, self.render_mode, self.steps = where, when, how, render_mode, 0
        if where == "init":
            fail(how)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.where == "reset" and self.steps >= self.when:
            fail(self.how)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.where == "step" and self.steps > self.when:
            fail(self.how)
        return np.zeros(2, np.float32), 0.0, self.steps % 5 == 0, False, {}

    def render(self):
        if self.where == "render":
            fail(self.how)
        return np.zeros((8, 8, 3), np.uint8)


class Team(ParallelEnv):
    possible_agents = ["a", "b"]
    metadata = {"name": "team", "render_modes": ["rgb_array"]}
    observation_space = lambda self, agent: Quits.observation_space
    action_space = lambda self, agent: Quits.action_space

    def __init__(self, render_mode=None, **settings):
        self.quits, self.render_mode = Quits(render_mode=render_mode, **settings), render_mode

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        return self.share(self.quits.reset(seed=seed)[0]), self.share({})

    def step(self, actions):
        observation, reward, over, truncated, info = self.quits.step(0)
        values = [self.share(value) for value in (observation, reward, over, truncated, info)]
        self.agents = [] if over else self.agents
        return values

    def share(self, value):
        return dict.fromkeys(self.possible_agents, value)

    def render(self):
        return self.quits.render()
"""
SMALL = ["--env.num-envs", 4, "--segment-length", 8, "--total-steps", 128, "--eval-episodes", 2]


@pytest.fixture(autouse=True)
def quits(tmp_path, monkeypatch):
    (tmp_path / "quits.py").write_text(MODULE)
    (tmp_path / "leaves.py").write_text("import argparse\nargparse.ArgumentParser().exit()\n")
    yield
    for name in ("quits", "leaves"):
        sys.modules.pop(name, None)


def settings(**values):
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("recipe", ["ppo", "team"])
@pytest.mark.parametrize(
    ("where", "when"), [("init", 0), ("reset", 0), ("step", 0), ("step", 20), ("reset", 30)]
)
def test_training_fails_with_the_name_of_the_environment(recipe, where, when, here, tmp_path):
    name = "quits:Quits" if recipe == "ppo" else "quits:Team"
    words = ["train", recipe, "--env", name, *settings(where=where, when=when), *SMALL, "--run-dir", "r"]
    code, _, err = here(*words)
    assert code == 1
    assert err.startswith(f"scrubjay: environment {name!r}: ")
    assert "quits.py, line 11 raised SystemExit (exit code 0)" in err
    assert err.count("\n") == 1
    assert read_status(tmp_path / "r") == ("failed" if when > 16 else "unfinished")
    assert ("continue with: scrubjay resume r" in err) == (when > 16)


def test_an_exit_through_the_hook_of_wandb_is_that_of_its_caller(monkeypatch):
    from wandb.sdk.lib.exit_hooks import ExitHooks

    monkeypatch.setattr(sys, "exit", sys.exit)  # restores both after the test
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    ExitHooks().hook()
    with pytest.raises(SystemExit) as error:
        sys.exit(3)
    message = describe_exit(error.value)
    assert f"{__file__}, line " in message
    assert "raised SystemExit (exit code 3)" in message


@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")  # it also prints the errors of its processes
def test_training_in_processes_fails_with_the_name_of_the_environment(here, tmp_path):
    words = ["train", "ppo", "--env", "quits:Quits", *SMALL, "--run-dir", "r", "--env.subprocesses"]
    code, _, err = here(*words, *settings(where="step", when=20))
    assert code == 1
    assert err.startswith("scrubjay: environment 'quits:Quits': ")
    assert "quits.py, line 11 raised SystemExit (exit code 0)" in err


@pytest.mark.parametrize("recipe", ["ppo", "team"])
def test_an_import_that_exits_is_named(recipe, here):
    code, _, err = here("train", recipe, "--env", "leaves:make")
    assert code == 1
    assert err.startswith("scrubjay: environment 'leaves:make': ")
    assert "leaves.py, line 2 raised SystemExit (exit code 0)" in err


@pytest.mark.parametrize(("where", "when"), [("init", 0), ("reset", 0), ("step", 0), ("step", 20)])
def test_an_interrupt_that_nobody_sent_is_a_failure(where, when, here, tmp_path):
    words = ["train", "ppo", "--env", "quits:Quits", *settings(where=where, when=when, how="interrupt")]
    code, _, err = here(*words, *SMALL, "--run-dir", "r")
    assert code == 1
    assert "quits.py, line 13 raised KeyboardInterrupt (no Ctrl-C)" in err
    assert read_status(tmp_path / "r") == ("failed" if when else "unfinished")
    assert ("continue with: scrubjay resume r" in err) == (when > 0)


def test_ctrl_c_in_the_code_of_an_environment_stops_the_command(here, tmp_path):
    (tmp_path / "leaves.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may ignore it
    try:
        code, out, err = here("train", "ppo", "--env", "leaves:make")
        assert (code, err.strip()) == (130, "stopped"), out
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler], ids=["ignored", "default"])
def test_an_import_that_interrupts_is_a_failure(handler, here, tmp_path):
    """A shell starts commands in the background with this signal ignored."""
    (tmp_path / "leaves.py").write_text("raise KeyboardInterrupt\n")
    before = signal.signal(signal.SIGINT, handler)
    try:
        code, _, err = here("train", "ppo", "--env", "leaves:make")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 1
    assert "environment 'leaves:make': " in err
    assert "leaves.py, line 1 raised KeyboardInterrupt (no Ctrl-C)" in err


@pytest.mark.matrix
@pytest.mark.parametrize("where_to_run", [[], ["--env.subprocesses"]], ids=["here", "in processes"])
def test_training_that_hangs_ends_after_one_signal(where_to_run, start, tmp_path):
    hang = settings(where="step", when=48, how="hang")
    words = ["train", "ppo", "--env", "quits:Quits", *hang, *where_to_run, *SMALL, "--total-steps", 4096]
    process = start(*words, "--checkpoint-seconds", 0, "--run-dir", "r", "--quiet")
    while not (tmp_path / "hangs").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    err = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert re.fullmatch(
        r"scrubjay: the update did not end within 20 s of the signal to stop: it waits in .*\.py, line \d+, "
        r"for example in environment 'quits:Quits'; steps since the latest checkpoint are lost; "
        r"resume with: scrubjay resume r --env quits:Quits\n",
        err,
    )
    assert Run.load(tmp_path / "r").step == 6 * 4 * 8


@pytest.mark.parametrize("when", [0, 20])
def test_a_broken_pipe_is_not_taken_for_a_closed_output(when, here):
    words = ["train", "ppo", "--env", "quits:Quits", *settings(where="step", when=when, how="pipe")]
    code, _, err = here(*words, *SMALL, "--run-dir", "r")
    assert code == 1
    assert "environment 'quits:Quits': BrokenPipeError" in err


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("verb", ["eval", "play", "look"])
@pytest.mark.parametrize("recipe", ["ppo", "team"])
def test_other_commands_fail_alike(verb, recipe, here):
    name = "quits:Quits" if recipe == "ppo" else "quits:Team"
    assert here("train", recipe, "--env", name, *SMALL, "--run-dir", "r")[0] == 0
    for how, error in (("exit", "SystemExit (exit code 0)"), ("interrupt", "KeyboardInterrupt (no Ctrl-C)")):
        for where in ("init", "reset", "step"):
            when = 3 if where == "step" else 0
            code, _, err = here(verb, "r", "--trust", *settings(where=where, when=when, how=how))
            assert code == 1, (where, how)
            assert f"raised {error}" in err
            assert err.startswith("scrubjay: environment '")


def test_a_picture_that_exits_is_a_failure(here):
    code, _, err = here("play", "quits:Quits", *settings(where="render"))
    assert code == 1
    assert "quits.py, line 11 raised SystemExit (exit code 0)" in err


def test_a_callback_that_exits_is_a_failure(tiny, tmp_path):
    with pytest.raises(FailedError, match=r"test_exits\.py, line \d+ raised SystemExit \(exit code None\)"):
        train(tiny(), tmp_path / "r", on_update=lambda step, row: sys.exit())
    assert not Run.load(tmp_path / "r").is_finished


@pytest.mark.one_in(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("exit", "environment 'quits:Quits': .*quits.py, line 11 raised SystemExit"),
        ("end", "its process ended without a result"),
    ],
)
def test_a_run_of_a_comparison_that_exits_is_a_failure(how, message, here, tmp_path):
    env = EnvConfig("quits:Quits", {"where": "step", "when": 20, "how": how}, num_envs=4)
    with search_current_folder():
        run = Run.create(TrainConfig(env=env, total_steps=128, segment_length=8), tmp_path / "r")
        with pytest.raises(FailedError, match=message):
            run_in_processes([run], jobs=1)


@pytest.mark.matrix
def test_an_exit_on_ray_is_named(cluster, tmp_path):
    (cluster / "quits.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(cluster))
        env = EnvConfig("quits:Quits", {"where": "step", "when": 20}, num_envs=4)
        config = TrainConfig(env=env, total_steps=128, segment_length=8)
        with pytest.raises(FailedError, match=r"environment 'quits:Quits': .*quits\.py, line 11 raised Sys"):
            train(config, tmp_path / "r", ray=RayOptions(num_env_runners=1))


def test_help_still_succeeds(here):
    for words in (["--help"], ["train", "--help"], ["train", "tmaze", "--help"], ["doctor", "--help"]):
        code, out, _ = here(*words)
        assert (code, "usage" in out.lower()) == (0, True), words
