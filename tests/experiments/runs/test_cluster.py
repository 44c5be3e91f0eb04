"""What the Ray engine refuses before any cluster is started or joined."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from scrubjay.experiments.runs import cluster


@pytest.fixture(autouse=True)
def _no_cluster():
    yield
    import ray

    assert not ray.is_initialized()


def test_workers_have_one_thread_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cluster.worker_variables() == {"OMP_NUM_THREADS": "3"}
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cluster.worker_variables() == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "rya"], "unknown engine 'rya'; choose from local, ray; did you mean 'ray'?"),
        (["--num-env-runners", "2"], "--num-env-runners belongs to --engine ray"),
        (["--engine", "ray", "--num-learners", "two"], "num_learners='two': expected a whole number"),
        (["--engine", "ray", "--num-env-runners", "-1"], "num_env_runners=-1: must not be negative"),
        (["--engine", "ray", "--address", "nowhere"], "address='nowhere': write it as host:port"),
        (
            ["--engine", "ray", "--num-env-runners", "65"],
            "num_env_runners=65, num_learners=0: at most env.num_envs=64",
        ),
    ],
)
def test_wrong_flags_are_one_line(words, message, refused):
    assert message in refused("train", "tmaze-demo", "--run-dir", "run", *words)


def test_an_address_where_nothing_listens_is_one_line(refused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ["--engine", "ray", "--address", address, "--run-dir", "run"]
        assert f"no Ray cluster at {address}" in refused("train", "tmaze-demo", *words)


@pytest.mark.parametrize(
    ("answer", "message"), [(b"", "timed out"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no Ray head")]
)
def test_an_address_where_something_else_listens_is_refused(answer, message, monkeypatch):
    monkeypatch.setattr(cluster, "_REACH_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            connection, _ = server.accept()
            connection.sendall(answer)
            with contextlib.suppress(OSError):
                while connection.recv(100):  # until the other side hangs up
                    pass

        threading.Thread(target=talk, daemon=True).start()
        with pytest.raises(ValueError, match=message):
            cluster._reach(f"127.0.0.1:{server.getsockname()[1]}")


def test_a_probe_is_not_for_ray(refused):
    words = ["--engine", "ray", "--run-dir", "run"]
    assert "ballet-probe is trained in one process" in refused("train", "ballet-probe", *words)
