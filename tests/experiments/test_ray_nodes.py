"""Whole nodes that die and join: several raylets on this machine."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from scrubjay.experiments import RayOptions, Run
from scrubjay.experiments.ray_engine import RayEngine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


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


def update_until(engine: RayEngine, condition, seconds=240):
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
    counted = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    assert set(counted) == {16, 32}
    assert counted[0] == counted[-1] == 32


def test_the_node_of_a_learner_dies(cluster, tiny, tmp_path, caplog):
    cluster.add_node(num_cpus=2)
    config = tiny("gru", total_steps=10**9)
    run = Run.create(config, tmp_path / "run")
    with RayEngine(config, run.path, RayOptions(num_env_runners=1, num_learners=2)) as engine:
        engine.update()
        engine.update()
        learned = engine._parts["learner"]["optimizer"]["state"][0]["step"]
        (worker,) = cluster.worker_nodes
        cluster.remove_node(worker, allow_graceful=False)
        cluster.add_node(num_cpus=2)
        engine.update()
        assert engine._parts["learner"]["optimizer"]["state"][0]["step"] == learned * 3 / 2
    assert "a learner is lost at step 64" in caplog.text
    assert [row["step"] for row in run.metrics()] == [32, 64, 96]


def test_a_cluster_is_joined_by_address_and_left_running(cluster, tiny, tmp_path):
    """In a process of its own, as a user's would be."""
    import subprocess
    import sys

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    words = ["train", "tmaze-demo", "--engine", "ray", "--num-env-runners", "1", "--address", cluster.address]
    sizes = ["--total-steps", "4096", "--eval-episodes", "5", "--run-dir", "run", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "scrubjay.experiments.cli", *words, *sizes],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"ray cluster {cluster.address}: 1 node, 1 CPUs" in done.stdout
    assert Run.load(tmp_path / "run").step == 4096
    assert ray.cluster_resources()["CPU"] == 1
