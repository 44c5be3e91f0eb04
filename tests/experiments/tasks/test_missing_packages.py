"""Errors name missing packages of extras and the install command."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import gymnasium
import pytest

MEMORY_GYM = "pip install --no-deps memory-gym pygame"
# Simulate packages that are not installed.
WITHOUT = """
import contextlib, io, json, sys
PACKAGES = {"mpe2", "popgym", "minigrid", "memory_gym", "imageio_ffmpeg", "ale_py", "cv2"}
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without())
from scrubjay.experiments.commands.main import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.redirect_stdout(told):
        code = main(words)
    print(json.dumps([code, told.getvalue()]))
"""
CASES = [
    (["train", "spread"], "No module named 'mpe2'; pip install 'scrubjay[mpe]'"),
    (["play", "spread"], "pip install 'scrubjay[mpe]'"),
    (["train", "team", "--env", "mpe2.simple_tag_v3:parallel_env"], "pip install 'scrubjay[mpe]'"),
    (["train", "ppo", "--env", "popgym:popgym-CountRecallEasy-v0"], "pip install 'scrubjay[popgym]'"),
    (["train", "ppo", "--env", "popgym.envs.count_recall:CountRecallEasy"], "pip install 'scrubjay[popgym]'"),
    (["play", "popgym:popgym-CountRecallEasy-v0"], "pip install 'scrubjay[popgym]'"),
    (
        ["train", "ppo", "--env", "popgym-CountRecallEasy-v0"],
        "did you mean 'popgym:popgym-CountRecallEasy-v0' (extra popgym)?",
    ),
    (["train", "ppo", "--env", "minigrid:MiniGrid-MemoryS7-v0"], "pip install 'scrubjay[minigrid]'"),
    (["train", "ppo", "--env", "minigrid.envs:MemoryEnv"], "pip install 'scrubjay[minigrid]'"),
    (
        ["train", "ppo", "--env", "MiniGrid-MemoryS7-v0"],
        "did you mean 'minigrid:MiniGrid-MemoryS7-v0' (extra minigrid)?",
    ),
    (["play", "BabyAI-GoToObj-v0"], "did you mean 'minigrid:BabyAI-GoToObj-v0' (extra minigrid)?"),
    (["train", "ppo", "--env", "memory_gym:MortarMayhem-Grid-v0"], MEMORY_GYM),
    (["train", "ppo", "--env", "memory_gym.mortar_mayhem_grid:GridMortarMayhemEnv"], MEMORY_GYM),
    (["train", "ppo", "--env", "ALE/Pong-v5"], "pip install ale-py, and name it ale_py:ALE/Pong-v5"),
    (["train", "ppo", "--env", "ale_py:ALE/Pong-v5"], "pip install ale-py"),
    (["play", "scrubjay/TMaze-v0", "--out", "x.mp4"], "pip install 'scrubjay[film]'"),
]


@pytest.mark.slow
def test_what_is_missing_is_named_with_what_brings_it(tmp_path):
    command = [sys.executable, "-c", WITHOUT, json.dumps([words for words, _ in CASES])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (words, message), (code, output) in zip(CASES, answers, strict=True):
        assert code == 2, words
        assert message in output, words
        assert output.count("\n") == 1, words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mpe2.simple_sprad_v3:parallel_env",
            "No module named 'mpe2.simple_sprad_v3'; write module:callable",
        ),
        ("popgym:popgym-CountRecalEasy-v0", "did you mean 'popgym:popgym-CountRecallEasy-v0'?"),
        ("minigrid:MiniGrid-MemoryS8-v0", "did you mean 'minigrid:MiniGrid-MemoryS"),
    ],
)
def test_who_has_the_package_is_not_told_to_install_it(name, message, usage_error, require):
    require(name[: name.index(":")].partition(".")[0])
    output = usage_error("train", "team" if "mpe2" in name else "ppo", "--env", name)
    assert message in output
    assert "pip install" not in output


OWN = """
import gymnasium
{top}

def make(render_mode=None):
    {inside}
    return gymnasium.make("CartPole-v1")

def parallel(render_mode=None):
    {inside}

class Late(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(2)
    def __init__(self, render_mode=None):
        pass
    def reset(self, *, seed=None, options=None):
        {inside}
        return 0, {{}}

gymnasium.register("Lacks-v0", entry_point="nolib.envs:Env", disable_env_checker=True)
"""
LACKS = "No module named 'nolib'; the environment needs it: pip install nolib"


@pytest.fixture
def own(tmp_path):
    """Return a function that writes the module `lacking` with these imports."""

    def write(top="", inside="pass"):
        (tmp_path / "lacking.py").write_text(OWN.format(top=top, inside=inside))

    yield write
    sys.modules.pop("lacking", None)
    gymnasium.registry.pop("Lacks-v0", None)


@pytest.mark.parametrize(
    ("top", "inside", "name", "message"),
    [
        ("import nolib.parts", "pass", "lacking:make", LACKS),
        ("", "import nolib.parts", "lacking:make", LACKS),
        ("", "import nolib.parts", "lacking:Late", LACKS),
        ("import cv2", "pass", "lacking:make", "pip install opencv-python"),
        ("import numpy.nothing", "pass", "lacking:make", "the installed numpy has no such module"),
        ("from numpy import nothing", "pass", "lacking:make", "cannot import name 'nothing'"),
        ("", "gymnasium.make('Nothing-v0')", "lacking:make", "Environment `Nothing` doesn't exist"),
        ("", "pass", "lacking:Lacks-v0", "the environment needs it: pip install nolib"),
        ("", "pass", "nolib:make", "with a module in the current folder, or install its package"),
        ("", "pass", "nolib:Lacks-v0", "with a module in the current folder, or install its package"),
    ],
)
def test_an_environment_that_lacks_a_package_is_not_unknown(
    top, inside, name, message, own, here, monkeypatch
):
    monkeypatch.setitem(sys.modules, "cv2", None)
    own(top, inside)
    for words in (["train", "ppo", "--env", name], ["play", name]):
        code, _, err = here(*words)
        assert code == 2, words
        assert message in err
        assert err.startswith(f"scrubjay: environment {name!r}: ")
        assert "unknown" not in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(("top", "inside"), [("import nolib.parts", "pass"), ("", "import nolib.parts")])
def test_a_team_that_lacks_a_package_is_named(top, inside, own, here):
    own(top, inside)
    code, _, err = here("train", "team", "--env", "lacking:parallel")
    assert (code, err) == (2, f"scrubjay: environment 'lacking:parallel': {LACKS}\n")


def test_an_environment_of_gymnasium_that_lacks_its_extra_is_not_unknown(usage_error):
    if importlib.util.find_spec("mujoco") is not None:
        pytest.skip("mujoco is installed")
    err = usage_error("train", "ppo", "--env", "Humanoid-v5")
    assert err.startswith("scrubjay: environment 'Humanoid-v5': MuJoCo is not installed, run `pip install")
