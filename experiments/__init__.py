"""The `scrubjay` command and what is behind it: recipes, runs, evaluation, plots and benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay.kernels.first_use import imported_on_first_use

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

# Importing the command must not import torch.
__getattr__ = imported_on_first_use(
    __name__,
    {
        "cluster": ["RayOptions"],
        "config": ["TrainConfig"],
        "environments": ["EnvConfig"],
        "evaluation": ["evaluate"],
        "recipes": ["RECIPES", "with_memory"],
        "run": ["Run"],
        "training": ["resume", "train"],
    },
)
