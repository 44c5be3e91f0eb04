"""`scrubjay eval`: maximum steps, progress, checkpoints, random actions, and supervised runs."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from scrubjay.experiments import progress
from scrubjay.experiments.runs.checkpoint import load_weights
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.runs.sequence import SequenceTaskConfig
from scrubjay.experiments.tasks.sequences import MQAR
from scrubjay.experiments.training import train
from scrubjay.memory import make_config
from scrubjay.memory.stack import StackConfig


def test_a_policy_plays_no_more_steps_than_it_is_told(finished_run, here):
    code, out, err = here("eval", finished_run.path, "--episodes", 3, "--max-steps", 3)
    assert (code, out) == (2, "")
    assert "no episode ended within 3 steps (max_steps)" in err
    code, out, _ = here("eval", finished_run.path, "--episodes", 3, "--max-steps", 1000)
    assert code == 0
    assert out.rstrip().endswith(", 3 episodes")


def test_episodes_that_went_on_are_not_counted_as_played(finished_run, here):
    """Only 6 of the 64 environments play a second episode; it is discarded."""
    code, out, _ = here("eval", finished_run.path, "--episodes", 70, "--max-steps", 6)
    assert code == 0
    assert out.rstrip().endswith("64 of 70 episodes; the others did not end within 6 steps (--max-steps)")


def test_who_waits_is_told_how_far_it_is(finished_run, here, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    code, out, err = here("eval", finished_run.path, "--episodes", 2)
    assert code == 0
    assert "2 episodes" in out
    lines = err.splitlines()
    assert lines[0] == "1 steps per environment, 0 of 2 episodes finished"
    assert lines[-1].endswith("2 of 2 episodes finished")


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_steps_that_is_none_is_named(number, finished_run, here):
    code, _, err = here("eval", finished_run.path, "--max-steps", number)
    assert (code, err) == (2, f"scrubjay: max_steps={number}: must be at least 1\n")


@pytest.fixture(scope="module")
def supervised(tmp_path_factory) -> Run:
    """Return a run of a sequence model trained with top_k of all chunks."""
    memory = make_config("landmark", dim=8, chunk_size=2, num_chunks=16, top_k=16)
    task = SequenceTaskConfig(
        suite=MQAR(vocab_size=20, length=16, num_items=2),
        memory=memory,
        parameters=8_000,
        batch_rows=4,
        total_steps=4 * 64,
        eval_rows=40,
        eval_items=(),
        eval_longer=(2,),
        seed=4,
    )
    return train(task, tmp_path_factory.mktemp("supervised") / "run", progress=False)


def test_a_supervised_run_is_asked_the_questions_of_its_test(supervised, here):
    code, out, _ = here("eval", supervised.path, "--seed", 4)
    accuracies = [test["right"] / test["asked"] for test in supervised.result["tests"]]
    assert code == 0
    assert out.splitlines()[-1].split() == ["2", *(f"{share:.3f}" for share in accuracies)]
    others = here("eval", supervised.path, "--seed", 5)[1]
    assert others.splitlines()[-1] != out.splitlines()[-1]
    assert here("eval", supervised.path, "--seed", 4, "--checkpoint", f"step_{supervised.step}")[1] == out
    code, _, err = here("eval", supervised.path, "--checkpoint", "best")
    assert code == 2
    assert "--checkpoint best requires a run with a policy" in err


def test_a_memory_is_used_with_other_settings_than_it_was_trained_with(supervised, here):
    outs = [here("eval", supervised.path, "--memory", f"top_k={count}")[1] for count in (16, 1)]
    assert "landmark top_k=1 s4" in outs[1]
    assert outs[0].splitlines()[-1] != outs[1].splitlines()[-1]
    assert outs[0].splitlines()[-1] == here("eval", supervised.path)[1].splitlines()[-1]


def test_an_agents_memory_is_too(tiny, here, tmp_path):
    run = train(tiny("hcam", total_steps=64), tmp_path / "run", progress=False)
    code, out, _ = here("eval", run.path, "--episodes", 2, "--memory", "top_k=1", "--memory", "num_chunks=2")
    assert code == 0
    assert "hcam top_k=1 num_chunks=2 s0" in out
    for none in ("None", "null"):
        assert here("eval", run.path, "--episodes", 2, "--memory", f"window={none}")[0] == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--episodes", 3), "--episodes requires a run with a policy; .* is a run of kind 'sequence-task'"),
        (("--set", "length=4"), "--set requires a run with a policy"),
        (("--memory", "num_layers=2"), "do not match the model with these memory settings"),
        (("--memory", "chunks=2"), "memory has no field chunks; its fields are"),
        (("--memory", "top_k=many"), "memory.top_k='many': expected int"),
        (("--memory", "top_k=0"), "top_k=0: must be at least 1"),
        (("--memory", "name=gru"), "name: memory 'landmark' has no such field"),
        (("--memory", "parts.0.top_k=1"), "parts.0.top_k: memory 'landmark' has no such field"),
        (("--memory", "top_k"), "setting 'top_k': write it as name=value"),
    ],
)
def test_what_cannot_be_asked_of_it_is_named(words, reason, supervised, here):
    code, out, err = here("eval", supervised.path, *words)
    assert (code, out) == (2, "")
    assert re.search(reason, err)


def test_parts_of_a_stack_have_settings_of_their_own(tiny, here, tmp_path):
    stack = StackConfig(dim=16, parts=(make_config("hcam", dim=16), make_config("gru", dim=16)))
    run = train(tiny().with_memory(stack), tmp_path / "run", progress=False)
    assert here("eval", run.path, "--episodes", 2, "--memory", "parts.0.top_k=1")[0] == 0
    for place in ("parts.2", "parts.x", "parts"):
        assert (
            f"{place}.top_k: memory 'stack' has no such field"
            in here("eval", run.path, "--memory", f"{place}.top_k=1")[2]
        )


def test_commands_use_the_chosen_checkpoint(evaluated_run, tmp_path, here):
    run = shutil.copytree(evaluated_run.path, tmp_path / "run")
    best = Run.load(run, checkpoint="best").step
    for name, step in (("latest", 192), ("best", best), ("step_64", 64), ("step_00000064", 64)):
        code, out, err = here("eval", run, "--episodes", 2, "--checkpoint", name)
        assert code == 0, err
        assert f"at step {step}: " in out
    for command in ("play", "look", "export"):
        assert here(command, run, "--checkpoint", "step_64")[0] == 0
    assert here("export", run, "--pretrained", "--checkpoint", "best")[0] == 0
    exported_weights = load_weights(run / "pretrained")
    weights = load_weights(Run.load(run, checkpoint="best").checkpoint)
    assert all(torch.equal(exported_weights[name], value) for name, value in weights.items())
    code, _, err = here("eval", run, "--checkpoint", "last")
    assert (code, err.count("\n")) == (2, 1)
    assert "checkpoint='last': write latest, best, or step_N" in err


def test_a_run_without_evaluations_says_how_to_get_them(finished_run, here):
    code, _, err = here("eval", finished_run.path, "--checkpoint", "best")
    assert code == 2
    assert "has no best checkpoint, which only evaluations keep; train with --eval-every N" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["play", "CartPole-v1", "--checkpoint", "best"], "--checkpoint best: it requires a run directory"),
        (["play", "uav", "--checkpoint", "best"], "--checkpoint best: it requires the policy of a run"),
        (
            ["play", "uav-small", "--checkpoint", "step_1"],
            "--checkpoint step_1: it requires the policy of a run",
        ),
    ],
)
def test_a_checkpoint_of_nothing_is_refused(arguments, message, usage_error):
    assert message in usage_error(*arguments)


def test_random_actions_play_the_episodes_of_a_run_or_of_an_environment(finished_run, here):
    env = finished_run.config.env
    settings = [word for name, value in env.kwargs.items() for word in ("--set", f"{name}={value}")]
    code, out, _ = here("eval", finished_run.path, "--random", "--episodes", 9)
    assert code == 0
    assert out.startswith(f"random actions: {env.id} ")
    assert out.splitlines()[-1].endswith("9 episodes")
    assert here("eval", env.id, "--random", "--episodes", 9, *settings)[1] == out
    assert here("eval", env.id, "--random", "--episodes", 9, "--seed", 2, *settings)[1] != out


def test_random_actions_are_independent_of_the_episodes(here):
    """The answer of this task is drawn from a generator with the same seed; one guess in four is right."""
    out = here("eval", "scrubjay/RepeatPrevious-v0", "--random", "--set", "k=1", "--episodes", 64)[1]
    share = float(re.findall(r"success +(\S+)", out)[0])
    assert 0.2 < share < 0.3


def test_a_team_plays_random_actions(here):
    outs = [here("eval", name, "--random", "--episodes", 2)[1] for name in ("uav", "uav-small", "uav")]
    assert outs[0] == outs[2]
    assert outs[0].startswith("random actions: scrubjay.envs.uav:parallel_env\nreturn of the team  ")
    assert "sum_rate_bps" in outs[0]
    assert "preset=small" in outs[1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("CartPole-v1", "--sample"), "--random plays no trained policy; omit --sample"),
        (("CartPole-v1", "--checkpoint", "best"), "--random plays no trained policy; omit --checkpoint"),
        (("uav", "--best-response"), "--random plays no trained policy; omit --best-response"),
        (("uav", "--wrap", "TimeAwareObservation"), "--wrap requires a single agent; uav is a team"),
        (("mqar",), "recipe 'mqar' has no environment"),
        (("ppo",), "recipe 'ppo' has no environment"),
        (("CartPole-v9",), "CartPole"),
        (("CartPole-v1", "--episodes", "0"), "episodes=0: must be at least 1"),
        (("CartPole-v1", "--max-steps", "2"), "no episode ended within 2 steps (max_steps)"),
        (("CartPole-v1", "--set", "wings=2"), "it has no setting 'wings'"),
    ],
)
def test_what_random_actions_cannot_play_is_named(words, reason, here):
    code, out, err = here("eval", *words, "--random")
    assert (code, out) == (2, "")
    assert reason in err


def test_wrappers_of_a_run_stay(finished_run, supervised, here):
    wrap = ("--wrap", "TimeAwareObservation")
    assert "the run" in here("eval", finished_run.path, *wrap, "--random")[2]
    assert "--wrap requires --random" in here("eval", finished_run.path, *wrap)[2]
    assert "it has no environment" in here("eval", supervised.path, "--random")[2]
    out = here("eval", "CartPole-v1", "--random", "--episodes", 2, *wrap)[1]
    assert "random actions: CartPole-v1 in TimeAwareObservation" in out
