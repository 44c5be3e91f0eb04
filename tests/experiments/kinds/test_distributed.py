"""The Ray engine, of policies and of teams: the local engine's run, on processes that may die.

One file and one worker, as a cluster takes seconds of many processes to begin.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from scrubjay import agents
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rllib import (
    MemoryModule,
    SegmentGAMATR,
    SegmentGAMATRConfig,
    SegmentPPO,
    SegmentPPOConfig,
)
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments import EnvConfig, RayOptions, Run, resume, train
from scrubjay.experiments.cli import main
from scrubjay.experiments.kinds.distributed import RayEngine
from scrubjay.experiments.kinds.local import LocalEngine
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.runs.checkpoint import load_training, load_weights
from scrubjay.experiments.tasks import names
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import list_memories, make_config

from . import reinforce
from .reinforce import ReinforceConfig, TeamReinforceConfig


@pytest.fixture(scope="module", autouse=True)
def _faulty(cluster):
    (cluster / "faulty.py").write_text(FAULTY)


def weights(run: Run) -> dict[str, torch.Tensor]:
    assert run.latest is not None
    return load_weights(run.latest)


# No tensors in the state, one, and whole numbers among them: the engine knows nothing else of a memory.
KINDS_OF_STATE = ("none", "gru", "hcam")


@pytest.mark.parametrize(
    "memory",
    [
        pytest.param(name, marks=[] if name in KINDS_OF_STATE else [pytest.mark.slow])
        for name in list_memories()
    ],
)
def test_without_further_processes_it_is_the_local_run_bit_for_bit(memory, tiny, tmp_path, assert_same):
    config = tiny(memory)
    local = train(config, tmp_path / "local")
    assert_same(train(config, tmp_path / "ray", ray=RayOptions(0, 0)), local)
    assert ray.is_initialized()  # the engine leaves a cluster alone that it has not joined itself


# a runner takes up, and hands over, the local engine's samples in the test of both engines below
@pytest.mark.slow
def test_one_runner_samples_what_the_local_engine_samples(tiny, tmp_path, assert_same):
    config = tiny("hcam")
    assert_same(train(config, tmp_path / "ray", ray=RayOptions(1, 0)), train(config, tmp_path / "local"))


def stopped_after(updates, engine):
    with engine:
        for _ in range(updates):
            engine.update()
        engine.save()


@pytest.mark.slow
def test_handed_from_engine_to_engine_and_back_equals_never_stopped(tiny, tmp_path, assert_same):
    """A dict of images crosses processes too."""
    config = tiny(
        "hcam",
        env=EnvConfig("scrubjay/Ballet-v0", {"num_dancers": 1, "delay": 1, "max_steps": 24}, num_envs=2),
        total_steps=96,
        eval_episodes=1,
    )
    whole = train(config, tmp_path / "whole")
    run = Run.create(config, tmp_path / "stopped")
    stopped_after(2, LocalEngine(config, run.path))
    stopped_after(2, RayEngine(config, run.path, RayOptions(num_env_runners=1)))
    assert run.step == 64
    resume(run.path)
    assert_same(run, whole)


def steps(run: Run) -> list[float]:
    return [row["step"] for row in run.metrics()]


@pytest.mark.slow
def test_more_runners_go_on_with_weights_and_optimizer_and_a_killed_one_comes_back(tiny, tmp_path, caplog):
    config = tiny("gru", total_steps=32 * 12)
    run = Run.create(config, tmp_path / "run")
    stopped_after(3, LocalEngine(config, run.path))
    assert run.latest is not None
    before = load_training(run.latest)["learner"]["optimizer"]["state"][0]["step"]
    with RayEngine(config, run.path, RayOptions(num_env_runners=2)) as engine:
        assert "sampled by 1 processes before and by 2 now: all begin new episodes" in caplog.text
        for _ in range(3):
            engine.update()
        engine.save()
        assert steps(run) == [32 * update for update in range(1, 7)]
        training = load_training(run.latest)
        assert training["learner"]["optimizer"]["state"][0]["step"] == 2 * before
        assert [state["first_row"] for state in training["samplers"]] == [0, 2]

        group: Any = engine.algorithm.env_runner_group
        pid = group.foreach_env_runner(lambda runner: os.getpid())[1]
        os.kill(pid, signal.SIGKILL)
        while len(set(group.foreach_env_runner(lambda runner: os.getpid())) - {pid}) < 2:
            engine.update()
            if engine.step > 32 * 500:
                raise AssertionError("the runner is still gone")
        row = engine.update()
        assert row
        engine.save()
    # Rows that the lost runner did not deliver are missing, and none is counted that was not sampled.
    counted = [after - before for before, after in zip([0, *steps(run)], steps(run), strict=False)]
    assert set(counted) == {16.0, 32.0}
    assert counted[0] == counted[-1] == 32
    # And back: no sampler of one process can take up what two have begun.
    with LocalEngine(config, run.path) as engine:
        engine.update()
    assert "sampled by 2 processes before and by 1 now" in caplog.text


@pytest.mark.slow
def test_two_learners_learn_what_one_learns_and_a_killed_one_costs_one_update(tiny, tmp_path, caplog):
    config = tiny("hcam")
    local = Run.create(config, tmp_path / "local")
    stopped_after(3, LocalEngine(config, local.path))
    expected = weights(local)
    run = Run.create(config, tmp_path / "run")
    with RayEngine(config, run.path, RayOptions(num_env_runners=0, num_learners=2)) as engine:
        for _ in range(3):
            engine.update()
        engine.save()
        for name, value in weights(run).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)
        learned = engine._parts["learner"]["optimizer"]["state"][0]["step"]
        group: Any = engine.algorithm.learner_group
        pid = next(iter(group.foreach_learner(lambda learner: os.getpid()))).get()
        os.kill(pid, signal.SIGKILL)
        engine.update()
        assert engine._parts["learner"]["optimizer"]["state"][0]["step"] == learned * 4 / 3
    assert "a learner is lost at step 96" in caplog.text
    assert steps(run) == [32, 64, 96, 128]
    assert steps(run)[:3] == steps(local)


FAULTY = """
import gymnasium

class Env(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(2)
    taken = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        self.taken += 1
        if self.taken == 20:  # later than an environment is tried out
            raise OSError("the twentieth step fails")
        return 0, 0.0, False, False, {}
"""


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_environment_that_fails_is_reported_not_restarted(num_env_runners, tiny, tmp_path):
    config = tiny("gru", env=EnvConfig("faulty:Env", num_envs=4))
    with pytest.raises(OSError, match="the twentieth step fails") as raised:
        train(config, tmp_path / "run", ray=RayOptions(num_env_runners, 0))
    assert "faulty.py" in "".join(raised.value.__notes__)  # where it failed, in whatever process


def test_a_checkpoint_without_a_lost_runners_rows_is_resumed_here(tiny, tmp_path, caplog):
    """Half the rows of a run are those of a run of half as many, but for who they are."""
    config = tiny("gru")
    run = Run.create(config, tmp_path / "run")
    half = tiny("gru", env=dataclasses.replace(config.env, num_envs=2))
    with (
        LocalEngine(config, run.path) as engine,
        LocalEngine(half, Run.create(half, tmp_path / "half").path) as rest,
    ):
        engine.update()
        rest.update()
        whole = engine._get_parts
        engine._get_parts = lambda: {**whole(), "samplers": rest._get_parts()["samplers"]}
        engine.save()
    resume(run.path)
    assert run.result
    assert "all begin new episodes" in caplog.text


def test_rllibs_own_checkpoints_hold_the_learner(tiny, tmp_path):
    config = tiny("gru")
    algorithm_config = (
        SegmentPPOConfig()
        .segments(vector_env=config.env.make_vector, num_envs=4, policy=config.policy, ppo=config.ppo)
        .env_runners(num_env_runners=0)
    )
    algorithm: Any = algorithm_config.build_algo()
    algorithm.train()
    expected = algorithm.last_update.parts
    path = algorithm.save_to_path(tmp_path / "checkpoint")
    algorithm.stop()
    restored: Any = SegmentPPO.from_checkpoint(path)
    assert restored.iteration == 1
    restored.train()
    before = expected["learner"]["optimizer"]["state"]
    after = restored.last_update.parts["learner"]["optimizer"]["state"]
    restored.stop()
    assert {int(after[name]["step"]) / int(state["step"]) for name, state in before.items()} == {2}
    # Adam's steps are bounded, so that two updates from the same weights cannot be far apart.
    bound = 10 * config.ppo.learning_rate * int(before[0]["step"])
    for name, value in restored.last_update.parts["policy"].items():
        torch.testing.assert_close(value, expected["policy"][name], rtol=0, atol=bound)


# That a module without a state steps as it learns is tested in test_rllib.py, for every memory.
@pytest.mark.parametrize(
    ("memory", "num_env_runners"),
    [("hcam", 0), *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("none", "hcam"))],
)
def test_rllibs_own_ppo_trains_a_memory(memory, num_env_runners):
    spec = RLModuleSpec(
        module_class=MemoryModule,
        model_config={"policy": PolicyConfig(memory=make_config(memory, dim=16)), "max_seq_len": 16},
    )
    config = (
        PPOConfig()
        .environment("scrubjay.envs:scrubjay/TMaze-v0", env_config={"corridor_length": 4})
        .rl_module(rl_module_spec=spec)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=4)
        .training(train_batch_size_per_learner=128, minibatch_size=64, num_epochs=1)
    )
    algorithm: Any = config.build_algo()
    before = {name: value.copy() for name, value in algorithm.get_weights()["default_policy"].items()}
    result = algorithm.train()
    after = algorithm.get_weights()["default_policy"]
    algorithm.stop()
    assert -1 <= result["env_runners"]["episode_return_mean"] <= 1
    assert result["env_runners"]["num_env_steps_sampled"] >= 128
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.split(".")[1] for name in changed} == {"encoder", "memory", "actor", "critic"}


def test_the_command_trains_and_resumes_on_ray(tmp_path, capsys):
    """On the cluster that is here; the README's command in test_docs.py starts its own."""
    folder = str(tmp_path / "run")
    words = ["train", "tmaze-demo", "--engine", "ray", "--num-env-runners", "0", "--run-dir", folder]
    assert main([*words, "--quiet", "--total-steps", "4096", "--eval-episodes", "5"]) == 0
    out, err = capsys.readouterr()
    assert "ray cluster" in out
    assert "token" in out
    assert "1 node" in out
    assert "done: return" in out
    assert "resume" not in err
    run = Run.load(tmp_path / "run")
    assert run.step == 4096
    assert main(["resume", folder, "--engine", "ray"]) == 0
    assert capsys.readouterr().out == f"{folder} is finished; --total-steps N trains it further\n"


EVIL = """
import pathlib
pathlib.Path(__file__).with_name("harm").touch()
def Foo(*args, **kwargs): raise ValueError("made")
"""


@ray.remote
def made_there(env: Any, make: Any) -> Any:
    return getattr(env, make)()


@pytest.mark.slow
@pytest.mark.parametrize("runners", [0, 1])
def test_what_only_a_file_names_is_made_by_no_process(runners, cluster, tiny, tmp_path, capsys, monkeypatch):
    """Not by the driver, and not by a worker that is sent the config, where another process read the name."""
    monkeypatch.setattr(names, "_NAMED", set())  # as in a process of its own
    sys.modules.pop("evilmod", None)
    (cluster / "evilmod.py").write_text(EVIL)
    run = Run.create(tiny(total_steps=64), tmp_path / "run")
    stopped_after(1, LocalEngine(run.config, run.path))
    fields = json.loads((run.path / "config.json").read_text())
    fields["env"]["id"] = "evilmod:Foo"
    (run.path / "config.json").write_text(json.dumps(fields))
    words = ["resume", str(run.path), "--engine", "ray", "--num-env-runners", str(runners), "--quiet"]
    assert main(words) == 2
    assert "add --trust" in capsys.readouterr().err
    config: Any = Run.load(run.path).config
    with pytest.raises(Exception, match="add --trust"), RayEngine(config, run.path, RayOptions(runners)):
        pass
    for make in ("make", "make_rows", "spaces"):
        with pytest.raises(ValueError, match="add --trust"):
            ray.get(made_there.remote(config.env, make))
    assert not (cluster / "harm").exists()
    assert main([*words, "--trust"]) == 2
    assert "made" in capsys.readouterr().err
    assert (cluster / "harm").exists()
    (cluster / "harm").unlink()


@pytest.mark.parametrize(
    "processes",
    [pytest.param((0, 0), id="here"), pytest.param((1, 1), id="in-processes", marks=pytest.mark.slow)],
)
def test_a_new_learner_trains_as_it_does_on_the_local_engine(processes, tiny, tmp_path, assert_same):
    """Nothing but its config says who learns; workers are sent the learner, which they cannot import."""
    config = tiny("lstm").with_learner(ReinforceConfig())
    cloudpickle.register_pickle_by_value(reinforce)
    agents.learners._LEARNERS.register("reinforce", ReinforceConfig)
    try:
        local = train(config, tmp_path / "local")
        assert_same(train(config, tmp_path / "ray", ray=RayOptions(*processes)), local)
        with pytest.raises(ValueError, match="num_learners=2: Reinforce takes a whole batch in one learner"):
            train(config, tmp_path / "refused", ray=RayOptions(0, 2))
    finally:
        del agents.learners._LEARNERS["reinforce"]
        cloudpickle.unregister_pickle_by_value(reinforce)


def test_so_does_a_new_learner_of_a_team(tmp_path, assert_same):
    agents.learners._LEARNERS.register("team_reinforce", TeamReinforceConfig)
    try:
        config = TEAM.with_learner(TeamReinforceConfig())
        assert_same(train(config, tmp_path / "ray", ray=RayOptions(0, 0)), train(config, tmp_path / "local"))
    finally:
        del agents.learners._LEARNERS["team_reinforce"]


LEARNER = GAMATRConfig(minibatches=2)
TEAM = TeamTaskConfig(
    recipe="tiny-team",
    env=TeamEnvConfig(kwargs={"max_steps": 6}, num_envs=4),
    policy=TeamPolicyConfig(memory=make_config("gru", dim=16), graph_rounds=1),
    learner=LEARNER,
    total_steps=192,
    segment_length=8,
    device="cpu",
    eval_episodes=2,
)


SEPARATE = dataclasses.replace(TEAM, policy=dataclasses.replace(TEAM.policy, shared=False))
CLIPPED = dataclasses.replace(TEAM, learner=dataclasses.replace(LEARNER, mode="clip"))


@pytest.mark.parametrize("config", [SEPARATE, CLIPPED], ids=["separate", "clip"])
def test_a_team_without_further_processes_is_the_local_run_bit_for_bit(config, tmp_path, assert_same):
    local = train(config, tmp_path / "local")
    assert_same(train(config, tmp_path / "ray", ray=RayOptions(0, 0)), local)


@pytest.mark.slow
def test_one_runner_and_one_learner_of_a_team_go_on_with_a_local_run_to_the_same_end(tmp_path, assert_same):
    whole = train(TEAM, tmp_path / "whole")
    run = Run.create(TEAM, tmp_path / "stopped")
    with LocalEngine(TEAM, run.path) as engine:
        for _ in range(3):
            engine.update()
        engine.save()
    assert_same(resume(run.path, ray=RayOptions(num_env_runners=1, num_learners=1)), whole)


@pytest.mark.slow  # three processes begin
def test_two_runners_and_a_learner_of_a_team_learn_from_every_row(tmp_path):
    run = Run.create(TEAM, tmp_path / "run")
    with RayEngine(TEAM, run.path, RayOptions(num_env_runners=2, num_learners=1)) as engine:
        born = {name: value.clone() for name, value in engine.model.state_dict().items()}
        for _ in range(2):
            engine.update()
        engine.save()
        algorithm: Any = engine.algorithm
        samples = algorithm.call_runners(lambda runner: runner.sample())
    assert [row["step"] for row in run.metrics()] == [32, 64]
    assert all(0 <= row["losses/kl_max"] <= 1.01 * LEARNER.kl_limit for row in run.metrics())
    assert run.latest is not None
    weights = load_weights(run.latest)
    assert {name.partition(".")[0] for name in born if not torch.equal(born[name], weights[name])} == {
        "actors",
        "critic",
    }
    training = load_training(run.latest)
    assert [state["first_row"] for state in training["samplers"]] == [0, 2]
    # A row is a whole team, whoever samples it.
    assert [tuple(sample.segment.rewards.shape) for sample in samples] == [(2, 8, 2)] * 2


def test_several_learners_of_a_team_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"num_learners=2: .*use 0, in the driver, or 1"):
        train(TEAM, tmp_path / "run", ray=RayOptions(num_env_runners=1, num_learners=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_rllibs_own_checkpoints_hold_the_learner_of_a_team(tmp_path, assert_equal):
    config = SegmentGAMATRConfig().segments(
        team_env=CLIPPED.env.make_teams,
        num_envs=4,
        segment_length=8,
        policy=CLIPPED.policy,
        gamatr=dataclasses.replace(LEARNER, mode="clip"),
    )
    algorithm: Any = config.build_algo()
    algorithm.train()
    expected = algorithm.last_update.parts
    path = algorithm.save_to_path(tmp_path / "checkpoint")
    algorithm.stop()
    restored: Any = SegmentGAMATR.from_checkpoint(path)
    assert_equal(restored._call_learners(lambda learner: learner.get_parts())[0], expected)
    restored.train()
    after = restored.last_update.parts
    restored.stop()
    for name, state in expected["learner"]["actor_optimizer"]["state"].items():
        assert after["learner"]["actor_optimizer"]["state"][name]["step"] == 2 * state["step"]


@pytest.mark.slow
def test_a_cluster_of_its_own_begins_when_it_is_needed_and_has_what_it_is_told(tmp_path):
    """What needs no Ray does not even wait for its import: see test_house.py."""
    source = """
import os, ray
import scrubjay.agents.rllib, scrubjay.experiments.kinds.distributed, scrubjay.experiments.launching.sweep
from scrubjay.experiments.cli import main
from scrubjay.experiments.runs.cluster import RayOptions, connect

print(ray.is_initialized())
words = ["--engine", "ray", "--num-env-runners", "5000", "--env.num-envs", "5000"]
print(main(["train", "tmaze-demo", "--run-dir", "run", *words]), ray.is_initialized())
connect(RayOptions(num_env_runners=1))
print(ray.get(ray.remote(os.getenv).remote("OMP_NUM_THREADS")))
"""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=tmp_path,
        env={**variables, "OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    # Importing started nothing; what was started for a run that cannot be is ended with it.
    assert done.stdout.split() == ["False", "2", "False", "3"]
    assert "need 5000 CPUs; the cluster has" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
