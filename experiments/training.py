"""Train from Python: `run = train(config)`, then `run.policy.act(...)`."""

from __future__ import annotations

from pathlib import Path

from scrubjay.experiments.cluster import RayOptions
from scrubjay.experiments.config import Experiment
from scrubjay.experiments.run import Run


def train(
    config: Experiment,
    run_dir: Path | str | None = None,
    progress: bool = False,
    ray: RayOptions | None = None,
) -> Run:
    """Run an experiment to its end in a new directory, by default `runs/<recipe>-<memory>-s<seed>-<time>`.

    In this process, or with `ray` on a cluster.

    Raises ValueError, before anything is written, if the config cannot work or the directory holds a run;
    Interrupted after Ctrl-C, a checkpoint written.
    """
    config.check(ray)
    run = Run.create(config, run_dir)
    config.run(run.path, progress, ray)
    return run


def resume(run_dir: Path | str, progress: bool = False, ray: RayOptions | None = None) -> Run:
    """Go on with a run from its newest checkpoint to its end; on the CPU as if it had never stopped.

    On whichever engine it was begun. Does nothing if it is finished. Raises ValueError if there is no run.
    """
    run = Run.load(run_dir)
    run.config.check(ray)
    run.config.run(run.path, progress, ray)
    return run
