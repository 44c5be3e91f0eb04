"""Model cards: the Hub parses them, their code runs, and names with special characters are safe."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import gymnasium
import pytest
from gymnasium import spaces
from huggingface_hub import ModelCard

from scrubjay.agents import Origin, Policy, PolicyConfig, Spaces, TeamPolicy
from scrubjay.memory import make_config

MAZE = "scrubjay.envs:scrubjay/TMaze-v0"
ORIGIN = Origin(
    MAZE,
    {"corridor_length": 6},
    "ppo",
    4096,
    7,
    {
        "episodes": 100,
        "success": 0.98,
        "success_low": 0.93,
        "success_high": 0.995,
        "episodic_return": 0.5,
        "episodic_return_low": 0.4,
        "episodic_return_high": 0.6,
    },
)


@pytest.fixture
def folder(tmp_path):
    with gymnasium.make(MAZE) as env:
        of_maze = Spaces(env.observation_space, env.action_space)
    policy = PolicyConfig(make_config("hcam", dim=8)).build(of_maze)
    policy.save_pretrained(tmp_path, ORIGIN)
    return tmp_path


def test_the_hub_reads_what_it_is_and_how_good(folder):
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "scrubjay"
    assert data["pipeline_tag"] == "reinforcement-learning"
    assert {"reinforcement-learning", "memory", "hcam", "ppo"} <= set(data["tags"])
    assert (data["environment"], data["memory"], data["steps"], data["seeds"]) == (MAZE, "hcam", 4096, [7])
    (results,) = data["model-index"]
    metrics = {
        metric["type"]: metric["value"] for result in results["results"] for metric in result["metrics"]
    }
    assert metrics == {"mean_reward": 0.5, "success": 0.98}
    assert card.text.count("| success, 95 % interval | 0.980 [0.930, 0.995] |") == 1
    assert "| settings | `corridor_length=6` |" in card.text
    assert "| steps | 4,096 |" in card.text


@pytest.mark.slow
def test_the_code_in_it_loads_the_policy_and_lets_it_act(folder):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert isinstance(float(done.stdout), float)


def test_what_nobody_knows_is_left_out(tmp_path):
    Policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert {"environment", "steps", "seeds", "model-index"}.isdisjoint(card.data.to_dict())
    assert "None" not in card.text
    assert "Policy.from_pretrained" in card.text
    assert "gymnasium.make" not in card.text


def test_a_team_has_one(tmp_path):
    TeamPolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), 3).save_pretrained(tmp_path, ORIGIN)
    text = ModelCard.load(tmp_path / "README.md").text
    assert "| agents | 3 |" in text
    assert "TeamPolicy.from_pretrained" in text


@pytest.mark.parametrize(
    "name",
    ["a: b\n---\n# Title", "x` | y", 'maze"-v0', "{{ 7 * 7 }}", "no", "<script>x</script>", "[a](b)-v1"],
)
def test_no_name_breaks_it(name, tmp_path):
    policy = Policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    policy.save_pretrained(tmp_path, Origin(name, {name: name}, learner=name))
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert data["environment"] == name
    assert data["library_name"] == "scrubjay"
    assert card.text.count("\n# ") == 1
    assert "gymnasium.make" not in card.text
    for line in card.text.splitlines():
        if line.startswith("| "):
            assert line.count("|") == 3
            assert line.count("`") % 2 == 0
