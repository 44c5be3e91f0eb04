"""The `scrubjay` command and what is behind it: recipes, runs, evaluation, plots and benchmarks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scrubjay.experiments.cluster import RayOptions
    from scrubjay.experiments.config import TrainConfig
    from scrubjay.experiments.environments import EnvConfig
    from scrubjay.experiments.evaluation import evaluate
    from scrubjay.experiments.recipes import RECIPES, with_memory
    from scrubjay.experiments.run import Run
    from scrubjay.experiments.training import resume, train

__all__ = [
    "RECIPES",
    "EnvConfig",
    "RayOptions",
    "Run",
    "TrainConfig",
    "evaluate",
    "resume",
    "train",
    "with_memory",
]

_HOMES = {
    "RECIPES": "recipes",
    "EnvConfig": "environments",
    "RayOptions": "cluster",
    "Run": "run",
    "TrainConfig": "config",
    "evaluate": "evaluation",
    "resume": "training",
    "train": "training",
    "with_memory": "recipes",
}


def __getattr__(name: str) -> Any:
    # On first use: importing the command must not import torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
