"""A run at Weights & Biases, by its own client, whose settings hold: WANDB_MODE, WANDB_PROJECT and so on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import wandb


class WandbClient:
    """A run of `wandb`."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self.id: str = run.id

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Log a row; of steps that the service has already, from before a kill, it keeps the first."""
        self._run.log(dict(row), step=step)

    def close(self, result: Mapping[str, float] | None) -> None:
        """Write the result into the summary and finish, as failed where there is none."""
        for name, value in (result or {}).items():
            self._run.summary[f"result/{name}"] = value
        self._run.finish(exit_code=0 if result is not None else 1)


def open_client(title: str, config: Mapping[str, Any], id: str | None) -> WandbClient:
    """Begin a run, or go on with the one of this id."""
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "scrubjay"),
        name=title,
        config=dict(config),
        id=id,
        resume="allow",
        reinit="create_new",  # a run of the user's own in this process stays what it is
        settings=wandb.Settings(console="off"),
    )
    return WandbClient(run)
