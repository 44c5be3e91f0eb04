"""Code of the `scrubjay` command: recipes, runs, evaluation, plots and benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports

if TYPE_CHECKING:
    from scrubjay.experiments.ray_store import RayStore as RayStore
    from scrubjay.experiments.recipes import RECIPES as RECIPES
    from scrubjay.experiments.recipes import with_memory as with_memory
    from scrubjay.experiments.run_table import Runs as Runs
    from scrubjay.experiments.runs.cluster import RayOptions as RayOptions
    from scrubjay.experiments.runs.evaluation import evaluate as evaluate
    from scrubjay.experiments.runs.reinforcement import TrainConfig as TrainConfig
    from scrubjay.experiments.runs.run import Run as Run
    from scrubjay.experiments.tasks.environments import EnvConfig as EnvConfig
    from scrubjay.experiments.training import resume as resume
    from scrubjay.experiments.training import train as train

# Importing the command must not import torch.
__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ray_store": ["RayStore"],
        "runs.evaluation": ["evaluate"],
        "recipes": ["RECIPES", "with_memory"],
        "run_table": ["Runs"],
        "runs.cluster": ["RayOptions"],
        "runs.reinforcement": ["TrainConfig"],
        "runs.run": ["Run"],
        "training": ["resume", "train"],
        "tasks.environments": ["EnvConfig"],
    },
)
