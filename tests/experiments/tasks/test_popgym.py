"""POPGym environments with the unmodified command."""

from __future__ import annotations

import pytest

from scrubjay.experiments import Run
from scrubjay.experiments.commands.main import main


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize(
    ("env_id", "steps_per_episode"),
    [
        ("popgym:popgym-RepeatPreviousEasy-v0", 51),
        ("popgym:popgym-AutoencodeEasy-v0", 103),  # a tuple of observations
        ("popgym:popgym-PositionOnlyPendulumEasy-v0", 200),  # continuous actions
    ],
)
@pytest.mark.requires("popgym")
def test_popgym_trains_and_plays_unchanged(env_id, steps_per_episode, tmp_path, capsys):
    run_dir = tmp_path / "run"
    words = ["train", "ppo", "--env", env_id, "--memory", "hcam", "--run-dir", str(run_dir), "--quiet"]
    sizes = [
        "--env.num-envs",
        "4",
        "--total-steps",
        "1024",
        "--eval-episodes",
        "5",
        "--policy.memory.dim",
        "16",
    ]
    assert main([*words, *sizes]) == 0
    run = Run.load(run_dir)
    assert run.result["episodes"] == 5
    assert run.result["episodic_length"] == steps_per_episode
    assert -1 <= run.result["episodic_return"] <= 1
    assert main(["eval", str(run_dir), "--episodes", "3"]) == 0
    assert env_id in capsys.readouterr().out
