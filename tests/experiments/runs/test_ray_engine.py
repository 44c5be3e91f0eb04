"""The Ray engine for policies and teams: equal results to the local engine, and recovery of lost processes.

All tests share one file and one cluster, since a cluster takes seconds to start.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
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
from scrubjay.experiments.commands.main import main
from scrubjay.experiments.runs.checkpoint import load_training, load_weights
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.experiments.runs.ray_engine import RayEngine
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.tasks import environments as names
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import list_memories, make_config

from ..test_action_spaces import ROBOTS
from . import reinforce
from .reinforce import ReinforceConfig, TeamReinforceConfig


@pytest.fixture(scope="module", autouse=True)
def _faulty(cluster):
    (cluster / "faulty.py").write_text(FAULTY)


def weights(run: Run) -> dict[str, torch.Tensor]:
    assert run.latest is not None
    return load_weights(run.latest)


# States with one tensor, without tensors and with integer tensors. The engine sees no other difference.
STATE_EXAMPLES = {"gru": [], "none": pytest.mark.slow, "hcam": pytest.mark.slow}


@pytest.mark.parametrize(
    "memory",
    [pytest.param(name, marks=STATE_EXAMPLES.get(name, pytest.mark.matrix)) for name in list_memories()],
)
def test_without_other_processes_it_equals_the_local_run_bit_for_bit(memory, tiny, tmp_path, assert_same):
    config = tiny(memory)
    local = train(config, tmp_path / "local")
    assert_same(train(config, tmp_path / "ray", ray=RayOptions(0, 0)), local)
    assert ray.is_initialized()  # the engine does not shut down a cluster that it did not join


@pytest.mark.parametrize("processes", [0, pytest.param(1, marks=pytest.mark.matrix)])
def test_nested_actions_train_as_on_the_local_engine(processes, tiny, cluster, tmp_path, assert_same):
    shutil.copy(ROBOTS, cluster)
    learner = dataclasses.replace(tiny().learner, burn_in_segments=2)
    config = tiny(env=EnvConfig("robots:Robot", num_envs=4), learner=learner)
    result = train(config, tmp_path / "ray", ray=RayOptions(processes, processes))
    assert_same(result, train(config, tmp_path / "local"))


@pytest.mark.matrix  # the test of both engines below also covers a runner that continues local episodes
def test_one_runner_samples_what_the_local_engine_samples(tiny, tmp_path, assert_same):
    config = tiny("hcam")
    assert_same(train(config, tmp_path / "ray", ray=RayOptions(1, 0)), train(config, tmp_path / "local"))


def train_and_save(updates, engine):
    with engine:
        for _ in range(updates):
            engine.update()
        engine.save()


@pytest.mark.slow
def test_handed_from_engine_to_engine_and_back_equals_never_stopped(tiny, tmp_path, assert_same):
    """Dict observations with images are sent between processes."""
    config = tiny(
        "hcam",
        env=EnvConfig("scrubjay/Ballet-v0", {"num_dancers": 1, "delay": 1, "max_steps": 24}, num_envs=2),
        total_steps=96,
        eval_episodes=1,
    )
    reference = train(config, tmp_path / "whole")
    run = Run.create(config, tmp_path / "stopped")
    train_and_save(2, LocalEngine(config, run.path))
    train_and_save(2, RayEngine(config, run.path, RayOptions(num_env_runners=1)))
    assert run.step == 64
    resume(run.path)
    assert_same(run, reference)


def steps(run: Run) -> list[float]:
    return [row["step"] for row in run.metrics()]


@pytest.mark.matrix
def test_more_runners_go_on_with_weights_and_optimizer_and_a_killed_one_comes_back(tiny, tmp_path, caplog):
    config = tiny("gru", total_steps=32 * 12)
    run = Run.create(config, tmp_path / "run")
    train_and_save(3, LocalEngine(config, run.path))
    assert run.latest is not None
    before = load_training(run.latest)["learner"]["optimizer"]["state"][0]["step"]
    with RayEngine(config, run.path, RayOptions(num_env_runners=2)) as engine:
        assert (
            "sampled by 1 processes before and by 2 now: all environments start new episodes" in caplog.text
        )
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
    # Steps that the killed runner did not deliver are missing; only sampled steps are counted.
    step_counts = [after - before for before, after in zip([0, *steps(run)], steps(run), strict=False)]
    assert set(step_counts) == {16.0, 32.0}
    assert step_counts[0] == step_counts[-1] == 32
    # Back to one process, whose sampler cannot continue the episodes of two.
    with LocalEngine(config, run.path) as engine:
        engine.update()
    assert "sampled by 2 processes before and by 1 now" in caplog.text


@pytest.mark.slow
def test_two_learners_learn_what_one_learns_and_a_killed_one_costs_one_update(tiny, tmp_path, caplog):
    config = tiny("hcam")
    local = Run.create(config, tmp_path / "local")
    train_and_save(3, LocalEngine(config, local.path))
    expected = weights(local)
    run = Run.create(config, tmp_path / "run")
    with RayEngine(config, run.path, RayOptions(num_env_runners=0, num_learners=2)) as engine:
        for _ in range(3):
            engine.update()
        engine.save()
        for name, value in weights(run).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)
        optimizer_steps = engine._parts["learner"]["optimizer"]["state"][0]["step"]
        group: Any = engine.algorithm.learner_group
        pid = next(iter(group.foreach_learner(lambda learner: os.getpid()))).get()
        os.kill(pid, signal.SIGKILL)
        engine.update()
        assert engine._parts["learner"]["optimizer"]["state"][0]["step"] == optimizer_steps * 4 / 3
    assert "lost a learner at step 96" in caplog.text
    assert steps(run) == [32, 64, 96, 128]
    assert steps(run)[:3] == steps(local)


FAULTY = """
import gymnasium

class Env(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(2)
    num_steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        self.num_steps += 1
        if self.num_steps == 20:  # after the trial steps of a new environment
            raise OSError("the twentieth step fails")
        return 0, 0.0, False, False, {}
"""


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_environment_that_fails_is_reported_not_restarted(num_env_runners, tiny, tmp_path):
    config = tiny("gru", env=EnvConfig("faulty:Env", num_envs=4))
    with pytest.raises(OSError, match="the twentieth step fails") as error:
        train(config, tmp_path / "run", ray=RayOptions(num_env_runners, 0))
    assert "faulty.py" in "".join(error.value.__notes__)  # the traceback names the file, from any process


@pytest.mark.slow
def test_a_checkpoint_without_a_lost_runners_rows_is_resumed_here(tiny, tmp_path, caplog):
    """The state of half the environments equals that of a run with half as many, except for their indices."""
    config = tiny("gru")
    run = Run.create(config, tmp_path / "run")
    half = tiny("gru", env=dataclasses.replace(config.env, num_envs=2))
    with (
        LocalEngine(config, run.path) as engine,
        LocalEngine(half, Run.create(half, tmp_path / "half").path) as rest,
    ):
        engine.update()
        rest.update()
        get_own_parts = engine._get_parts
        engine._get_parts = lambda: {**get_own_parts(), "samplers": rest._get_parts()["samplers"]}
        engine.save()
    resume(run.path)
    assert run.result
    assert "all environments start new episodes" in caplog.text


@pytest.mark.slow
def test_rllibs_own_checkpoints_hold_the_learner(tiny, tmp_path):
    config = tiny("gru")
    algorithm_config = (
        SegmentPPOConfig()
        .segments(envs=config.env.make_batch, num_envs=4, policy=config.policy, learner=config.learner)
        .env_runners(num_env_runners=0)
    )
    algorithm: Any = algorithm_config.build_algo()
    algorithm.train()
    expected = algorithm.last_result.parts
    path = algorithm.save_to_path(tmp_path / "checkpoint")
    algorithm.stop()
    restored_algorithm: Any = SegmentPPO.from_checkpoint(path)
    assert restored_algorithm.iteration == 1
    restored_algorithm.train()
    before = expected["learner"]["optimizer"]["state"]
    after = restored_algorithm.last_result.parts["learner"]["optimizer"]["state"]
    restored_algorithm.stop()
    assert {int(after[name]["step"]) / int(state["step"]) for name, state in before.items()} == {2}
    # Adam's steps are bounded, so that two updates from the same weights cannot be far apart.
    bound = 10 * config.learner.learning_rate * int(before[0]["step"])
    for name, value in restored_algorithm.last_result.parts["policy"].items():
        torch.testing.assert_close(value, expected["policy"][name], rtol=0, atol=bound)


@pytest.mark.slow
# That a module without a state steps as it learns is tested in test_rllib.py, for every memory.
@pytest.mark.parametrize(
    ("memory", "num_env_runners"),
    [("hcam", 0), *(pytest.param(name, 1, marks=pytest.mark.matrix) for name in ("none", "hcam"))],
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
    changed_names = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.split(".")[1] for name in changed_names} == {"encoder", "memory", "actor", "critic"}


def test_the_command_trains_and_resumes_on_ray(tmp_path, capsys):
    """Use the cluster of this module; the README's command in test_docs.py starts its own."""
    folder = str(tmp_path / "run")
    arguments = ["train", "tmaze-demo", "--engine", "ray", "--num-env-runners", "0", "--run-dir", folder]
    assert main([*arguments, "--quiet", "--total-steps", "4096", "--eval-episodes", "5"]) == 0
    out, err = capsys.readouterr()
    assert "ray cluster" in out
    assert "token" in out
    assert "1 node" in out
    assert "done: return" in out
    assert "resume" not in err
    run = Run.load(tmp_path / "run")
    assert run.step == 4096
    assert main(["resume", folder, "--engine", "ray"]) == 0
    assert capsys.readouterr().out == f"{folder} is finished; train it further with --total-steps N\n"


EVIL = """
import pathlib
pathlib.Path(__file__).with_name("harm").touch()
def Foo(*args, **kwargs): raise ValueError("made")
"""


@ray.remote
def make_on_worker(env: Any, make: Any) -> Any:
    return getattr(env, make)()


@pytest.mark.slow
@pytest.mark.parametrize("runners", [0, 1])
def test_no_process_makes_an_environment_that_only_a_file_names(
    runners, cluster, tiny, tmp_path, capsys, monkeypatch
):
    """Neither the driver nor a worker that receives the config makes the environment."""
    monkeypatch.setattr(names, "_USER_NAMES", set())  # as in a new process
    sys.modules.pop("evilmod", None)
    (cluster / "evilmod.py").write_text(EVIL)
    run = Run.create(tiny(total_steps=64), tmp_path / "run")
    train_and_save(1, LocalEngine(run.config, run.path))
    fields = json.loads((run.path / "config.json").read_text())
    fields["env"]["id"] = "evilmod:Foo"
    (run.path / "config.json").write_text(json.dumps(fields))
    arguments = ["resume", str(run.path), "--engine", "ray", "--num-env-runners", str(runners), "--quiet"]
    assert main(arguments) == 2
    assert "add --trust" in capsys.readouterr().err
    config: Any = Run.load(run.path).config
    with pytest.raises(Exception, match="add --trust"), RayEngine(config, run.path, RayOptions(runners)):
        pass
    for make in ("make", "make_batch", "spaces"):
        with pytest.raises(ValueError, match="add --trust"):
            ray.get(make_on_worker.remote(config.env, make))
    assert not (cluster / "harm").exists()
    assert main([*arguments, "--trust"]) == 2
    assert "made" in capsys.readouterr().err
    assert (cluster / "harm").exists()
    (cluster / "harm").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes",
    [pytest.param((0, 0), id="here"), pytest.param((1, 1), id="in-processes", marks=pytest.mark.matrix)],
)
def test_a_new_learner_trains_as_it_does_on_the_local_engine(processes, tiny, tmp_path, assert_same):
    """The config selects the learner; workers receive its class, which they cannot import."""
    config = tiny("lstm").with_learner(ReinforceConfig())
    cloudpickle.register_pickle_by_value(reinforce)
    agents.learners._LEARNERS.register("reinforce", ReinforceConfig)
    try:
        local = train(config, tmp_path / "local")
        assert_same(train(config, tmp_path / "ray", ray=RayOptions(*processes)), local)
        with pytest.raises(ValueError, match="num_learners=2: Reinforce does not support several learners"):
            train(config, tmp_path / "refused", ray=RayOptions(0, 2))
    finally:
        del agents.learners._LEARNERS["reinforce"]
        cloudpickle.unregister_pickle_by_value(reinforce)


@pytest.mark.slow
def test_a_new_team_learner_trains_as_it_does_on_the_local_engine(tmp_path, assert_same):
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


@pytest.mark.parametrize(
    "config",
    [pytest.param(SEPARATE, marks=pytest.mark.matrix), pytest.param(CLIPPED, marks=pytest.mark.slow)],
    ids=["separate", "clip"],
)
def test_a_team_without_other_processes_equals_the_local_run_bit_for_bit(config, tmp_path, assert_same):
    local = train(config, tmp_path / "local")
    assert_same(train(config, tmp_path / "ray", ray=RayOptions(0, 0)), local)


@pytest.mark.matrix
def test_one_runner_and_one_learner_of_a_team_go_on_with_a_local_run_to_the_same_end(tmp_path, assert_same):
    reference = train(TEAM, tmp_path / "whole")
    run = Run.create(TEAM, tmp_path / "stopped")
    with LocalEngine(TEAM, run.path) as engine:
        for _ in range(3):
            engine.update()
        engine.save()
    assert_same(resume(run.path, ray=RayOptions(num_env_runners=1, num_learners=1)), reference)


@pytest.mark.matrix  # starts three processes
def test_two_runners_and_a_learner_of_a_team_learn_from_every_row(tmp_path):
    run = Run.create(TEAM, tmp_path / "run")
    with RayEngine(TEAM, run.path, RayOptions(num_env_runners=2, num_learners=1)) as engine:
        initial_weights = {name: value.clone() for name, value in engine.model.state_dict().items()}
        for _ in range(2):
            engine.update()
        engine.save()
        algorithm: Any = engine.algorithm
        samples = algorithm.call_runners(lambda runner: runner.sample())
    assert [row["step"] for row in run.metrics()] == [32, 64]
    assert all(0 <= row["losses/kl_max"] <= 1.01 * LEARNER.kl_limit for row in run.metrics())
    assert run.latest is not None
    weights = load_weights(run.latest)
    assert {
        name.partition(".")[0]
        for name in initial_weights
        if not torch.equal(initial_weights[name], weights[name])
    } == {
        "actors",
        "critic",
    }
    training = load_training(run.latest)
    assert [state["first_row"] for state in training["samplers"]] == [0, 2]
    # Each environment holds a whole team, in every sampler.
    assert [tuple(sample.segment.rewards.shape) for sample in samples] == [(2, 8, 2)] * 2


def test_several_learners_of_a_team_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"num_learners=2: .*use 0 \(in the driver process\) or 1"):
        train(TEAM, tmp_path / "run", ray=RayOptions(num_env_runners=1, num_learners=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_rllibs_own_checkpoints_hold_the_learner_of_a_team(tmp_path, assert_equal):
    config = SegmentGAMATRConfig().segments(
        envs=CLIPPED.env.make_batch,
        num_envs=4,
        segment_length=8,
        policy=CLIPPED.policy,
        learner=dataclasses.replace(LEARNER, mode="clip"),
    )
    algorithm: Any = config.build_algo()
    algorithm.train()
    expected = algorithm.last_result.parts
    path = algorithm.save_to_path(tmp_path / "checkpoint")
    algorithm.stop()
    restored_algorithm: Any = SegmentGAMATR.from_checkpoint(path)
    assert_equal(restored_algorithm._call_learners(lambda learner: learner.get_parts())[0], expected)
    restored_algorithm.train()
    after = restored_algorithm.last_result.parts
    restored_algorithm.stop()
    for name, state in expected["learner"]["actor_optimizer"]["state"].items():
        assert after["learner"]["actor_optimizer"]["state"][name]["step"] == 2 * state["step"]


@pytest.mark.slow
def test_a_cluster_starts_on_demand_with_the_users_settings(tmp_path):
    """Test when Ray starts. test_house.py tests that other modules do not import it."""
    source = """
import os, ray
import scrubjay.agents.rllib, scrubjay.experiments.launch.sweep
import scrubjay.experiments.runs.ray_engine
from scrubjay.experiments.commands.main import main
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
        timeout=600,
        check=True,
    )
    # Importing starts no cluster; a cluster started for an invalid run is shut down.
    assert done.stdout.split() == ["False", "2", "False", "3"]
    assert "need 5000 CPUs; the cluster has" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
