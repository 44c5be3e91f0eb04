"""Errors of the Ray engine before it starts or joins a cluster, and access to a local cluster."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading

import pytest

from scrubjay.experiments.runs import cluster


@pytest.fixture(autouse=True)
def _no_cluster():
    yield
    import ray

    assert not ray.is_initialized()


def test_workers_have_one_thread_by_default(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cluster.worker_variables() == {"OMP_NUM_THREADS": "3"}
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cluster.worker_variables() == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("SCRUBJAY_IMPORT", "my_memory")
    assert cluster.worker_variables() == {"OMP_NUM_THREADS": "1", "SCRUBJAY_IMPORT": "my_memory"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "rya"], "unknown engine 'rya'; choose from local, ray; did you mean 'ray'?"),
        (["--num-env-runners", "2"], "--num-env-runners requires --engine ray"),
        (["--engine", "ray", "--num-learners", "two"], "--num-learners 'two': expected a whole number"),
        (["--engine", "ray", "--num-env-runners", "-1"], "num_env_runners=-1: must not be negative"),
        (["--engine", "ray", "--address", "nowhere"], "address='nowhere': write it as host:port"),
        (
            ["--engine", "ray", "--num-env-runners", "65"],
            "num_env_runners=65, num_learners=0: must be at most env.num_envs=64",
        ),
    ],
)
def test_wrong_flags_are_one_line(arguments, message, usage_error):
    assert message in usage_error("train", "tmaze-demo", "--run-dir", "run", *arguments)


def test_an_address_where_nothing_listens_is_one_line(usage_error):
    with socket.socket() as bound_socket:
        bound_socket.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        address = f"127.0.0.1:{bound_socket.getsockname()[1]}"
        arguments = ["--engine", "ray", "--address", address, "--run-dir", "run"]
        assert f"no Ray cluster at {address}" in usage_error("train", "tmaze-demo", *arguments)


@pytest.mark.parametrize(
    ("answer", "message"), [(b"", "timed out"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not a Ray head")]
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
            cluster._check_address(f"127.0.0.1:{server.getsockname()[1]}")


def test_a_probe_does_not_support_ray(usage_error):
    arguments = ["--engine", "ray", "--run-dir", "run"]
    assert "ballet-probe is trained in one process" in usage_error("train", "ballet-probe", *arguments)


PORT_SCAN = r"""
import contextlib, pathlib, re, urllib.error, urllib.request
import grpc, psutil, ray
from scrubjay.experiments.runs.cluster import RayOptions, connect, describe_cluster

connect(RayOptions(num_env_runners=0))
print(describe_cluster())
assert pathlib.Path("~/.ray/auth_token").expanduser().stat().st_mode & 0o777 == 0o600
double = ray.remote(lambda x: 2 * x)
assert ray.get(double.remote(3)) == 6
stubs = (pathlib.Path(ray.__file__).parent / "core/generated").glob("*_grpc.py")
calls = {call for stub in stubs for call in re.findall(r"'(/ray\.rpc[\w.]*/\w+)'", stub.read_text())}
calls |= {f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull", "FreeObjects")}
assert len(calls) > 100
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
listening = set()
for process in processes:
    with contextlib.suppress(psutil.NoSuchProcess):  # Ray's helpers come and go
        listening |= {c.laddr for c in process.net_connections("inet") if c.status == "LISTEN"}
assert len(listening) > 5
num_refused = 0
for address in listening:
    host = address.ip if address.ip not in ("::", "0.0.0.0") else "127.0.0.1"
    with grpc.insecure_channel(f"{host}:{address.port}") as channel:
        for call in sorted(calls):
            try:
                channel.unary_unary(call, bytes, bytes)(b"", timeout=60)
                raise AssertionError(f"{call} at {address} answered without a token")
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:  # speaks HTTP/1
                    break
                assert error.code().name in ("UNAUTHENTICATED", "UNIMPLEMENTED"), (call, address)
                num_refused += error.code() is grpc.StatusCode.UNAUTHENTICATED
        else:
            continue
    for path in ("/api/jobs/", "/api/job_agent/jobs/", "/get_or_create_runtime_env"):
        try:
            urllib.request.urlopen(f"http://{host}:{address.port}{path}", data=b"{}", timeout=60)
            raise AssertionError(f"{path} at {address} answered without a token")
        except urllib.error.HTTPError as error:
            assert error.code in (401, 405), (path, address, error.code)
assert num_refused > 100
assert ray.get(double.remote(4)) == 8
"""


@pytest.mark.slow
def test_every_port_of_a_local_cluster_requires_the_token(tmp_path):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = variables | {"HOME": str(tmp_path)}
    arguments = [sys.executable, "-c", PORT_SCAN]
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "open to all interfaces, protected by a token" in done.stdout


def test_the_token_file_is_made_private_and_none_is_written_without_authentication(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    cluster._keep_token()
    first = token.read_text()
    assert len(first) == 64
    token.chmod(0o644)
    cluster._keep_token()
    assert (token.read_text(), token.stat().st_mode & 0o777) == (first, 0o600)
    assert list(token.parent.iterdir()) == [token]
    token.unlink()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster._keep_token()
    assert not token.exists()
