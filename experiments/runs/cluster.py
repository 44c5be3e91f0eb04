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

from scrubjay.experiments.cli.failures import check_at_least
from scrubjay.experiments.user_modules import IMPORT_VARIABLE, appended_folder, worker_folder

TOKEN = "~/.ray/auth_token"
"""Path of Ray's authentication token."""

_REACH_SECONDS = 5.0
_FREE_SECONDS = 15.0
_IMPORT_SECONDS = 15.0


@dataclass(frozen=True)
class RayOptions:
    """Processes and cluster address of a run on Ray.

    Raises:
        ValueError: On negative numbers of processes.
    """

    num_env_runners: int = 2
    """Number of processes that run the environments. If 0, the driver process runs all environments."""
    num_learners: int = 0
    """Number of data-parallel learner processes. If 0, the driver process trains the model."""
    address: str | None = None
    """Address of the cluster's head as host:port; None uses RAY_ADDRESS if set, else this machine only."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "num_env_runners", "num_learners")

    @property
    def num_cpus(self) -> int:
        """Required CPUs: one per process."""
        return self.num_env_runners + self.num_learners


def connect(options: RayOptions) -> bool:
    """Connect to the cluster, unless already connected; return True if a new connection was made.

    Raises ValueError, within half a minute, if the head cannot be reached, if the cluster has too few free
    CPUs for `options`, or if a node cannot import the modules of a run.
    """
    import ray  # importing takes seconds and only this engine needs it
    from ray.exceptions import RayError

    joins = not ray.is_initialized()
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    if joins:
        _check_address(address)
        # RLlib warns about its own API at every start, which would hide relevant messages.
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)
        settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address == "local":
            settings["include_dashboard"] = False
            # By default workers are so nice that on a busy machine they never start.
            os.environ.setdefault("RAY_worker_niceness", "0")
            _keep_token()
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # inside a job, the job's environment applies
            environment: dict[str, Any] = {"env_vars": {**worker_variables(), **worker_folder()}}
            settings["runtime_env"] = environment
            if not address.startswith("ray://"):  # there the driver runs on the head
                environment["worker_process_setup_hook"] = _follow_driver
                settings["job_config"] = _job_config()
        try:
            ray.init(address=address, **settings)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            # A head listens, but Ray does not report why the connection fails.
            perhaps = f"; perhaps {_about_token()}" if isinstance(error, ConnectionError) else ""
            raise ValueError(f"no Ray cluster at {address}: {describe_refusal(error)}{perhaps}") from error
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
    """Call `user_modules.follow_driver` if Scrubjay is installed on this node; otherwise do nothing."""
    try:
        from scrubjay.experiments.user_modules import follow_driver
    except ImportError:
        return
    follow_driver()


# Ray then pickles the function by value, which a node without the package can load.
_follow_driver.__module__ = "__main__"


def _job_config() -> Any:
    """Return a Ray job config that gives workers only folders that are on the driver's `sys.path`.

    By default Ray also adds the current folder, before installed packages. The folder may hold untrusted
    files.
    """
    from ray.job_config import JobConfig

    class DriversFolders(list[str]):
        def extend(self, folders: Iterable[str]) -> None:
            driver_folders = {os.path.abspath(folder or os.curdir) for folder in sys.path} - {
                appended_folder()
            }
            super().extend(folder for folder in folders if folder in driver_folders)

    job = JobConfig()
    job._py_driver_sys_path = DriversFolders()
    return job


def _keep_token() -> None:
    """Create Ray's authentication token, readable by this user only, unless a token is configured.

    A token that Ray itself creates is readable by all users.
    """
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    path = Path(TOKEN).expanduser()
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)  # atomic: several runs may start at once
        path.chmod(0o600)
    finally:
        aside.unlink(missing_ok=True)


def find_token() -> str | None:
    """Return the variable or path that provides the authentication token; None if there is no token."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return name
    return TOKEN if Path(TOKEN).expanduser().exists() else None


def describe_refusal(error: Exception) -> str:
    """Return one line on why Ray refused the connection, with the fix for a missing or wrong token."""
    from ray import exceptions

    # Older versions of Ray lack this error.
    if isinstance(error, getattr(exceptions, "AuthenticationError", ())):
        return _about_token()
    return " ".join(str(error).split())


def _about_token() -> str:
    token_source, mode = find_token(), os.environ.get("RAY_AUTH_MODE")
    remedy = f"copy {TOKEN} of its head to here, or name it in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    if token_source is None:
        return f"it asks for a token, and there is none here: {remedy}"
    if token_source == "RAY_AUTH_TOKEN_PATH" and not Path(os.environ[token_source]).is_file():
        return f"it asks for a token, and {token_source} names no file: {remedy}"
    if mode != "token":
        return f"it asks for a token, and the token of {token_source} is not sent: set RAY_AUTH_MODE=token"
    return f"it refuses the token of {token_source}: {remedy}"


def worker_variables() -> dict[str, str]:
    """Return the environment variables of workers.

    OMP_NUM_THREADS defaults to 1, so that the threads of all workers do not outnumber the cores.
    """
    import_variables = {IMPORT_VARIABLE: os.environ[IMPORT_VARIABLE]} if IMPORT_VARIABLE in os.environ else {}
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), **import_variables}


def free_cpus() -> int:
    """Return the number of free CPUs in the cluster."""
    import ray

    return int(ray.available_resources().get("CPU", 0))


def _find_cpus(options: RayOptions) -> None:
    """Raise ValueError unless enough CPUs for all processes become free within seconds.

    Ray itself would wait forever.
    """
    import ray

    requirement = (
        f"num_env_runners={options.num_env_runners} and num_learners={options.num_learners} need "
        f"{options.num_cpus} CPUs"
    )
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if options.num_cpus > cpus:
        raise ValueError(
            f"{requirement}; the cluster has {cpus}: use fewer processes, or join a larger cluster with "
            "--address"
        )
    deadline = time.monotonic() + _FREE_SECONDS
    while (free := free_cpus()) < options.num_cpus:
        if time.monotonic() > deadline:
            raise ValueError(
                f"{requirement}; only {free} of the cluster's {cpus} CPUs are free: use fewer processes, or "
                "wait"
            )
        time.sleep(0.5)


def _find_packages() -> None:
    """Raise ValueError if a node cannot import the modules of runners and learners."""
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
    # A slow reply does not mean that a package is missing.
    replies, _ = ray.wait(list(hosts), num_returns=len(hosts), timeout=_IMPORT_SECONDS)
    for reply in replies:
        try:
            ray.get(reply)
        except RayTaskError as error:
            reason = str(error.cause).strip().splitlines()[-1]
            raise ValueError(
                f"the node {hosts[reply]} cannot load Scrubjay: {reason}; install the packages of this "
                "machine on that node"
            ) from error
        except RayError:  # the node is shutting down: Ray will place its work elsewhere
            continue


def describe_cluster() -> str:
    """Return one line on the connected cluster and its access control.

    Ray 2.60 always listens on all network interfaces, so access control also matters on a laptop.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    resources = ray.cluster_resources()
    size = f"{len(nodes)} node{'s' * (len(nodes) != 1)}, {resources.get('CPU', 0):.0f} CPUs"
    if resources.get("GPU"):
        size += f", {resources['GPU']:.0f} GPUs"
    if os.environ.get("RAY_AUTH_MODE") == "token":
        guard = "open to all interfaces, protected by a token"
    else:
        guard = "open without a token: anyone who reaches its ports can run code here"
    return f"ray cluster {ray.get_runtime_context().gcs_address}: {size}; {guard}"


def _check_address(address: str) -> None:
    """Raise ValueError unless a Ray head listens at host:port.

    Ray itself would retry for minutes, or forever.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        if address not in ("local", "auto"):
            raise ValueError(f"address={address!r}: write it as host:port, for example 10.0.0.1:6379")
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") != "1":
                # Ray uses gRPC over HTTP/2: a server answers this preface with a SETTINGS frame, type 4.
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
                if connection.recv(9)[3:4] != b"\4":
                    raise ValueError(
                        "the server at this address is not a Ray head; a Ray head usually uses port 6379"
                    )
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(f"no Ray cluster at {address}: {error}") from error
