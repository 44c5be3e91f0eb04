"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrubjay.experiments.runs.own import VARIABLE, appended_folder, worker_folder

TOKEN = "~/.ray/auth_token"
"""Where Ray keeps the word by which a cluster knows its own."""

_REACH_SECONDS = 5.0
_FREE_SECONDS = 15.0
_IMPORT_SECONDS = 15.0


@dataclass(frozen=True)
class RayOptions:
    """How many machines' worth of Ray work on a run. Raises ValueError on negative numbers."""

    num_env_runners: int = 2
    """Processes that sample, each with its share of the environments; 0 samples in the driver."""
    num_learners: int = 0
    """Processes that compute gradients together; 0 learns in the driver."""
    address: str | None = None
    """Of the cluster's head, as host:port. None: RAY_ADDRESS if it is set, else processes of this machine
    only."""

    def __post_init__(self) -> None:
        for name in ("num_env_runners", "num_learners"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")

    @property
    def num_cpus(self) -> int:
        """CPUs that Ray must find: one per process."""
        return self.num_env_runners + self.num_learners


def connect(options: RayOptions) -> bool:
    """Join the cluster if this process is in none; return whether it was in none before.

    Raises ValueError, within half a minute, if the head cannot be reached, if the cluster has fewer CPUs than
    `options` need or others keep them, or if a node cannot import what a run needs.
    """
    import ray  # seconds of import, for this engine only
    from ray.exceptions import RayError

    joins = not ray.is_initialized()
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    if joins:
        _reach(address)
        # Warnings of RLlib's about its own API, at every start, would bury what matters.
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)
        settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address == "local":
            settings["include_dashboard"] = False
            _keep_token()
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # inside a job, its own environment holds
            environment: dict[str, Any] = {"env_vars": {**worker_variables(), **worker_folder()}}
            settings["runtime_env"] = environment
            if not address.startswith("ray://"):  # there the driver is a process of the head's
                environment["worker_process_setup_hook"] = _follow_driver
                settings["job_config"] = _job_config()
        try:
            ray.init(address=address, **settings)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            # A head listens, and Ray does not say why that is not enough.
            perhaps = f"; perhaps {_about_token()}" if isinstance(error, ConnectionError) else ""
            raise ValueError(f"no Ray cluster at {address}: {refusal(error)}{perhaps}") from error
    try:
        _find_cpus(options)
        if joins and address != "local":
            _find_packages()
    except ValueError:
        if joins:
            ray.shutdown()
        raise
    return joins


def _follow_driver() -> None:
    """Call `own.follow_driver` on nodes with this package; `_find_packages` reports those without."""
    try:
        from scrubjay.experiments.runs.own import follow_driver
    except ImportError:
        return
    follow_driver()


# Ray then sends the function itself, which a node without the package can load, and not its name.
_follow_driver.__module__ = "__main__"


def _job_config() -> Any:
    """Return a job that keeps the current folder off its workers' path, as it is off that of the driver.

    Ray puts it first there, before what is installed, and a folder may hold strangers' files.
    """
    from ray.job_config import JobConfig

    class DriversFolders(list[str]):
        def extend(self, folders: Iterable[str]) -> None:
            known = {os.path.abspath(folder or os.curdir) for folder in sys.path} - {appended_folder()}
            super().extend(folder for folder in folders if folder in known)

    job = JobConfig()
    job._py_driver_sys_path = DriversFolders()
    return job


def _keep_token() -> None:
    """Make the token that Ray asks of strangers, unless one is named; the one it makes all users can read."""
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    path = Path(TOKEN).expanduser()
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)  # whole or not at all: several runs may begin at once
        path.chmod(0o600)
    finally:
        aside.unlink(missing_ok=True)


def token_named() -> str | None:
    """Return where the token is that this process shows a cluster which asks for one; None if it has none."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return name
    return TOKEN if Path(TOKEN).expanduser().exists() else None


def refusal(error: Exception) -> str:
    """Return in a line why Ray refused, and what to do where a token is missing or wrong."""
    from ray import exceptions

    # Older Rays have no such error.
    if isinstance(error, getattr(exceptions, "AuthenticationError", ())):
        return _about_token()
    return " ".join(str(error).split())


def _about_token() -> str:
    named, mode = token_named(), os.environ.get("RAY_AUTH_MODE")
    remedy = f"copy {TOKEN} of its head to here, or name it in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    if named is None:
        return f"it asks for a token, and there is none here: {remedy}"
    if named == "RAY_AUTH_TOKEN_PATH" and not Path(os.environ[named]).is_file():
        return f"it asks for a token, and {named} names no file: {remedy}"
    if mode != "token":
        return f"it asks for a token, and that of {named} is kept back: set RAY_AUTH_MODE=token"
    return f"it refuses the token of {named}: {remedy}"


def worker_variables() -> dict[str, str]:
    """Return the environment variables of workers.

    Threads of all workers together must not outnumber the cores; who knows better sets the variable.
    """
    named = {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), **named}


def free_cpus() -> int:
    """Return the CPUs of the cluster that nobody has reserved."""
    import ray

    return int(ray.available_resources().get("CPU", 0))


def _find_cpus(options: RayOptions) -> None:
    """Raise ValueError unless there are CPUs for all processes, free ones within seconds.

    Ray would wait forever.
    """
    import ray

    needed = (
        f"num_env_runners={options.num_env_runners} and num_learners={options.num_learners} need "
        f"{options.num_cpus} CPUs"
    )
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if options.num_cpus > cpus:
        raise ValueError(
            f"{needed}; the cluster has {cpus}: ask for fewer, or join a larger one with --address"
        )
    deadline = time.monotonic() + _FREE_SECONDS
    while (free := free_cpus()) < options.num_cpus:
        if time.monotonic() > deadline:
            raise ValueError(
                f"{needed}; of the cluster's {cpus} only {free} are free: ask for fewer, or wait"
            )
        time.sleep(0.5)


def _find_packages() -> None:
    """Raise ValueError if a node fails to import what runners and learners are made of."""
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A function of the standard library, which every node can unpickle.
    load = ray.remote(num_cpus=0, max_retries=0)(importlib.import_module)
    hosts = {
        load.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            "scrubjay.agents.rllib"
        ): node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"]
    }
    # A node that is slow to answer is not a node that lacks something.
    answered, _ = ray.wait(list(hosts), num_returns=len(hosts), timeout=_IMPORT_SECONDS)
    for answer in answered:
        try:
            ray.get(answer)
        except RayTaskError as error:
            reason = str(error.cause).strip().splitlines()[-1]
            raise ValueError(
                f"the node {hosts[answer]} cannot load Scrubjay: {reason}; install there what is "
                "installed here"
            ) from error
        except RayError:  # the node is going: what is placed there goes elsewhere
            continue


def describe_cluster() -> str:
    """Return one line on the cluster this process is in, and on who can use it.

    Ray listens on all interfaces and cannot be told otherwise (2.60), so this matters on a laptop, too.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    resources = ray.cluster_resources()
    size = f"{len(nodes)} node{'s' * (len(nodes) != 1)}, {resources.get('CPU', 0):.0f} CPUs"
    if resources.get("GPU"):
        size += f", {resources['GPU']:.0f} GPUs"
    if os.environ.get("RAY_AUTH_MODE") == "token":
        guard = "open to all interfaces, for who has the token"
    else:
        guard = "without a token: whoever reaches its ports can run code here"
    return f"ray cluster {ray.get_runtime_context().gcs_address}: {size}; {guard}"


def _reach(address: str) -> None:
    """Raise ValueError unless a Ray head listens at host:port.

    Ray itself would try for minutes, or without end.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        if address not in ("local", "auto"):
            raise ValueError(f"address={address!r}: write it as host:port, for example 10.0.0.1:6379")
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") != "1":
                # Ray speaks gRPC, so HTTP/2: whoever does answers this greeting with a frame of settings,
                # type 4.
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
                if connection.recv(9)[3:4] != b"\4":
                    raise ValueError("what listens there is no Ray head, whose port is usually 6379")
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(f"no Ray cluster at {address}: {error}") from error
