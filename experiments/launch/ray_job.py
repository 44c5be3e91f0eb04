"""Jobs on a Ray cluster: submission of a run as a job, and display of its output."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scrubjay
from scrubjay.experiments.cli.untrusted_text import printable
from scrubjay.experiments.runs.cluster import describe_refusal, find_token, worker_variables

# Use the interpreter of the workers, which has Ray installed. It is in the command line of the raylet, two
# processes above the job's shell. Without /proc (not Linux) fall back to PATH.
_INTERPRETER = (
    """raylet=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$PPID/status" 2>/dev/null); """
    """python=$(cat "/proc/$raylet/cmdline" 2>/dev/null | tr '\\0' '\\n' """
    """| sed -n 's/^--python_worker_command=\\([^" ]*\\) .*/\\1/p'); """
    """: "${python:=$(command -v python || echo python3)}"; """
)
_PATIENCE = 30.0
_REACH_SECONDS = 10.0


def submit(address: str, argv: Sequence[str]) -> tuple[Any, str]:
    """Start `scrubjay ARGV` on the head node of the cluster; return the client and the job's id.

    The local package is sent with the job. Its dependencies (torch, ray[rllib], ...) must be installed on the
    cluster. Raises ValueError if the head node does not answer, rejects the job, or needs a token that is not
    set. Raises ImportError if the extra `cluster` is not installed.
    """
    if find_token() is not None:
        os.environ.setdefault(
            "RAY_AUTH_MODE", "token"
        )  # current clusters require it, but their client does not set it
    try:
        import aiohttp  # noqa: F401  (Ray would fail later with a misleading hint)
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ImportError("launch needs the extra `cluster`: pip install 'scrubjay[cluster]'") from error
    _reach(address)
    entrypoint = f'{_INTERPRETER}exec "$python" ' + " ".join(map(_quote, ["-P", "-m", "scrubjay", *argv]))
    environment = {**worker_variables(), "PYTHONUNBUFFERED": "1"}
    for chatty in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{chatty}").setLevel(logging.WARNING)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            client = JobSubmissionClient(address)
            return client, client.submit_job(
                entrypoint=entrypoint,
                runtime_env={"py_modules": [str(Path(scrubjay.__file__).parent)], "env_vars": environment},
                metadata={"name": f"scrubjay {' '.join(argv)}"},
            )
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            # The head node of a new cluster answers before it accepts jobs.
            if "No available agent" in str(error) and time.monotonic() < deadline:
                time.sleep(1.0)
                continue
            raise ValueError(
                f"could not start a job at {address}: {describe_refusal(error)[:300]}"
            ) from error


def follow(client: Any, job: str) -> int:
    """Print the job's output until it ends; return its exit code.

    Raises ConnectionError if the connection to the head node is lost.
    """
    import aiohttp

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            print(printable(text), end="", flush=True)

    while True:
        try:
            asyncio.run(tail())
            info = client.get_job_info(job)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            raise ConnectionError(
                f"the connection to the head node is lost, but the job keeps running: {error}"
            ) from error
        if info.status.is_terminal():
            break
        time.sleep(1.0)
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None:  # it failed before it started
        print(printable(info.message), flush=True)
    return info.driver_exit_code or 1


def _reach(address: str) -> None:
    """Raise ValueError unless an HTTP server answers at `address`. Ray's client itself has no timeout."""
    try:
        urllib.request.urlopen(address, timeout=_REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return  # the server answers; it may require a token, which the client sends
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(
            f"no dashboard at {address}: {error}; write the address as http://HEAD:8265, as printed by "
            "`ray start` on the head node"
        ) from error


def _quote(word: str) -> str:
    """Quote a word for the shell of the head node, except a leading ~, which the shell expands."""
    return "~/" + shlex.quote(word[2:]) if word.startswith("~/") else shlex.quote(word)
