"""User-defined environments by the command: a team from training to a GIF, and invalid teams."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest

from scrubjay.experiments import Run
from scrubjay.experiments.recipes.teams import METHODS
from scrubjay.experiments.tasks import environments as names

MINE = """
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

class Meet(ParallelEnv):
    '''Two on a line of cells are paid while they stand together; after ten steps it is over.'''
    def __init__(self, size=5, nested=False, render_mode=None):
        self.size, self.nested, self.render_mode = size, nested, render_mode
        self.possible_agents, self.agents = ["left", "right"], []
    def observation_space(self, agent):
        box = spaces.Box(0, 1, (2,), np.float32)
        pair = spaces.Tuple([spaces.Discrete(3), box])
        return spaces.Dict({"at": box, "pair": pair}) if self.nested else box
    def action_space(self, agent):
        return spaces.Discrete(3)
    def reset(self, seed=None, options=None):
        self.time, self.agents = 0, list(self.possible_agents)
        self.at = {"left": 0, "right": self.size - 1}
        return self.seen(), {agent: {} for agent in self.agents}
    def step(self, actions):
        self.time += 1
        for agent, choice in actions.items():
            self.at[agent] = min(max(self.at[agent] + int(choice) - 1, 0), self.size - 1)
        met, over, acted = self.at["left"] == self.at["right"], self.time == 10, self.agents
        self.agents = [] if over else self.agents
        told = [dict.fromkeys(acted, value) for value in (float(met), False, over)]
        return self.seen(), *told, {agent: {} for agent in acted}
    def seen(self):
        at = np.array([self.at["left"], self.at["right"]], np.float32) / (self.size - 1)
        boxes = {"left": at, "right": at[::-1]}
        return {a: {"at": box, "pair": (1, box)} for a, box in boxes.items()} if self.nested else boxes
    def render(self):
        picture = np.zeros((9, 9 * self.size, 3), np.uint8)
        for place, cell in enumerate(self.at.values()):
            picture[:, 9 * cell : 9 * cell + 9, place] = 255
        return picture

def in_turn(render_mode=None):
    from pettingzoo.utils import parallel_to_aec
    env = Meet()
    env.metadata = {"name": "meet"}
    return parallel_to_aec(env)

def alone(render_mode=None):
    import gymnasium
    return gymnasium.make("CartPole-v1")

def rows(render_mode=None):
    import gymnasium
    return gymnasium.make_vec("CartPole-v1", 2)

def nothing(render_mode=None):
    return 3

class Unnamed(Meet):
    def __init__(self):
        super().__init__()
        del self.possible_agents

class Newcomer(Meet):
    def step(self, actions):
        told = super().step(actions)
        self.agents += ["third"] * (self.time == 3)
        return told

class Late(Meet):
    resets = 0
    def reset(self, seed=None, options=None):
        told = super().reset(seed, options)
        self.resets += 1
        self.agents += ["third"] * (self.resets == 5)
        return told

class Larger(Meet):
    made = 0
    def __init__(self):
        super().__init__()
        Larger.made += 1
        self.possible_agents += [str(number) for number in range(Larger.made)]

class Unlike(Meet):
    def observation_space(self, agent):
        return spaces.Box(0, 1, (2 + (agent == "right"),), np.float32)

class Unable(Meet):
    def action_space(self, agent):
        return spaces.Discrete(3 + (agent == "right"))

class Words(Meet):
    def observation_space(self, agent):
        return spaces.Dict({"told": spaces.Text(5)})

class Counted(Meet):
    def action_space(self, agent):
        return spaces.Box(0, 3, (1,), np.int32)

class Acting(Meet):
    def action_space(self, agent):
        return spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)])

class Short(Meet):
    def seen(self):
        return {agent: box[:1] for agent, box in super().seen().items()}

class Lacking(Meet):
    def seen(self):
        return {agent: {"at": box["at"]} for agent, box in super().seen().items()}

class Blind(Meet):
    def seen(self):
        return {"left": super().seen()["left"]}

class Unpaid(Meet):
    def step(self, actions):
        seen, earned, *told = super().step(actions)
        return seen, {"left": earned["left"]}, *told

class Listed(Meet):
    def step(self, actions):
        seen, earned, *told = super().step(actions)
        return seen, {agent: [one] for agent, one in earned.items()}, *told

class Seedless(Meet):
    def reset(self):
        return super().reset()
"""
TINY = ["--env.num-envs", "4", "--segment-length", "10", "--quiet"]


@pytest.fixture(autouse=True)
def _mine(tmp_path, monkeypatch):
    """Write the environments to the current folder, as in a new process."""
    folder = tmp_path.parent / f"{tmp_path.name}-mine"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE)
    monkeypatch.setattr(names, "_USER_NAMES", set())
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # from another test
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("mine", None)


@pytest.mark.slow
def test_a_team_of_ones_own_learns(here, tmp_path):
    words = ["--env", "mine:Meet", "--method", "gamatr", "--memory.dim", "16", "--total-steps", "2000"]
    code, _, err = here("train", "team", *words, *TINY, "--eval-episodes", 5, "--run-dir", "run")
    assert (code, err) == (0, "")
    run = Run.load(tmp_path / "run")
    assert (run.config.recipe, run.config.label) == ("team", "gamatr")
    # A random team is together about a fifth of the time; the best possible is always after two steps.
    assert run.metrics()[0]["charts/episodic_return"] < 9
    assert run.result["episodic_return"] > 12


@pytest.mark.slow
def test_a_run_of_it_is_judged_played_drawn_and_resumed(here, tmp_path, monkeypatch):
    short = [*TINY, "--total-steps", "120", "--eval-episodes", "2", "--set", "nested=true"]
    code, _, err = here("train", "team", "--env", "mine:Meet", *short, "--run-dir", "run")
    assert (code, err) == (0, "")
    assert Run.load(tmp_path / "run").result["episodic_length"] == 10
    monkeypatch.setattr(names, "_USER_NAMES", set())  # in another process
    shutil.copytree("run", "copy")
    for verb in (["eval", "copy", "--episodes", 3], ["play", "copy"]):
        code, _, err = here(*verb)
        assert (code, err.count("\n")) == (2, 1)
        assert "add --trust" in err
    for words, message in (
        (["eval", "run", "--episodes", 3], "length  10.0 steps, 3 episodes"),
        (["eval", "copy", "--episodes", 3, "--trust"], "length  10.0 steps, 3 episodes"),
        (["eval", "run", "--episodes", 2, "--set", "size=7"], "mine:Meet nested=True, size=7"),
        (["play", "run"], "episode.gif: 11 frames"),
        (["play", "run", "--policy", "random", "--out", "x.gif"], "x.gif: 11 frames"),
        (["play", "copy", "--trust", "--policy", "random", "--out", "x.gif"], "x.gif: 11 frames"),
        (["plot", "run"], "curve.png"),
        (["resume", "run"], "is finished"),
    ):
        monkeypatch.setattr(names, "_USER_NAMES", set())
        code, out, err = here(*words)
        assert (code, err) == (0, ""), words
        assert message in out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "total_steps": 240}))
    (tmp_path / "run" / "result.json").unlink()
    monkeypatch.setattr(names, "_USER_NAMES", set())
    assert "add --trust" in here("resume", "run", "--quiet")[2]
    code, out, err = here("resume", "run", "--quiet", "--env", "mine:Meet")
    assert code == 0, err
    assert Run.load(tmp_path / "run").step == 240


def test_the_recipe_alone_asks_for_its_environment(usage_error):
    assert "recipe 'team' needs --env: module:callable of a PettingZoo ParallelEnv" in usage_error(
        "train", "team"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine:in_turn", r"its agents take turns \(an AECEnv\): name your own function .*aec_to_parallel"),
        (
            "mine:alone",
            "it returned a single-agent environment, not a team: use scrubjay train ppo --env mine:alone$",
        ),
        ("mine:rows", "it returned a single-agent environment"),
        (
            "CartPole-v1",
            "gymnasium ids are for single agents .scrubjay train ppo --env CartPole-v1.; for a team write",
        ),
        ("mine:nothing", "it returned a int, not a PettingZoo ParallelEnv"),
        ("mine:Unnamed", "Unnamed has no possible_agents: set it"),
        ("mine:Newcomer", "unknown agent 'third'; possible_agents must list .* but is .'left', 'right'."),
        ("mine:Larger", "possible_agents must be the same in all environments"),
        ("mine:Unlike", "observation_space of 'right' .* pad them .supersuit.pad_observations_v0"),
        ("mine:Unable", "action_space of 'right' .* pad_action_space_v0"),
        ("mine:Words", r"observation space Text.* use Box, .* or a Dict or Tuple of these"),
        ("mine:Counted", "action space Box.* is not supported; use Discrete"),
        ("mine:Acting", "action space Tuple.* is not supported for teams; use Discrete"),
        ("mine:Short", r"observation of 'left' is \[0.\], which does not match its observation_space, Box"),
        (
            "mine:Lacking",
            "observation of 'left' is {'at': .* which does not match its observation_space, Dict",
        ),
        ("mine:Blind", "no observation of 'right'"),
        ("mine:Unpaid", "no reward of 'right'"),
        ("mine:Listed", r"reward of 'left' is \[0.0\]; expected a number"),
        ("mine:Seedless", "environment 'mine:Seedless': .*unexpected keyword argument 'seed'"),
    ],
)
def test_what_is_no_team_is_told_before_a_run_is_begun(name, message, usage_error):
    more = ["--set", "nested=true"] if name == "mine:Lacking" else []
    output = usage_error("train", "team", "--env", name, *more)
    assert re.search(message, output), output


def test_what_is_seen_later_is_told_with_the_way_to_go_on(here, tmp_path):
    words = ["--env", "mine:Late", *TINY, "--total-steps", "4000", "--run-dir", "run"]
    code, _, err = here("train", "team", *words)
    assert code == 1
    assert err.startswith("scrubjay: environment 'mine:Late': unknown agent 'third'")
    assert err.endswith("after fixing it, continue with: scrubjay resume run --env mine:Late\n")
    assert err.count("\n") == 1
    assert Run.load(tmp_path / "run").metrics()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mine:Meet",
            "it returned a PettingZoo ParallelEnv, a team: use scrubjay train team --env mine:Meet",
        ),
        ("mine:in_turn", "it returned a PettingZoo AECEnv, a team whose agents take turns"),
        ("mine:rows", "it returned a VectorEnv; name a callable that returns a single environment"),
        ("mine:nothing", "it returned a int, not a gymnasium.Env"),
    ],
)
def test_what_is_not_of_one_agent_is_told_where_to_go(name, message, usage_error):
    assert f"environment {name!r}: {message}" in usage_error("train", "ppo", "--env", name)
    if name == "mine:in_turn":
        message = "its agents take turns (an AECEnv)"
    if name != "mine:Meet":  # play accepts a team
        assert f"environment {name!r}: {message}" in usage_error("play", name)


@pytest.mark.slow
def test_every_method_is_for_any_team(here):
    for method in METHODS:
        words = ["--total-steps", "40", "--eval-episodes", "0", "--memory.dim", "8", "--run-dir", method]
        code, _, err = here("train", "team", "--env", "mine:Meet", "--method", method, *TINY, *words)
        assert (code, err) == (0, ""), method
