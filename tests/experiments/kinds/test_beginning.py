"""Runs that begin with another run's weights: what comes along, what is recorded, and what does not fit."""

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
from scrubjay.experiments.kinds.ballet_probe import BalletProbeConfig
from scrubjay.experiments.kinds.local import LocalEngine
from scrubjay.experiments.kinds.sequence import SequenceEngine
from scrubjay.experiments.runs.checkpoint import load_training, load_weights
from scrubjay.experiments.tasks.suites import MQAR
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import make_config

from . import smallest

WORDS = (
    *("--env.num-envs", "4", "--segment-length", "8", "--eval-episodes", "2", "--device", "cpu", "--quiet"),
    *("--memory", "gru", "--memory.dim", "16", "--total-steps", "64"),
)
BARE = ("--ppo.reconstruction-coefficient", "0", "--policy.no-reconstruction")
"""Makes the policy of a recipe what `tiny` has."""
TEAM = dataclasses.replace(smallest.TEAM, total_steps=32, eval_episodes=0)
SEQUENCES = dataclasses.replace(smallest.SEQUENCES, total_steps=2 * smallest.BATCH)


def begun_with(run: Run, config: Any, path: Path, engine: Any = LocalEngine) -> dict[str, torch.Tensor]:
    """Return the weights that the new run has before its first update."""
    begun = Run.create(dataclasses.replace(config, init_from=str(run.path)), path)
    with engine(begun.config, begun.path) as training:
        assert training.step == 0
        return {name: value.clone() for name, value in training.model.state_dict().items()}


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_weights(run.checkpoint)


def test_the_weights_come_along_and_neither_optimiser_nor_counts(
    finished_run, tiny, tmp_path, assert_equal, record
):
    assert_equal(begun_with(finished_run, tiny(seed=7), tmp_path / "at 0"), weights(finished_run))
    run = train(tiny(seed=7, init_from=finished_run.path), tmp_path / "run")
    assert [row["step"] for row in run.metrics()] == [32 * update for update in range(1, 7)]
    steps = load_training(run.checkpoint)["learner"]["optimizer"]["state"][0]["step"]
    assert steps == load_training(finished_run.checkpoint)["learner"]["optimizer"]["state"][0]["step"]
    assert record(run) != record(train(tiny(seed=7), tmp_path / "anew"))


def test_config_json_tells_whose_and_of_which_step(finished_run, tiny, tmp_path):
    run = Run.create(tiny(init_from=finished_run.path), tmp_path / "run")
    fields = json.loads((run.path / "config.json").read_text())
    assert (fields["init_from"], fields["init_step"]) == (str(finished_run.path), 192)
    assert Run.load(run.path).config == run.config


def test_it_needs_the_other_run_no_more(finished_run, tiny, tmp_path, assert_same):
    source = shutil.copytree(finished_run.path, tmp_path / "source")
    run = Run.create(tiny(seed=7, init_from=source), tmp_path / "run")
    whole = train(tiny(seed=7, init_from=source), tmp_path / "whole")
    with LocalEngine(run.config, run.path) as engine:
        engine.update()  # lost, as no checkpoint follows
    shutil.rmtree(source)
    assert_same(resume(run.path), whole)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--memory.dim", "32"], "policy.memory.dim is 32 here and 16 there; set it here as it is there"),
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
def test_what_does_not_fit_is_one_line_with_both_values(words, told, finished_run, tiny, here, tmp_path):
    shutil.copytree(finished_run.path, tmp_path / "source")
    Run.create(tiny(), tmp_path / "fresh") if "fresh" in words else None
    base = ["--memory", "gru", "--memory.dim", "16", "--env.num-envs", "4"]
    base += BARE[:2] if "--policy.reconstruction" in words else BARE
    named = [] if "--init-from" in words else ["--init-from", "source"]
    code, out, err = here("train", "tmaze-demo", *base, *named, *words, "--run-dir", "new")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not (tmp_path / "new").exists()


def spaced(observation: gymnasium.Space, action: gymnasium.Space) -> type[gymnasium.Env]:
    class Spaced(gymnasium.Env):
        """Shows and takes anything."""

        observation_space, action_space = observation, action

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, True, False, {}

    return Spaced


BOX, PICTURE = gymnasium.spaces.Box, (np.uint8, (8, 8, 1))
PLAIN = BOX(-1, 1, (3,))
FITS = [
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


@pytest.mark.parametrize(("there", "here", "told"), FITS)
def test_observations_must_mean_the_same(there, here, told, tiny, tmp_path, monkeypatch):
    import sys
    import types

    module = types.ModuleType("spaced")
    monkeypatch.setitem(sys.modules, "spaced", module)
    action = gymnasium.spaces.Discrete(2)
    module.There, module.Here = spaced(there, action), spaced(here, action)  # pyright: ignore[reportAttributeAccessIssue]
    fields = {"eval_episodes": 0, "total_steps": 32}
    source = train(tiny(env=EnvConfig("spaced:There", num_envs=4), **fields), tmp_path / "there")
    config = tiny(env=EnvConfig("spaced:Here", num_envs=4), init_from=source.path, **fields)
    if told is None:
        assert train(config, tmp_path / "here").finished
        return
    with pytest.raises(ValueError, match="observation space") as refusal:
        train(config, tmp_path / "here")
    assert told in str(refusal.value)
    assert "choose an environment of the same spaces" in str(refusal.value)
    assert not (tmp_path / "here").exists()


def test_what_leaves_the_weights_alike_may_differ(tiny, tmp_path):
    memory = make_config("hcam", dim=16, chunk_size=4)
    source = train(tiny(policy=PolicyConfig(memory=memory), total_steps=32), tmp_path / "source")
    other = PolicyConfig(memory=make_config("hcam", dim=16, chunk_size=2))
    ppo = PPOConfig(epochs=2, num_minibatches=2)
    config = tiny(policy=other, ppo=ppo, total_steps=32, init_from=source.path)
    assert train(config, tmp_path / "run").finished


def test_the_parts_of_a_stack_are_told_apart(tiny, tmp_path):
    stacks = {
        name: PolicyConfig(
            memory=make_config("stack", dim=16, parts=tuple(make_config(part, dim=16) for part in parts))
        )
        for name, parts in {"source": ("gru", "gru"), "other": ("gru", "lstm")}.items()
    }
    source = train(tiny(policy=stacks["source"], total_steps=32), tmp_path / "source")
    with pytest.raises(ValueError, match=r"policy.memory.parts.1.name is 'lstm' here and 'gru' there"):
        train(tiny(policy=stacks["other"], init_from=source.path), tmp_path / "run")


def test_a_team_begins_with_a_teams_weights_and_a_shared_actor_with_one_of_another_size(
    tmp_path, assert_equal, finished_run
):
    source = train(TEAM, tmp_path / "source")
    larger = dataclasses.replace(TEAM, env=TeamEnvConfig(kwargs={"max_steps": 6, "num_uavs": 3}, num_envs=2))
    assert_equal(begun_with(source, larger, tmp_path / "larger"), weights(source))
    for change, told in (
        ({"shared": False}, "policy.shared is False here and True there"),
        ({"critic": "pooled"}, "policy.critic is 'pooled' here and 'attention' there"),
    ):
        policy = dataclasses.replace(TEAM.policy, **change)
        with pytest.raises(ValueError, match=told):
            train(dataclasses.replace(TEAM, policy=policy, init_from=source.path), tmp_path / "run")
    single = dataclasses.replace(larger, policy=dataclasses.replace(TEAM.policy, shared=False))
    with pytest.raises(ValueError, match=r"the team has 3 agents here and 2 there; only policy.shared=True"):
        train(dataclasses.replace(single, init_from=source.path), tmp_path / "run")
    with pytest.raises(
        ValueError, match="of kind 'agent', this run trains one of kind 'team'; name a run of"
    ):
        train(dataclasses.replace(TEAM, init_from=finished_run.path), tmp_path / "run")


def test_sequence_models_begin_so_too(tmp_path, assert_equal):
    source = train(SEQUENCES, tmp_path / "source")
    harder = dataclasses.replace(SEQUENCES, suite=MQAR(length=32, num_items=2), seed=3)
    assert_equal(begun_with(source, harder, tmp_path / "harder", SequenceEngine), weights(source))
    run = train(dataclasses.replace(SEQUENCES, seed=3, init_from=source.path), tmp_path / "run")
    assert run.metrics()[0]["charts/learning_rate"] == SEQUENCES.learning_rate
    for change, told in (
        ({"num_blocks": 2}, "num_blocks is 2 here and 1 there"),
        ({"parameters": 5000}, "parameters is 5000 here and 4000 there"),
        ({"suite": MQAR(length=32, num_items=4, vocab_size=128)}, "suite.vocab_size is 128 here"),
    ):
        with pytest.raises(ValueError, match=told):
            train(dataclasses.replace(SEQUENCES, init_from=source.path, **change), tmp_path / "refused")
    probe = BalletProbeConfig(memory=make_config("gru", dim=8), init_from=str(source.path))
    with pytest.raises(
        ValueError, match="of kind 'sequence-task', this run trains one of kind 'ballet-probe'"
    ):
        train(probe, tmp_path / "refused")


def test_nothing_of_the_other_run_is_executed(finished_run, tiny, tmp_path, here):
    source = shutil.copytree(finished_run.path, tmp_path / "source")
    (tmp_path / "evilmod.py").write_text("import pathlib\npathlib.Path(__file__).with_name('harm').touch()\n")
    fields = json.loads((source / "config.json").read_text())
    fields["env"] = {**fields["env"], "id": "evilmod:Foo"}
    (source / "config.json").write_text(json.dumps(fields))
    for known in (True, False):
        if not known:
            (source / "environment.json").unlink()
        words = ["--set", "corridor_length=4", "--init-from", "source", "--run-dir", f"new{known}"]
        code, _, err = here("train", "tmaze-demo", *WORDS, *BARE, *words)
        assert (code, err) == (0, "")
    assert not (tmp_path / "harm").exists()
    checkpoint = Run.load(source).checkpoint
    (source / "link").symlink_to(checkpoint)
    with pytest.raises(ValueError, match="is a link"):
        train(tiny(init_from=source), tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        (b"\xff" * 64, "initial.safetensors"),
        (save({"wings": torch.zeros(2)}), "not of the model"),
    ],
    ids=["missing", "torn", "of another model"],
)
def test_a_strangers_copy_of_weights_is_one_line(content, told, finished_run, tiny, tmp_path, here):
    run = Run.create(tiny(init_from=finished_run.path), tmp_path / "run")
    copied = run.path / "initial.safetensors"
    copied.unlink() if content is None else copied.write_bytes(content)
    code, _, err = here("resume", run.path)
    assert (code, err.count("\n")) == (2, 1)
    assert told in err


def test_whom_a_strangers_config_names_is_not_read(finished_run, tiny, tmp_path):
    run = Run.create(tiny(init_from=finished_run.path), tmp_path / "run")
    fields = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps(fields | {"init_from": "/dev/zero"}))
    assert resume(run.path).finished


@pytest.mark.slow  # Ray begins
@pytest.mark.usefixtures("cluster")
def test_on_ray_it_begins_alike(finished_run, tiny, tmp_path, assert_same):
    config = tiny(seed=7, init_from=finished_run.path)
    local = train(config, tmp_path / "local")
    for name, options in (("driver", RayOptions(0, 0)), ("runner", RayOptions(1, 1))):
        assert_same(train(config, tmp_path / name, ray=options), local)


def test_a_sweep_tells_what_does_not_fit_before_it_begins(finished_run, here, tmp_path):
    shutil.copytree(finished_run.path, tmp_path / "source")
    words = ["--memory", "gru", *BARE, "--param", "memory.dim=16,32"]
    code, out, err = here("sweep", "tmaze-demo", *words, "--init-from", "source", "--out", "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "policy.memory.dim is 32 here and 16 there" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # Tune begins
def test_a_sweep_begins_all_its_trials_so(finished_run, scrubjay: Callable[..., Any], tmp_path, assert_equal):
    shutil.copytree(finished_run.path, tmp_path / "source")
    words = [*WORDS, *BARE, "--set", "corridor_length=4", "--init-from", "source"]
    words.remove("--quiet")
    code, out, err = scrubjay(
        "sweep", "tmaze-demo", "--param", "seed=1,2", "--jobs", 1, "--out", "out", *words
    )
    assert code == 0, out + err
    for seed in (1, 2):
        run = Run.load(tmp_path / "out" / f"seed={seed}")
        assert run.finished
        assert_equal(load_file(run.path / "initial.safetensors"), weights(finished_run))


def test_a_comparison_goes_on_with_runs_that_began_so(finished_run, tiny, tmp_path):
    from scrubjay.experiments.launching.parallel import prepare

    config = tiny(init_from=finished_run.path)
    first = prepare(config, tmp_path / "run")
    assert prepare(config, tmp_path / "run").config == first.config
