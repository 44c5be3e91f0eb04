"""MLflow logger. The server is set by MLflow's environment variable MLFLOW_TRACKING_URI."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

_LONGEST = 500
"""Maximum length of a parameter value that every MLflow store accepts."""
_AT_ONCE = 100
"""Maximum number of parameters per request."""


class MlflowRun:
    """Run of an MLflow experiment."""

    def __init__(self, client: MlflowClient, id: str) -> None:
        self._client, self.id = client, id

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Log the metrics of an update."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in row.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, result: Mapping[str, float] | None) -> None:
        """Log the result and end the run. If the result is None, the status of the run is KILLED."""
        if result is not None:
            self.update(int(result.get("step", 0)), {f"result/{name}": v for name, v in result.items()})
        self._client.set_terminated(self.id, "KILLED" if result is None else "FINISHED")


def open_client(title: str, config: Mapping[str, Any], id: str | None) -> MlflowRun:
    """Start a new run, or continue the run with this id if it is not None."""
    client = MlflowClient()
    if id is not None:
        client.update_run(id, status="RUNNING")
        return MlflowRun(client, id)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "scrubjay")
    experiment = client.get_experiment_by_name(name)
    at = client.create_experiment(name) if experiment is None else experiment.experiment_id
    run = MlflowRun(client, client.create_run(at, run_name=title).info.run_id)
    params = [Param(key, str(value)[:_LONGEST]) for key, value in _flatten(config)]
    for first in range(0, len(params), _AT_ONCE):
        client.log_batch(run.id, params=params[first : first + _AT_ONCE])
    return run


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return pairs of dotted path and value for all values of nested settings."""
    items = []
    for name, value in config.items():
        items += (
            _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
        )
    return items
