"""What several verbs do with a run: open one that acts, or go on with its training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scrubjay.agents.rl.observations import EnvFaultError
from scrubjay.envs.teams import TeamError
from scrubjay.experiments.kinds.reinforcement import AgentConfig
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.checkpoint import CheckpointError
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.directory import CURVE
from scrubjay.experiments.runs.room import ROOM, available, bounded
from scrubjay.experiments.runs.stopping import Interrupted
from scrubjay.experiments.training import CannotBeginError, go_on
from scrubjay.experiments.words.failures import FailedError, UsageError, describe, lacks_memory
from scrubjay.experiments.words.foreign import one_line
from scrubjay.experiments.words.terminal import bad_input


@contextlib.contextmanager
def guarded(trust: bool) -> Iterator[None]:
    """While entered, let runs that nobody vouches for take half of the memory that is free, and no more.

    Raises UsageError where they would.
    """
    if trust:
        yield
        return
    try:
        with bounded(max(ROOM, available() // 2)):
            yield
    except Exception as error:
        if not lacks_memory(error.__cause__ or error):
            raise
        raise UsageError(f"{describe(error)}; a run that you trust may take more: add --trust") from error


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
        print(f"\n{one_line(stop)}", flush=True)
        return stop.exit_code
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    except (EnvFaultError, TeamError) as error:
        config: Any = run.config
        name = str(config.env.id)
        raise FailedError(f"environment {name!r}: {error}; once it is mended: {run.again}") from error
    except Exception as error:  # of the environment's own code, say: what was learned so far is kept
        error.add_note(f"once it is mended: {run.again}")
        raise
    result = ", ".join(
        f"{name} {run.result[key]:.3f}"
        for name, key in (("return", "episodic_return"), ("success", "success"))
        if key in run.result
    )
    curve = run.path / CURVE
    told = [f"done: {result or 'not evaluated'}", *([f"curve: {curve}"] if curve.exists() else []), *run.lost]
    print(one_line("; ".join(told)))
    return 0
