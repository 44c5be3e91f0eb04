"""Submitting a run to a Ray cluster as a job, and following it from here."""

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
from scrubjay.experiments.runs.cluster import refusal, token_named, worker_variables
from scrubjay.experiments.words.foreign import printable

# Whoever started the head has Ray, and so has the interpreter of its workers, which the raylet, two processes
# above the job's shell, has in its command line; elsewhere than on Linux the path of executables must do.
_INTERPRETER = (
    """raylet=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$PPID/status" 2>/dev/null); """
    """python=$(cat "/proc/$raylet/cmdline" 2>/dev/null | tr '\\0' '\\n' """
    """| sed -n 's/^--python_worker_command=\\([^" ]*\\) .*/\\1/p'); """
    """: "${python:=$(command -v python || echo python3)}"; """
)
_PATIENCE = 30.0
_REACH_SECONDS = 10.0


def submit(address: str, words: Sequence[str]) -> tuple[Any, str]:
    """Start `scrubjay WORDS` on the head of the cluster; return the client and the job's id.

    The package goes with the job as it is here; what it needs (torch, ray[rllib], ...) must be installed on
    the cluster. Raises ValueError if the head does not answer, refuses or asks for a token that is not here,
    ImportError without the extra `cluster`.
    """
    if token_named() is not None:
        os.environ.setdefault(
            "RAY_AUTH_MODE", "token"
        )  # a cluster of today asks for it, its client does not know
    try:
        import aiohttp  # noqa: F401  (Ray itself names another remedy, late)
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ImportError("launch needs the extra `cluster`: pip install 'scrubjay[cluster]'") from error
    _reach(address)
    entrypoint = f'{_INTERPRETER}exec "$python" ' + " ".join(
        map(_quote, ["-m", "scrubjay.experiments.cli", *words])
    )
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
                metadata={"name": f"scrubjay {' '.join(words)}"},
            )
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            # The head of a young cluster answers before it can take jobs.
            if "No available agent" in str(error) and time.monotonic() < deadline:
                time.sleep(1.0)
                continue
            raise ValueError(f"no job started at {address}: {refusal(error)[:300]}") from error


def follow(client: Any, job: str) -> int:
    """Print the job's output until it ends; return its exit code.

    Raises ConnectionError if the head is lost.
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
            raise ConnectionError(f"the connection is lost, and the job goes on: {error}") from error
        if info.status.is_terminal():
            break
        time.sleep(1.0)
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None:  # it never came to run
        print(printable(info.message), flush=True)
    return info.driver_exit_code or 1


def _reach(address: str) -> None:
    """Raise ValueError unless an HTTP server answers; the client would wait without end."""
    try:
        urllib.request.urlopen(address, timeout=_REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return  # an answer: it may ask for a token, which the client has
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(
            f"no dashboard at {address}: {error}; write it as http://HEAD:8265, as the head's start tells it"
        ) from error


def _quote(word: str) -> str:
    """Quote for the head's shell, which is to expand a leading ~ itself."""
    return "~/" + shlex.quote(word[2:]) if word.startswith("~/") else shlex.quote(word)
