"""Runs that start from the weights of another run: copied state, recorded source and mismatched settings."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments import EnvConfig, RayOptions, Run, resume, train
from scrubjay.experiments.runs.ballet_probe import BalletProbeConfig
from scrubjay.experiments.runs.checkpoint import load_training, load_weights
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.experiments.runs.sequence import SequenceEngine
from scrubjay.experiments.tasks.sequences import MQAR
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import make_config

from .. import smallest

WORDS = (
    *("--env.num-envs", "4", "--segment-length", "8", "--eval-episodes", "2", "--device", "cpu", "--quiet"),
    *("--memory", "gru", "--memory.dim", "16", "--total-steps", "64"),
)
NO_RECONSTRUCTION = ("--ppo.reconstruction-coefficient", "0", "--policy.no-reconstruction")
"""Flags that give a recipe the policy of `tiny`."""
TEAM = dataclasses.replace(smallest.TEAM, total_steps=32, eval_episodes=0)
SEQUENCES = dataclasses.replace(smallest.SEQUENCES, total_steps=2 * smallest.BATCH)


def create_and_get_weights(
    run: Run, config: Any, path: Path, engine: Any = LocalEngine
) -> dict[str, torch.Tensor]:
    """Create a run with the weights of `run`; return its weights before the first update."""
    new_run = Run.create(dataclasses.replace(config, init_from=str(run.path)), path)
    with engine(new_run.config, new_run.path) as training:
        assert training.step == 0
        return {name: value.clone() for name, value in training.model.state_dict().items()}


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_weights(run.checkpoint)


def test_weights_are_copied_without_optimizer_state_and_step_counts(
    finished_run, tiny, tmp_path, assert_equal, record
):
    assert_equal(create_and_get_weights(finished_run, tiny(seed=7), tmp_path / "at 0"), weights(finished_run))
    run = train(tiny(seed=7, init_from=finished_run.path), tmp_path / "run")
    assert [row["step"] for row in run.metrics()] == [32 * update for update in range(1, 7)]
    steps = load_training(run.checkpoint)["learner"]["optimizer"]["state"][0]["step"]
    assert steps == load_training(finished_run.checkpoint)["learner"]["optimizer"]["state"][0]["step"]
    assert record(run) != record(train(tiny(seed=7), tmp_path / "anew"))


def test_config_json_names_the_source_run_and_its_step(finished_run, tiny, tmp_path):
    run = Run.create(tiny(init_from=finished_run.path), tmp_path / "run")
    fields = json.loads((run.path / "config.json").read_text())
    assert (fields["init_from"], fields["init_step"]) == (str(finished_run.path), 192)
    assert Run.load(run.path).config == run.config


def test_the_source_run_is_not_needed_after_the_start(finished_run, tiny, tmp_path, assert_same):
    source = shutil.copytree(finished_run.path, tmp_path / "source")
    run = Run.create(tiny(seed=7, init_from=source), tmp_path / "run")
    reference = train(tiny(seed=7, init_from=source), tmp_path / "whole")
    with LocalEngine(run.config, run.path) as engine:
        engine.update()  # lost, as no checkpoint follows
    shutil.rmtree(source)
    assert_same(resume(run.path), reference)


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--memory.dim", "32"],
            "policy.memory.dim is 32 here and 16 there; use the same settings as that run",
        ),
        (["--memory", "lstm"], "policy.memory.name is 'lstm' here and 'gru' there"),
        (["--policy.reconstruction"], "policy.reconstruction is True here and False there"),
        (
            ["--env", "CartPole-v1"],
            "the action space is Discrete(2) here and Discrete(4) there; choose an env",
        ),
        (["--env", "MountainCar-v0"], "the action space is Discrete(3) here"),
        (["--init-from", "nowhere"], "no run at nowhere; runs in .: source"),
        (["--init-from", ""], "no run at ."),
        (["--init-from", "fresh"], "fresh has no checkpoint yet"),
    ],
    ids=lambda value: "".join(value[-1:]) if isinstance(value, list) else "",
)
def test_a_setting_that_does_not_match_is_one_line_with_both_values(
    arguments, message, finished_run, tiny, here, tmp_path
):
    shutil.copytree(finished_run.path, tmp_path / "source")
    Run.create(tiny(), tmp_path / "fresh") if "fresh" in arguments else None
    base = ["--memory", "gru", "--memory.dim", "16", "--env.num-envs", "4"]
    base += NO_RECONSTRUCTION[:2] if "--policy.reconstruction" in arguments else NO_RECONSTRUCTION
    source_flags = [] if "--init-from" in arguments else ["--init-from", "source"]
    code, out, err = here("train", "tmaze-demo", *base, *source_flags, *arguments, "--run-dir", "new")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "new").exists()


def make_env_class(observation: gymnasium.Space, action: gymnasium.Space) -> type[gymnasium.Env]:
    class SampledEnv(gymnasium.Env):
        """Environment with sampled observations that accepts any action."""

        observation_space, action_space = observation, action

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, True, False, {}

    return SampledEnv


BOX, PICTURE = gymnasium.spaces.Box, (np.uint8, (8, 8, 1))
PLAIN = BOX(-1, 1, (3,))
SPACE_PAIRS = [
    (PLAIN, BOX(-2, 1, (3,)), None),
    (PLAIN, BOX(-1, 1, (4,)), "Box(-1.0, 1.0, (4,), float32) here and Box(-1.0, 1.0, (3,), float32) there"),
    (PLAIN, BOX(-1, 1, (3, 1)), "(3, 1), float32) here"),
    (PLAIN, BOX(0, 9, (3,), np.int64), "int64) here"),
    (BOX(0, 255, (8, 8, 1), np.uint8), BOX(0, 9, (8, 8, 1), np.uint8), "Box(0, 9, (8, 8, 1), uint8) here"),
    (gymnasium.spaces.Discrete(4), gymnasium.spaces.MultiDiscrete([2, 2]), "MultiDiscrete([2 2]) here"),
    (gymnasium.spaces.Discrete(4), gymnasium.spaces.Discrete(4, start=1), "Discrete(4, start=1) here"),
    (gymnasium.spaces.MultiBinary(3), PLAIN, "float32) here and MultiBinary(3) there"),
    (
        gymnasium.spaces.Dict(near=PLAIN, far=PLAIN),
        gymnasium.spaces.Dict(near=PLAIN),
        "of 'far' is nothing here and Box",
    ),
]


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("there", "here", "message"), SPACE_PAIRS)
def test_observations_must_mean_the_same(there, here, message, tiny, tmp_path, monkeypatch):
    import sys
    import types

    module = types.ModuleType("spaced")
    monkeypatch.setitem(sys.modules, "spaced", module)
    action = gymnasium.spaces.Discrete(2)
    module.There, module.Here = make_env_class(there, action), make_env_class(here, action)  # pyright: ignore[reportAttributeAccessIssue]
    fields = {"eval_episodes": 0, "total_steps": 32}
    source = train(tiny(env=EnvConfig("spaced:There", num_envs=4), **fields), tmp_path / "there")
    config = tiny(env=EnvConfig("spaced:Here", num_envs=4), init_from=source.path, **fields)
    if message is None:
        assert train(config, tmp_path / "here").is_finished
        return
    with pytest.raises(ValueError, match="observation space") as refusal:
        train(config, tmp_path / "here")
    assert message in str(refusal.value)
    assert "choose an environment with the same spaces" in str(refusal.value)
    assert not (tmp_path / "here").exists()


def test_settings_that_do_not_affect_weights_may_differ(tiny, tmp_path):
    memory = make_config("hcam", dim=16, chunk_size=4)
    source = train(tiny(policy=PolicyConfig(memory=memory), total_steps=32), tmp_path / "source")
    other = PolicyConfig(memory=make_config("hcam", dim=16, chunk_size=2))
    ppo = PPOConfig(epochs=2, num_minibatches=2)
    config = tiny(policy=other, learner=ppo, total_steps=32, init_from=source.path)
    assert train(config, tmp_path / "run").is_finished


def test_the_parts_of_a_stack_are_compared(tiny, tmp_path):
    stacks = {
        name: PolicyConfig(
            memory=make_config("stack", dim=16, parts=tuple(make_config(part, dim=16) for part in parts))
        )
        for name, parts in {"source": ("gru", "gru"), "other": ("gru", "lstm")}.items()
    }
    source = train(tiny(policy=stacks["source"], total_steps=32), tmp_path / "source")
    with pytest.raises(ValueError, match=r"policy.memory.parts.1.name is 'lstm' here and 'gru' there"):
        train(tiny(policy=stacks["other"], init_from=source.path), tmp_path / "run")


def test_a_team_starts_from_weights_of_a_team_and_with_a_shared_actor_of_any_size(
    tmp_path, assert_equal, finished_run
):
    source = train(TEAM, tmp_path / "source")
    larger = dataclasses.replace(TEAM, env=TeamEnvConfig(kwargs={"max_steps": 6, "num_uavs": 3}, num_envs=2))
    assert_equal(create_and_get_weights(source, larger, tmp_path / "larger"), weights(source))
    for change, message in (
        ({"shared": False}, "policy.shared is False here and True there"),
        ({"critic": "pooled"}, "policy.critic is 'pooled' here and 'attention' there"),
    ):
        policy = dataclasses.replace(TEAM.policy, **change)
        with pytest.raises(ValueError, match=message):
            train(dataclasses.replace(TEAM, policy=policy, init_from=source.path), tmp_path / "run")
    single = dataclasses.replace(larger, policy=dataclasses.replace(TEAM.policy, shared=False))
    with pytest.raises(ValueError, match=r"the team has 3 agents here and 2 there; only policy.shared=True"):
        train(dataclasses.replace(single, init_from=source.path), tmp_path / "run")
    with pytest.raises(
        ValueError, match="of kind 'agent', this run trains one of kind 'team'; name a run of"
    ):
        train(dataclasses.replace(TEAM, init_from=finished_run.path), tmp_path / "run")


def test_sequence_models_start_from_initial_weights(tmp_path, assert_equal):
    source = train(SEQUENCES, tmp_path / "source")
    harder = dataclasses.replace(SEQUENCES, suite=MQAR(length=32, num_items=2), seed=3)
    assert_equal(create_and_get_weights(source, harder, tmp_path / "harder", SequenceEngine), weights(source))
    run = train(dataclasses.replace(SEQUENCES, seed=3, init_from=source.path), tmp_path / "run")
    assert run.metrics()[0]["charts/learning_rate"] == SEQUENCES.learning_rate
    for change, message in (
        ({"num_blocks": 2}, "num_blocks is 2 here and 1 there"),
        ({"parameters": 5000}, "parameters is 5000 here and 4000 there"),
        ({"suite": MQAR(length=32, num_items=4, vocab_size=128)}, "suite.vocab_size is 128 here"),
    ):
        with pytest.raises(ValueError, match=message):
            train(dataclasses.replace(SEQUENCES, init_from=source.path, **change), tmp_path / "refused")
    probe = BalletProbeConfig(memory=make_config("gru", dim=8), init_from=str(source.path))
    with pytest.raises(
        ValueError, match="of kind 'sequence-task', this run trains one of kind 'ballet-probe'"
    ):
        train(probe, tmp_path / "refused")


@pytest.mark.slow
def test_no_code_of_the_source_run_is_executed(finished_run, tiny, tmp_path, here):
    source = shutil.copytree(finished_run.path, tmp_path / "source")
    (tmp_path / "evilmod.py").write_text("import pathlib\npathlib.Path(__file__).with_name('harm').touch()\n")
    fields = json.loads((source / "config.json").read_text())
    fields["env"] = {**fields["env"], "id": "evilmod:Foo"}
    (source / "config.json").write_text(json.dumps(fields))
    for has_spaces in (True, False):
        if not has_spaces:
            (source / "environment.json").unlink()
        arguments = ["--set", "corridor_length=4", "--init-from", "source", "--run-dir", f"new{has_spaces}"]
        code, _, err = here("train", "tmaze-demo", *WORDS, *NO_RECONSTRUCTION, *arguments)
        assert (code, err) == (0, "")
    assert not (tmp_path / "harm").exists()
    checkpoint = Run.load(source).checkpoint
    (source / "link").symlink_to(checkpoint)
    with pytest.raises(ValueError, match="is a link"):
        train(tiny(init_from=source), tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"\xff" * 64, "initial.safetensors"),
        (save({"wings": torch.zeros(2)}), "do not match the model"),
    ],
    ids=["missing", "torn", "of another model"],
)
def test_invalid_initial_weights_are_an_error_of_one_line(
    content, message, finished_run, tiny, tmp_path, here
):
    run = Run.create(tiny(init_from=finished_run.path), tmp_path / "run")
    weights_file = run.path / "initial.safetensors"
    weights_file.unlink() if content is None else weights_file.write_bytes(content)
    code, _, err = here("resume", run.path)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_the_source_in_an_untrusted_config_is_not_read(finished_run, tiny, tmp_path):
    run = Run.create(tiny(init_from=finished_run.path), tmp_path / "run")
    fields = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps(fields | {"init_from": "/dev/zero"}))
    assert resume(run.path).is_finished


@pytest.mark.matrix  # starts Ray
@pytest.mark.usefixtures("cluster")
def test_runs_on_ray_start_from_the_same_weights(finished_run, tiny, tmp_path, assert_same):
    config = tiny(seed=7, init_from=finished_run.path)
    local = train(config, tmp_path / "local")
    for name, options in (("driver", RayOptions(0, 0)), ("runner", RayOptions(1, 1))):
        assert_same(train(config, tmp_path / name, ray=options), local)


def test_a_sweep_checks_the_source_before_it_starts(finished_run, here, tmp_path):
    shutil.copytree(finished_run.path, tmp_path / "source")
    arguments = ["--memory", "gru", *NO_RECONSTRUCTION, "--param", "memory.dim=16,32"]
    code, out, err = here("sweep", "tmaze-demo", *arguments, "--init-from", "source", "--out", "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "policy.memory.dim is 32 here and 16 there" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.matrix  # starts Tune
def test_a_sweep_initializes_all_trials(finished_run, scrubjay: Callable[..., Any], tmp_path, assert_equal):
    shutil.copytree(finished_run.path, tmp_path / "source")
    arguments = [*WORDS, *NO_RECONSTRUCTION, "--set", "corridor_length=4", "--init-from", "source"]
    arguments.remove("--quiet")
    code, out, err = scrubjay(
        "sweep", "tmaze-demo", "--param", "seed=1,2", "--jobs", 1, "--out", "out", *arguments
    )
    assert code == 0, out + err
    for seed in (1, 2):
        run = Run.load(tmp_path / "out" / f"seed={seed}")
        assert run.is_finished
        assert_equal(load_file(run.path / "initial.safetensors"), weights(finished_run))


def test_a_comparison_resumes_runs_with_initial_weights(finished_run, tiny, tmp_path):
    from scrubjay.experiments.launch.parallel import prepare

    config = tiny(init_from=finished_run.path)
    first = prepare(config, tmp_path / "run")
    assert prepare(config, tmp_path / "run").config == first.config
