"""Nodes that fail and join, as several raylets on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from scrubjay.experiments import RayOptions, Run
from scrubjay.experiments.runs.ray_engine import RayEngine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def node_ids(engine: RayEngine) -> list[str]:
    group: Any = engine.algorithm.env_runner_group
    return group.foreach_env_runner(lambda runner: ray.get_runtime_context().get_node_id())


def update_until(engine: RayEngine, condition, seconds=900):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        engine.update()


def test_a_node_of_runners_dies_and_another_joins_late(cluster, tiny, tmp_path):
    cluster.add_node(num_cpus=1)
    config = tiny("gru", total_steps=10**9)
    run = Run.create(config, tmp_path / "run")
    with RayEngine(config, run.path, RayOptions(num_env_runners=2)) as engine:
        engine.update()
        head = ray.get_runtime_context().get_node_id()
        assert len(set(node_ids(engine))) == 2
        (worker,) = cluster.worker_nodes
        cluster.remove_node(worker, allow_graceful=False)
        update_until(engine, lambda: node_ids(engine) == [head])
        engine.update()
        cluster.add_node(num_cpus=1)
        update_until(engine, lambda: len(set(node_ids(engine))) == 2)
        engine.update()
    steps = [row["step"] for row in run.metrics()]
    differences = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    assert set(differences) == {16, 32}
    assert differences[0] == differences[-1] == 32


@pytest.mark.matrix
def test_the_node_of_a_learner_dies(cluster, tiny, tmp_path, caplog):
    cluster.add_node(num_cpus=2)
    config = tiny("gru", total_steps=10**9)
    run = Run.create(config, tmp_path / "run")
    with RayEngine(config, run.path, RayOptions(num_env_runners=1, num_learners=2)) as engine:
        engine.update()
        engine.update()
        num_steps = engine._parts["learner"]["optimizer"]["state"][0]["step"]
        (worker,) = cluster.worker_nodes
        cluster.remove_node(worker, allow_graceful=False)
        cluster.add_node(num_cpus=2)
        engine.update()
        assert engine._parts["learner"]["optimizer"]["state"][0]["step"] == num_steps * 3 / 2
    assert "lost a learner at step 64" in caplog.text
    assert [row["step"] for row in run.metrics()] == [32, 64, 96]


def train_by_address(folder: Path, address: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process."""
    sizes = ["--total-steps", "4096", "--eval-episodes", "5", "--run-dir", "run", "--quiet"]
    return subprocess.run(
        [
            *[
                sys.executable,
                "-m",
                "scrubjay",
                "train",
                "tmaze-demo",
                "--engine",
                "ray",
            ],
            *["--num-env-runners", "1", "--address", address, *sizes, *words],
        ],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.matrix
def test_a_cluster_is_joined_by_address_and_left_running(cluster, tmp_path):
    done = train_by_address(tmp_path, cluster.address)
    assert done.returncode == 0, done.stderr
    assert f"ray cluster {cluster.address}: 1 node, 1 CPUs" in done.stdout
    assert Run.load(tmp_path / "run").step == 4096
    assert ray.cluster_resources()["CPU"] == 1


def assert_refused(done: subprocess.CompletedProcess[str], message: str, folder: Path) -> None:
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "run").exists()


@pytest.mark.matrix
def test_cpus_that_others_keep_are_not_waited_for(cluster, tmp_path):
    keeper = ray.remote(num_cpus=1)(lambda: time.sleep(1000)).remote()
    done = train_by_address(tmp_path, cluster.address)
    assert_refused(done, "need 1 CPUs; only 0 of the cluster's 1 CPUs are free", tmp_path)
    ray.cancel(keeper, force=True)


@pytest.mark.matrix
def test_a_node_without_the_package_is_named(cluster, tmp_path):
    """Shadow a module by one that fails on import, as if it were missing."""
    hides = tmp_path / "hides"
    hides.mkdir()
    (hides / "scrubjay.py").write_text("raise ModuleNotFoundError(\"No module named 'scrubjay'\")")
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(hides)})
    done = train_by_address(tmp_path, cluster.address)
    assert_refused(done, "cannot load Scrubjay: No module named 'scrubjay'", tmp_path)
