"""Loading and training of runs, shared by several commands."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scrubjay.agents.rl.observations import EnvFaultError
from scrubjay.envs.teams import TeamError
from scrubjay.experiments import resources
from scrubjay.experiments.cli.failures import FailedError, UsageError, bad_input, describe, is_out_of_memory
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.files import CURVE
from scrubjay.experiments.progress import GracefulInterrupt
from scrubjay.experiments.runs.checkpoint import LATEST, CheckpointError
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig, TrainConfig
from scrubjay.experiments.runs.retention import describe_scores
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.training import TrainingStartError, run_training


@contextlib.contextmanager
def untrusted_limits(trust: bool, work: float | None = 1.0) -> Iterator[None]:
    """Limit the memory and the CPU time of an untrusted run in the `with` block.

    The limit on memory is half of the free memory, but at least `MEMORY_LIMIT`. The limit on time is `work`
    times `CPU_SECONDS`; None means no limit on time. If `trust` is True, there is no limit. Raises UsageError
    if the run exceeds a limit.
    """
    if trust:
        yield
        return
    max_bytes = max(resources.MEMORY_LIMIT, resources.available_bytes() // 2)
    seconds = math.inf if work is None else work * resources.CPU_SECONDS
    try:
        with resources.limit_memory(max_bytes), resources.limit_cpu(seconds):
            yield
    except resources.CPULimitError as error:
        raise UsageError(f"{error}; add --trust to lift the limit for a run that you trust") from error
    except Exception as error:
        if not is_out_of_memory(error.__cause__ or error):
            raise
        raise UsageError(
            f"{describe(error)}; add --trust to lift the memory limit for a run that you trust"
        ) from error


def load_agent(path: Path, trust: bool = False, checkpoint: str = LATEST) -> tuple[Run, TrainConfig]:
    """Load a single-agent run. Raises UsageError for a run of another type."""
    with bad_input():
        run = Run.load(path, trust, checkpoint)
    return run, config_of_agent(run)


def config_of_agent(run: Run) -> TrainConfig:
    """Return the config of a single-agent run. Raises UsageError for a run of another type."""
    if isinstance(run.config, TrainConfig):
        return run.config
    missing_part = "single-agent policy" if isinstance(run.config, TeamTaskConfig) else "policy"
    raise UsageError(f"{run.path} is a run of kind {run.config.kind!r}: it has no {missing_part}")


def continue_training(run: Run, quiet: bool, ray: RayOptions | None = None, logger: str | None = None) -> int:
    """Train a run from its current step to the end and print the result; return the exit code."""
    try:
        run_training(run, not quiet, ray, logger=logger)
    except TrainingStartError as error:
        raise UsageError(describe(error)) from error
    except GracefulInterrupt as stop:
        print(f"\n{one_line(stop)}", flush=True)
        return stop.exit_code
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    except (EnvFaultError, TeamError) as error:
        config: Any = run.config
        name = str(config.env.id)
        raise FailedError(
            f"environment {name!r}: {error}; after fixing it, continue with: {run.resume_command}"
        ) from error
    except KeyboardInterrupt as error:
        if notes := getattr(error, "__notes__", ()):  # it does not come from Ctrl-C
            advice = f"after fixing it, continue with: {run.resume_command}"
            raise FailedError("; ".join([*notes, advice])) from error
        raise
    except FailedError as error:
        raise FailedError(f"{error}; after fixing it, continue with: {run.resume_command}") from error
    except Exception as error:  # for example in the environment's own code; the checkpoints are kept
        error.add_note(f"after fixing it, continue with: {run.resume_command}")
        raise
    result, curve = run.result, run.path / CURVE
    names = {"return": "episodic_return", "success": "success"}
    scores = ", ".join(f"{name} {result[key]:.3f}" for name, key in names.items() if key in result)
    curves = [f"curve: {curve}"] if curve.exists() else []
    parts = [f"done: {scores or 'not evaluated'}", *describe_scores(result), *curves, *run.loss_warnings]
    print(one_line("; ".join(parts)))
    return 0
