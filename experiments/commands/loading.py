"""What several verbs do with a run: open one that acts, or go on with its training."""

from __future__ import annotations

from pathlib import Path

from scrubjay.experiments.kinds.reinforcement import AgentConfig
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.checkpoint import CheckpointError
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.stopping import Interrupted
from scrubjay.experiments.training import CannotBeginError, go_on
from scrubjay.experiments.words.failures import UsageError, describe
from scrubjay.experiments.words.terminal import bad_input


def load_agent(path: Path, trust: bool = False) -> tuple[Run, AgentConfig]:
    """Open the run of one agent. Raises UsageError if it is none."""
    with bad_input():
        run = Run.load(path, trust)
    return run, config_of_agent(run)


def config_of_agent(run: Run) -> AgentConfig:
    """Return the config of one agent's run. Raises UsageError if it is none."""
    with bad_input():
        if not isinstance(run.config, AgentConfig):
            lacks = "of one agent" if isinstance(run.config, TeamTaskConfig) else "to act"
            raise TypeError(f"{run.path} is a run of kind {run.config.kind!r}: it has no policy {lacks}")
        return run.config


def train_on(run: Run, quiet: bool, ray: RayOptions | None = None, logger: str | None = None) -> int:
    """Train to the end from where the run stands, and say what came of it; return the exit code."""
    try:
        go_on(run, not quiet, ray, logger=logger)
    except CannotBeginError as error:
        raise UsageError(describe(error)) from error
    except Interrupted as stop:
        print(f"\n{stop}", flush=True)
        return stop.exit_code
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    result = ", ".join(
        f"{name} {run.result[key]:.3f}"
        for name, key in (("return", "episodic_return"), ("success", "success"))
        if key in run.result
    )
    print(f"done: {result or 'not evaluated'}; curve: {run.path / 'curve.png'}")
    return 0
