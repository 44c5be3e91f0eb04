"""Runs in environments with nested and half-bounded action spaces, from Python and from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from scrubjay.agents import Policy
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.experiments import EnvConfig, Run, train
from scrubjay.experiments.viz.episode import trace_episode
from scrubjay.memory import make_config

SOURCE = '''
import gymnasium
import numpy as np
from gymnasium import spaces

NESTED = spaces.Dict({
    "move": spaces.Discrete(3, start=-1),
    "arm": spaces.Tuple([spaces.Box(0, np.inf, (2,)), spaces.MultiBinary(2)]),
})
HALF = spaces.Box(np.array([2, -np.inf, -1], np.float32), np.array([np.inf, -3, 1], np.float32))


class Robot(gymnasium.Env):
    """Robot that gets a reward for the sum of all numbers of its action."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, kind="nested", render_mode=None):
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = {"nested": NESTED, "half": HALF}[kind]
        self.render_mode = render_mode
        self.time = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action):
        if not self.action_space.contains(action):
            raise RuntimeError(f"{action!r} is not in {self.action_space}")
        self.time += 1
        reward = float(np.tanh(spaces.flatten(self.action_space, action).sum()))
        return self._observe(), reward, self.time == 5, False, {}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)

    def get_state(self):
        return {"time": self.time}

    def set_state(self, state):
        self.time = state["time"]

    def _observe(self):
        return np.array([self.time / 5, 1], np.float32)
'''


@pytest.fixture
def robots(tmp_path, monkeypatch) -> Path:
    """Write the module `robots` to an empty current folder."""
    (tmp_path / "robots.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "robots", raising=False)
    return tmp_path


@pytest.fixture
def make(tiny, robots):
    def make(kind: str, **policy):
        config = PolicyConfig(memory=make_config("gru", dim=16), **policy)
        return tiny(env=EnvConfig("robots:Robot", {"kind": kind}, num_envs=4), policy=config)

    return make


@pytest.mark.parametrize("kind", ["nested", "half"])
@pytest.mark.parametrize("deviation", ["constant", "state"])
def test_a_run_trains_and_its_policy_acts_in_the_space(kind, deviation, make, tmp_path):
    config = make(kind, deviation=deviation)
    run = train(config, tmp_path / "run")
    assert all(np.isfinite(row["losses/policy_loss"]) for row in run.metrics())
    env = TimeLimit(config.env.make(), 5)
    observation, _ = env.reset(seed=0)
    action, _ = run.policy.act(observation)
    assert env.action_space.contains(action)
    trace = trace_episode(run.policy, config.env)
    assert len(trace.steps) == 5
    assert all(step.choice for step in trace.steps)
    again = Run.load(run.path).policy
    assert str(again.act(observation)[0]) == str(action)


@pytest.mark.parametrize("kind", ["nested", "half"])
def test_commands_train_evaluate_and_show_a_module_of_the_user(kind, robots, here):
    setting = ["--set", f"kind={kind}"]
    sizes = ["--env.num-envs", 4, "--segment-length", 8, "--eval-episodes", 2, "--learner.epochs", 1]
    words = ["--env", "robots:Robot", *setting, *sizes, "--memory.dim", 16, "--run-dir", "run", "--quiet"]
    code, _, err = here("train", "ppo", *words, "--total-steps", 64)
    assert code == 0, err
    commands = (
        ["eval", "run", "--episodes", 2],
        ["look", "run", "--out", "page.html"],
        ["play", "run", "--out", "film.gif"],
        ["play", "robots:Robot", *setting, "--out", "random.gif"],
    )
    for command in commands:
        code, _, err = here(*command)
        assert code == 0, err
    assert (robots / "page.html").exists()
    code, _, err = here("export", "run", "--out", "folder", "--pretrained")
    assert code == 0, err
    policy = Policy.from_pretrained("folder")
    assert policy.action_space == EnvConfig("robots:Robot", {"kind": kind}).spaces().action
