"""What every kind of training shares: its record, its checkpoints, and how it goes on to the same end."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from scrubjay.experiments.kinds.base import Experiment
from scrubjay.experiments.runs.checkpoint import (
    CheckpointError,
    checkpoint_step,
    latest_checkpoint,
    load_training,
    load_weights,
    read_weights,
    save_checkpoint,
)
from scrubjay.experiments.runs.directory import CHECKPOINTS, INITIAL, METRICS, lock
from scrubjay.experiments.runs.metrics import MetricsLog
from scrubjay.experiments.runs.seeding import derive_seed

Model = TypeVar("Model", bound=nn.Module)


class Engine(ABC):
    """One run being trained in this process: a context manager that holds its lock and its files.

    A subclass builds its parts in `_build`, the model by way of `_begun`, and says what one update is, what
    the parts must remember, and what the result is. Seeds the global generators of torch, numpy and random.
    With `trust` what a checkpoint has pickled is read, by which its code runs. Raises CheckpointError if a
    checkpoint does not fit the run.
    """

    model: nn.Module
    """Whose weights are the checkpoint's; set in `_build`."""

    def __init__(self, config: Experiment, run_dir: Path, trust: bool = False) -> None:
        self.config: Any = config
        self.trust = trust
        self.folder = run_dir / CHECKPOINTS
        self.step = 0
        self.seconds = 0.0
        self._lock = lock(run_dir)
        latest = latest_checkpoint(self.folder)
        saved = None if latest is None else (load_training(latest, trust), load_weights(latest))
        others = latest is None and config.init_from is not None
        self._initial = read_weights(run_dir / INITIAL) if others else None
        _seed_everything(derive_seed(config.seed, "weights"))
        self._build()
        offset = 0 if latest is None or saved is None else self._restore(latest, *saved)
        self._metrics = MetricsLog(run_dir / METRICS, offset, self.step)
        self._saved_at = time.monotonic()
        self._saved_step = self.step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._metrics.close()
            self._close()
        finally:
            self._lock.close()

    def _begun(self, model: Model) -> Model:
        """Return a new model with the weights that the run begins with, where they are another run's."""
        if self._initial is not None:
            try:
                model.load_state_dict(self._initial)
            except RuntimeError as error:
                raise CheckpointError(
                    f"the weights in {INITIAL} are not of the model in config.json"
                ) from error
        return model

    def _restore(self, checkpoint: Path, training: dict[str, Any], weights: dict[str, Tensor]) -> int:
        """Go on from a checkpoint, which holds these; return how many bytes its record of metrics has."""
        self.step = checkpoint_step(checkpoint)
        try:
            self.model.load_state_dict(weights)
            self._set_parts(training)
            self.seconds = float(training["seconds"])
            _restore_random_states(training["random"])
            return int(training["metrics_bytes"])
        except (AttributeError, LookupError, TypeError) as error:  # whose words are of Python, not of a file
            raise CheckpointError(f"{checkpoint} does not fit this run: it is not of its form") from error
        except (ArithmeticError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{checkpoint} does not fit this run: {reason}") from error

    @abstractmethod
    def _build(self) -> None:
        """Make all parts, the model among them, as they are at step 0."""

    @abstractmethod
    def _learn(self) -> tuple[int, dict[str, float]]:
        """Make one update; return its environment steps and what was measured."""

    @abstractmethod
    def _get_parts(self) -> dict[str, Any]:
        """Return what the parts remember, the model's weights aside: tensors, arrays and plain values."""

    @abstractmethod
    def _set_parts(self, training: dict[str, Any]) -> None:
        """Go on from what `_get_parts` returned."""

    @abstractmethod
    def _evaluate(self) -> dict[str, Any]:
        """Return the result of the trained model."""

    @abstractmethod
    def _close(self) -> None:
        """Close what `_build` opened."""

    def update(self) -> dict[str, float]:
        """Make one update and record it; checkpoint if it is time. Returns the row."""
        began = time.perf_counter()
        steps, row = self._learn()
        self.step += steps
        spent = time.perf_counter() - began
        self.seconds += spent
        row = {**row, "charts/SPS": steps / spent, "time/seconds": self.seconds}
        self._metrics.write(self.step, row)
        if time.monotonic() - self._saved_at >= self.config.checkpoint_seconds:
            self.save()
        return row

    def save(self) -> None:
        """Write a checkpoint of everything that the future of the run depends on.

        On the way there is none of weights that are no numbers: nothing can go on from it, but from the one
        before.
        """
        if self.step == self._saved_step or (self.step < self.config.planned_steps and _lost(self.model)):
            return
        training = {
            **self._get_parts(),
            "seconds": self.seconds,
            "metrics_bytes": self._metrics.sync(),
            "random": _random_states(),
        }
        save_checkpoint(self.folder, self.step, self.model.state_dict(), training)
        self._saved_at = time.monotonic()
        self._saved_step = self.step

    def result(self) -> dict[str, Any]:
        """Evaluate; return what goes into result.json."""
        return {"step": self.step, "seconds": self.seconds, **self._evaluate()}


def _lost(model: nn.Module) -> bool:
    return not all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (environments may use the global generator)
    random.seed(seed)


def _random_states() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, index)
    np.random.set_state(states["numpy"])  # noqa: NPY002
    random.setstate(states["python"])
