"""Weights & Biases logger. Its environment variables apply: WANDB_MODE, WANDB_PROJECT and so on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import wandb


class WandbClient:
    """Run of `wandb`."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self.id: str = run.id

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


def open_client(title: str, config: Mapping[str, Any], id: str | None) -> WandbClient:
    """Start a new run, or continue the run with this id if it is not None."""
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "scrubjay"),
        name=title,
        config=dict(config),
        id=id,
        resume="allow",
        reinit="create_new",  # do not affect another wandb run in this process
        settings=wandb.Settings(console="off"),
    )
    return WandbClient(run)
