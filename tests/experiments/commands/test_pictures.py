"""`scrubjay play`: teams, their rules and runs, and errors that name the fix."""

from __future__ import annotations

import sys
import types

import gymnasium
import numpy as np
import pytest
from pettingzoo import AECEnv
from PIL import Image, ImageSequence

from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.experiments import train
from scrubjay.experiments.commands.main import main
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.tasks.teams import KNOWN_TEAMS, KnownTeamEnv, TeamEnvConfig

from ..viz.test_film import Relay


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize(("policy", "preset"), [("random", "small"), ("static", "city"), ("follow", "paper")])
def test_rules_of_thumb_are_played_from_the_command_line(policy, preset, tmp_path, capsys):
    words = ["play", "uav", "--policy", policy, "--preset", preset, "--set", "max_steps=3"]
    out, map_file = tmp_path / "uav.gif", tmp_path / "map.png"
    assert main([*words, "--out", str(out), "--coverage", str(map_file)]) == 0
    message = capsys.readouterr().out
    assert "4 frames, return" in message
    assert "sum_rate_bps" in message
    assert str(map_file) in message
    with Image.open(out) as gif:
        assert len(list(ImageSequence.Iterator(gif))) == 4
    assert map_file.stat().st_size > 1000


def relay(preset="short", render_mode=None):
    if preset not in ("short", "long"):
        raise ValueError(f"preset {preset!r}: choose from short, long")
    env = Relay()
    env.last = 2 if preset == "short" else 4
    return env


def first_to_act(seed):
    return lambda env, observations, alive, start: alive.astype(np.int64) * [3, 1]


def test_an_environment_made_known_plays_by_its_short_name(tmp_path, monkeypatch, capsys):
    module = types.ModuleType("scrubjay_relay")
    vars(module).update(relay=relay, RULES={"greedy": first_to_act})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    known_env = KnownTeamEnv("scrubjay_relay:relay", True, "scrubjay_relay:RULES", "greedy")
    monkeypatch.setitem(KNOWN_TEAMS, "relay", known_env)
    out = tmp_path / "relay.gif"
    for flags, message in (
        ([], "3 frames, return 8"),
        (["--preset", "long"], "5 frames, return 14"),
        (["--policy", "random"], "3 frames, return"),
    ):
        assert main(["play", "relay", *flags, "--out", str(out)]) == 0
        assert f"{out}: {message}" in capsys.readouterr().out
    assert main(["play", "relay", "--policy", "follow"]) == 2
    assert "choose from random, greedy, or the directory" in capsys.readouterr().err
    assert main(["play", "relay", "--preset", "city"]) == 2
    assert "choose from short, long" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["relay", "plain", "Relay"])
def test_a_team_of_ones_own_plays_by_module_and_callable(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("my_relay")
    vars(module).update(relay=relay, plain=lambda: relay(), Relay=Relay)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    frames = Relay.last + 1 if name == "Relay" else 3
    for flags in ([], ["--policy", "random"]):
        assert main(["play", f"my_relay:{name}", *flags]) == 0
        assert f"episode.gif: {frames} frames, return" in capsys.readouterr().out
    for flags, message in (
        (["--policy", "follow"], "choose from random, or the directory"),
        (["--preset", "short"], "--preset is supported only by uav"),
        (["--coverage", "map.png"], "--coverage requires uav"),
        (["--set", "wings=2"], "rejects {'wings': 2}"),
    ):
        assert main(["play", f"my_relay:{name}", *flags]) == 2
        assert message in capsys.readouterr().err


def test_what_is_no_parallel_team_is_played_alone_or_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("my_things")
    vars(module).update(
        cart=lambda render_mode=None: gymnasium.make(
            "scrubjay.envs:scrubjay/TMaze-v0", render_mode=render_mode
        ),
        turns=lambda: AECEnv(),
        parallel_env=None,
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert main(["play", "my_things:cart", "--max-steps", "2"]) == 0
    assert "episode.gif: 3 frames" in capsys.readouterr().out
    assert main(["play", "my_things:cart", "--policy", "random"]) == 2
    assert "--policy requires a team" in capsys.readouterr().err
    assert main(["play", "my_things:turns"]) == 2
    assert "its agents take turns (an AECEnv): use my_things:parallel_env" in capsys.readouterr().err


def test_a_known_team_plays_by_module_and_callable(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "scrubjay.envs.uav:parallel_env"
    settings = [word for text in ("num_users=4", "max_steps=3") for word in ("--set", text)]
    assert main(["play", name, "--policy", "static", *settings]) == 0
    assert "episode.gif: 4 frames" in capsys.readouterr().out


@pytest.fixture(scope="module")
def team_run(tmp_path_factory):
    """Directory of a minimally trained run with two base stations and four users."""
    config = TeamTaskConfig(
        env=TeamEnvConfig(kwargs={"num_users": 4, "max_steps": 3}, num_envs=2),
        learner=GAMATRConfig(minibatches=2),
        total_steps=6,
        segment_length=3,
        device="cpu",
        eval_episodes=0,
    )
    return str(train(config, tmp_path_factory.mktemp("team") / "run").path)


@pytest.mark.slow
def test_a_run_plays_its_own_environment_or_another(team_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["play", team_run]) == 0
    assert f"{team_run}/episode.gif: 4 frames" in capsys.readouterr().out
    assert main(["play", "uav", "--policy", team_run, "--set", "num_uavs=3"]) == 0
    assert "episode.gif: 4 frames" in capsys.readouterr().out
    settings = [word for text in ("num_users=4", "max_steps=1") for word in ("--set", text)]
    assert main(["play", "scrubjay.envs.uav:parallel_env", "--policy", team_run, *settings]) == 0
    assert "episode.gif: 2 frames" in capsys.readouterr().out
    assert main(["play", "uav-small", "--policy", team_run, "--set", "max_steps=2"]) == 0
    assert "episode.gif: 3 frames" in capsys.readouterr().out
    assert main(["play", team_run, "--policy", "static", "--out", "static.gif"]) == 0
    assert "static.gif: 4 frames" in capsys.readouterr().out
    assert main(["play", "uav", "--policy", team_run, "--preset", "city"]) == 2
    assert "does not match" in capsys.readouterr().err


@pytest.mark.requires("mpe2")
def test_teams_without_rules_play_at_random(tmp_path, capsys):
    words = ["play", "spread", "--out", str(tmp_path / "spread.gif"), "--max-steps", "2"]
    assert main(words) == 0
    assert "3 frames" in capsys.readouterr().out
    assert main([*words, "--coverage", str(tmp_path / "map.png")]) == 2
    assert "--coverage requires uav" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["uav", "--policy", "runs/none"], "or the directory of a team run"),
        (["uav", "--set", "num_uavs"], "name=value"),
        (["uav", "--policy", "statik"], "did you mean 'static'"),
        (["uav", "--preset", "village"], "village"),
        (["spread", "--preset", "small"], "--preset is supported only by uav"),
        (["uav", "--set", "num_uav=3"], "did you mean 'num_uavs'"),
        (["scrubjay/TMaze-v0", "--policy", "static"], "--policy requires a team"),
    ],
)
def test_errors_name_the_fix(words, message, capsys):
    assert main(["play", *words]) == 2
    assert message in capsys.readouterr().err
