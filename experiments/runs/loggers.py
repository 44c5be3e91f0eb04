"""Loggers that send the metrics of a run to W&B or MLflow, in addition to the files of the run."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.files import read_object, write_atomically

LOGGERS = ("mlflow", "wandb")
"""Names of the loggers: each is an extra of Scrubjay, and the imported package."""
FILE = "loggers.json"
"""File in the run directory with the run ids of each service, to continue the same run there on resume."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_log = logging.getLogger(__name__)


class Log:
    """Logger that forwards metrics to a client and stops with one warning if the client fails.

    Training thus does not depend on the network. The logger is a context manager that closes itself.
    """

    def __init__(self, name: str = "", client: WandbClient | MlflowClient | None = None) -> None:
        self._name, self._client = name, client
        self.result: dict[str, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Log the metrics of an update."""
        self._try(lambda client: client.update(step, row))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Store the numbers of the result until `close` sends them."""
        self.result = {name: value for name, value in result.items() if type(value) in (int, float)}

    def close(self) -> None:
        """Send the stored result and end the run at the service."""
        self._try(lambda client: client.close(self.result))
        self._client = None

    def _try(self, act: Callable[[WandbClient | MlflowClient], None]) -> None:
        if self._client is None:
            return
        try:
            act(self._client)
        except Exception as error:  # noqa: BLE001  (third-party clients raise many error types)
            self._client = None
            reason = one_line(error) or type(error).__name__
            _log.warning(
                "logging to %s stopped (%s); training continues and writes its own metrics",
                self._name,
                reason,
            )


def log_to(name: str | None, path: Path, config: Mapping[str, Any]) -> Log:
    """Start or continue the run of `path` at the logging service `name`; log nothing if `name` is None.

    Raises ValueError if the service cannot be reached or its package is missing.
    """
    if name is None:
        return Log()
    check(name)
    run_ids = _read_run_ids(path / FILE)
    try:
        client = (MlflowClient if name == "mlflow" else WandbClient)(path.name, config, run_ids.get(name))
    except Exception as error:
        raise ValueError(f"{name} cannot be reached: {one_line(error) or type(error).__name__}") from error
    if run_ids.get(name) != client.id:
        write_atomically(path / FILE, json.dumps({**run_ids, name: client.id}) + "\n")
    return Log(name, client)


def check(name: str | None) -> None:
    """Raise ValueError, naming the extra to install, if a logger is unknown or its package is missing."""
    if name is None:
        return
    if name not in LOGGERS:
        raise ValueError(f"unknown logger {name!r}; choose from {', '.join(LOGGERS)}")
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"logger {name!r} needs {name}: pip install 'scrubjay[{name}]'")


def _read_run_ids(file: Path) -> dict[str, str]:
    """Return a dict from logging service to run id. Raises ValueError if the file is damaged."""
    if not file.exists():
        return {}
    fields = dict(read_object(file))
    for name, value in fields.items():
        if name not in LOGGERS or not isinstance(value, str) or not _ID.fullmatch(value):
            raise ValueError(
                f"{file} is damaged: {name!r:.40} is {value!r:.80}; delete it to log to new runs"
            )
    return fields


class WandbClient:
    """New run of Weights & Biases, or the run with this id if it is not None.

    The environment variables of `wandb` apply: WANDB_MODE, WANDB_PROJECT and so on.
    """

    def __init__(self, title: str, config: Mapping[str, Any], id: str | None) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "scrubjay"),
            name=title,
            config=dict(config),
            id=id,
            resume="allow",
            reinit="create_new",  # do not affect another wandb run in this process
            settings=wandb.Settings(console="off"),
        )
        self.id: str = self._run.id

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Log the metrics of an update.

        A run that resumes after a crash may log a step again; the service then keeps the first metrics.
        """
        self._run.log(dict(row), step=step)

    def close(self, result: Mapping[str, float] | None) -> None:
        """Write the result into the summary and finish the run; mark it as failed if the result is None."""
        for name, value in (result or {}).items():
            self._run.summary[f"result/{name}"] = value
        self._run.finish(exit_code=0 if result is not None else 1)


_LONGEST = 500
"""Maximum length of a parameter value that every MLflow store accepts."""
_AT_ONCE = 100
"""Maximum number of parameters per request."""


class MlflowClient:
    """New run of MLflow, or the run with this id if it is not None.

    MLflow's environment variable MLFLOW_TRACKING_URI names the server.
    """

    def __init__(self, title: str, config: Mapping[str, Any], id: str | None) -> None:
        import mlflow
        from mlflow.entities import Param

        self._client = mlflow.MlflowClient()
        if id is not None:
            self.id = id
            self._client.update_run(id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "scrubjay")
        experiment = self._client.get_experiment_by_name(name)
        at = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self.id: str = self._client.create_run(at, run_name=title).info.run_id
        params = [Param(key, str(value)[:_LONGEST]) for key, value in _flatten(config)]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self.id, params=params[first : first + _AT_ONCE])

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Log the metrics of an update."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in row.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, result: Mapping[str, float] | None) -> None:
        """Log the result and end the run. If the result is None, the status of the run is KILLED."""
        if result is not None:
            self.update(int(result.get("step", 0)), {f"result/{name}": v for name, v in result.items()})
        self._client.set_terminated(self.id, "KILLED" if result is None else "FINISHED")


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return pairs of dotted path and value for all values of nested settings."""
    items = []
    for name, value in config.items():
        items += (
            _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
        )
    return items
