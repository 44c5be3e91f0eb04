"""Gains of a team run from its learner state, with a progress bar, are reproducible."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from scrubjay.agents import PolicyConfig
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments import EnvConfig, Run, TrainConfig, train
from scrubjay.experiments.commands.main import main
from scrubjay.experiments.runs.evaluation import EpisodeScores
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.statistics import difference_interval
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.experiments.viz.differences import (
    get_trust_region_config,
    learner_state,
    measure_gains,
    memory_bias,
    observability_gap,
)
from scrubjay.memory import make_config


@pytest.fixture
def config():
    return TeamTaskConfig(
        env=TeamEnvConfig(kwargs={"num_uavs": 2, "num_users": 3, "max_steps": 4}, num_envs=2),
        policy=TeamPolicyConfig(memory=make_config("gru", dim=16)),
        learner=GAMATRConfig(minibatches=1),
        total_steps=6,
        segment_length=3,
        device="cpu",
        eval_episodes=0,
    )


def test_a_bar_changes_no_gain_and_reaches_its_end(config, tmp_path, capsys):
    run = train(config, tmp_path / "run")
    policy, learner_checkpoint = run.team_policy_for(config.env), learner_state(run)
    assert "value_moments" in learner_checkpoint
    capsys.readouterr()
    agent_gains = measure_gains(policy, config, 6, 3, 1, learner_checkpoint, "responses")
    assert "responses  12/12" in capsys.readouterr().out
    assert agent_gains == measure_gains(policy, config, 6, 3, 1, learner_checkpoint)
    assert len(agent_gains) == policy.num_agents
    assert all(gain.low <= gain.gain <= gain.high for gain in agent_gains)


def test_a_run_without_a_checkpoint_says_so(config, tmp_path):
    assert get_trust_region_config(config) is config.learner
    with pytest.raises(ValueError, match="no checkpoint"):
        learner_state(Run.create(config, tmp_path / "run"))


def scores(*returns):
    return EpisodeScores(tuple(returns), (1,) * len(returns), ())


def test_known_returns_have_known_numbers():
    assert observability_gap(scores(1.0, 1.0), scores(0.25, 0.25)) == (0.75, 0.75, 0.75)
    assert memory_bias(scores(1.0, 3.0), scores(4.0, 6.0)).mean == -3.0
    mean, low, high = memory_bias(scores(1.0, 3.0), scores(4.0, 6.0))
    assert (low + high) / 2 == pytest.approx(mean)
    # The variances are 2 each, over 2 episodes each.
    assert high - mean == pytest.approx(1.959964 * np.sqrt(2.0))
    with pytest.raises(ValueError, match="size 1"):
        memory_bias(scores(1.0), scores(1.0, 2.0))


def test_the_interval_holds_the_difference_as_often_as_it_says():
    draw = np.random.default_rng(0)
    num_covered = 0
    for _ in range(2000):
        _, low, high = difference_interval(draw.normal(1, 1, 60), draw.normal(0, 3, 40))
        num_covered += low <= 1 <= high
    assert 0.935 < num_covered / 2000 < 0.965


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a directory of runs with minimal training."""
    folder = tmp_path_factory.mktemp("runs")

    def train_run(name, memory, **kwargs):
        fields = {} if memory == "none" else {"dim": 8}
        config = TrainConfig(
            env=EnvConfig("scrubjay/RepeatPrevious-v0", {"num_decks": 1} | kwargs, num_envs=4),
            policy=PolicyConfig(memory=dataclasses.replace(make_config(memory), **fields)),
            segment_length=8,
            total_steps=32,
            eval_episodes=2,
        )
        train(config, folder / name, progress=False)

    train_run("partial", "gru", k=4)
    train_run("full", "gru", k=1)
    train_run("memoryless", "none", k=4)
    train_run("memoryless_elsewhere", "none", k=1)
    return folder


def test_the_command_tells_both(runs, capsys):
    words = ["eval", str(runs / "partial"), "--episodes", "4"]
    assert main([*words, "--full", str(runs / "full"), "--memoryless", str(runs / "memoryless")]) == 0
    out = capsys.readouterr().out
    assert "observability gap" in out
    assert "gain from memory" in out
    assert main(["eval", str(runs / "full"), "--episodes", "4"]) == 0
    returns = [
        float(line.split()[1])
        for line in (out + capsys.readouterr().out).splitlines()
        if line[:6] == "return"
    ]
    gap = float(out.split("observability gap")[1].split()[0])
    assert gap == pytest.approx(returns[1] - returns[0], abs=2e-3)


def test_settings_apply_to_both_runs(runs, capsys):
    words = ["--episodes", "4", "--set", "k=2"]
    assert main(["eval", str(runs / "partial"), *words, "--memoryless", str(runs / "memoryless")]) == 0
    out = capsys.readouterr().out
    assert main(["eval", str(runs / "memoryless"), *words]) == 0
    returns = [
        float(line.split()[1])
        for line in (out + capsys.readouterr().out).splitlines()
        if line[:6] == "return"
    ]
    gain = float(out.split("gain from memory")[1].split()[0])
    assert gain == pytest.approx(returns[0] - returns[1], abs=2e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--full", "partial"], "both runs have the same observations"),
        (["--full", "memoryless_elsewhere"], "the memories differ"),
        (["--memoryless", "full"], "must have the memory 'none'"),
        (["--memoryless", "memoryless_elsewhere"], "different tasks"),
        (["--full", "full", "--set", "k=2"], "--set"),
        (["--full", "full", "--episodes", "1"], "episodes=1"),
        (["--full", "nowhere"], "no run"),
    ],
)
def test_what_would_mean_nothing_is_refused(runs, capsys, flags, message):
    words = [str(runs / word) if (word.isalpha() or "_" in word) else word for word in flags]
    assert main(["eval", str(runs / "partial"), "--episodes", "4", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
