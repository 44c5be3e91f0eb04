"""Engines that train a run in this process: metrics, checkpoints, and exact resumption."""

from __future__ import annotations

import logging
import math
import pickle
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from scrubjay.agents.rl.exits import EXITS
from scrubjay.agents.teams.sampler import make_sampler
from scrubjay.experiments.files import CHECKPOINTS, INITIAL, METRICS, lock
from scrubjay.experiments.resources import resolve_device
from scrubjay.experiments.runs.checkpoint import (
    CheckpointError,
    checkpoint_step,
    delete_best_after,
    latest_checkpoint,
    load_training,
    load_weights,
    read_weights,
    save_best,
    save_checkpoint,
    to_plain,
)
from scrubjay.experiments.runs.config import Experiment, derive_seed
from scrubjay.experiments.runs.evaluation import OnStep, evaluate_result, evaluate_step
from scrubjay.experiments.runs.metrics import EpisodeWindow, MetricsLog, read_metrics
from scrubjay.experiments.runs.reinforcement import RLConfig
from scrubjay.experiments.runs.retention import rank, summarize_scores

Model = TypeVar("Model", bound=nn.Module)

_log = logging.getLogger(__name__)


class Engine(ABC):
    """Base class of training engines; a context manager that holds the lock and the open files of one run.

    A subclass builds the model and everything else that training needs in `_build`. There it passes the new
    model through `_load_initial_weights`. It also defines one update, the training state for checkpoints, and
    the evaluation. The engine seeds the global random generators of torch, numpy and random. If `trust` is
    True, it also loads pickled environment states in a checkpoint, which can execute any code. Raises
    CheckpointError if a checkpoint does not match the run.
    """

    model: nn.Module
    """Model whose weights are saved in checkpoints; set in `_build`."""

    def __init__(self, config: Experiment, run_dir: Path, trust: bool = False) -> None:
        self.config: Any = config
        self.trust = trust
        self.on_evaluation_step: OnStep | None = None
        """Callback after each vector step of an evaluation. An exception in it ends the evaluation."""
        self.folder = run_dir / CHECKPOINTS
        self.step = 0
        self._row_to_evaluate: dict[str, float] | None = None  # metrics of an update before its evaluation
        self.seconds = 0.0
        self._lock = lock(run_dir)
        latest = latest_checkpoint(self.folder)
        checkpoint = None if latest is None else (load_training(latest), load_weights(latest))
        needs_initial = latest is None and config.init_from is not None
        self._initial = read_weights(run_dir / INITIAL) if needs_initial else None
        _seed_everything(derive_seed(config.seed, "weights"))
        self._build()
        offset = 0 if latest is None or checkpoint is None else self._restore(latest, *checkpoint)
        self._metrics_file = run_dir / METRICS
        self._metrics = MetricsLog(self._metrics_file, offset, self.step)
        delete_best_after(self.folder, self.step)
        self._saved_at = time.monotonic()
        self._saved_step = self.step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._metrics.close()
            self._close()
        except EXITS:  # after an environment's process has ended, closing it also fails
            if kind is None:
                raise
        finally:
            self._lock.close()

    def _load_initial_weights(self, model: Model) -> Model:
        """Load the weights of `init_from` into a new model at the start of a run, and return the model."""
        if self._initial is not None:
            try:
                model.load_state_dict(self._initial)
            except RuntimeError as error:
                raise CheckpointError(
                    f"the weights in {INITIAL} do not match the model in config.json"
                ) from error
        return model

    def _restore(self, checkpoint: Path, training: dict[str, Any], weights: dict[str, Tensor]) -> int:
        """Restore the state of a checkpoint, and return the size of metrics.jsonl in bytes.

        The size is that at the step of the checkpoint. Raises CheckpointError if the checkpoint
        does not match the run.
        """
        self.step = checkpoint_step(checkpoint)
        try:
            self.model.load_state_dict(weights)
            self._set_parts(training)
            self.seconds = float(training["seconds"])
            _restore_random_states(training["random"])
            if (row := training.get("row_to_evaluate")) is not None:
                self._row_to_evaluate = {str(name): float(value) for name, value in row.items()}
            return int(training["metrics_bytes"])
        # The messages of these errors describe Python objects, not the file.
        except (AttributeError, LookupError, TypeError) as error:
            raise CheckpointError(f"{checkpoint}: checkpoint format does not match this run") from error
        except (ArithmeticError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{checkpoint}: checkpoint does not match this run: {reason}") from error

    @abstractmethod
    def _build(self) -> None:
        """Build the model and everything else that training needs, in the state of step 0."""

    @abstractmethod
    def _learn(self) -> tuple[int, dict[str, float]]:
        """Run one update; return its environment steps and metrics."""

    @abstractmethod
    def _get_parts(self) -> dict[str, Any]:
        """Return the state of everything that `_build` has built, except the weights of the model.

        The state consists of tensors, arrays and plain values.
        """

    @abstractmethod
    def _set_parts(self, training: dict[str, Any]) -> None:
        """Restore the state that `_get_parts` returned."""

    @abstractmethod
    def _evaluate(self) -> dict[str, Any]:
        """Evaluate the trained model and return its scores for result.json."""

    def _close(self) -> None:  # noqa: B027  (an engine without resources has nothing to do)
        """Release the resources that `_build` has acquired."""

    @property
    def is_finished(self) -> bool:
        """True if the last step and its evaluation are done."""
        return self.step >= self.config.planned_steps and self._row_to_evaluate is None

    def update(self) -> dict[str, float]:
        """Run one update, record it, and save a checkpoint if one is due. Returns the row of metrics.

        If an evaluation is due after the update, a checkpoint is saved before the evaluation. If the
        evaluation is then interrupted, the next call repeats only the evaluation.
        """
        row = self._row_to_evaluate
        if row is None:
            previous_step, row = self.step, self._train()
            if self._is_evaluation_due(previous_step):
                self._row_to_evaluate = row
                self.save()
        if self._row_to_evaluate is not None:
            row |= self._evaluate_training()
            self._row_to_evaluate = None
        self._metrics.write(self.step, row)
        if time.monotonic() - self._saved_at >= self.config.checkpoint_seconds:
            self.save()
        return row

    def _train(self) -> dict[str, float]:
        began = time.perf_counter()
        steps, row = self._learn()
        self.step += steps
        seconds = time.perf_counter() - began
        self.seconds += seconds
        return {**row, "charts/SPS": steps / seconds, "time/seconds": self.seconds}

    def _is_evaluation_due(self, previous_step: int) -> bool:
        """Return True if an evaluation is due after the update that began at `previous_step`."""
        return False

    def _evaluate_training(self) -> dict[str, float]:
        """Evaluate the model during training; return the additional metrics of the update."""
        return {}

    def save(self) -> None:
        """Write a checkpoint of the complete training state.

        If weights are not finite before the end of the run, nothing is written. The run can then still resume
        from the previous checkpoint.
        """
        if self.step == self._saved_step or (self.step < self.config.planned_steps and not self._is_finite):
            return
        training = {
            **self._get_parts(),
            "seconds": self.seconds,
            "metrics_bytes": self._metrics.sync(),
            "random": _random_states(),
        }
        if self._row_to_evaluate is not None:
            training["row_to_evaluate"] = self._row_to_evaluate
        save_checkpoint(self.folder, self.step, self.model.state_dict(), training)
        self._saved_at = time.monotonic()
        self._saved_step = self.step

    @property
    def _is_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())

    def result(self) -> dict[str, Any]:
        """Evaluate the model; return the content of result.json."""
        return {"step": self.step, "seconds": self.seconds, **self._evaluate()}


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


class PolicyEngine(Engine):
    """Base class of engines of an `RLConfig`: evaluations of the policy, during training and at the end."""

    def _is_evaluation_due(self, previous_step: int) -> bool:
        every = self.config.eval_every
        return every > 0 and self.step // every > previous_step // every

    @cached_property
    def _best_score(self) -> tuple[bool, float]:
        """Best score of the earlier evaluations, also of those before a damage of the best checkpoint."""
        scores = [rank(row) for row in read_metrics(self._metrics_file)]
        return max((score for score in scores if score is not None), default=(False, -math.inf))

    def _evaluate_training(self) -> dict[str, float]:
        """Evaluate the policy, and keep its weights if no earlier evaluation had a better score.

        The latest of equal scores counts as the best, since its policy has trained for longer. Global random
        generators keep their states, so that an evaluation does not change the training after it.
        """
        began, states = time.perf_counter(), _random_states()
        try:
            row = evaluate_step(self.model, self.config, self.step, self.on_evaluation_step)
        finally:
            _restore_random_states(states)
        score = rank(row)
        if score is not None and self._is_finite and score >= self._best_score:
            save_best(self.folder, self.step, self.model.state_dict())
            self._best_score = score
        return {**row, "time/evaluation": time.perf_counter() - began}

    def _evaluate(self) -> dict[str, Any]:
        result = evaluate_result(self.model, self.config, self.on_evaluation_step)
        find_solved_score = self.config.find_solved_score
        return {**result, **summarize_scores(read_metrics(self._metrics_file), result, find_solved_score)}


class LocalEngine(PolicyEngine):
    """Engine of an `RLConfig`, for one agent or a team.

    On the CPU a resumed run has exactly the results of an uninterrupted run.
    """

    def _build(self) -> None:
        config: RLConfig = self.config
        self.episodes = EpisodeWindow()
        self._envs = config.env.make_batch()
        self.model = self._load_initial_weights(config.make_policy(self._envs)).to(
            resolve_device(config.device)
        )
        self.learner = config.planned_learner.build(self.model, derive_seed(config.seed, "minibatches"))
        self.sampler = make_sampler(
            self._envs,
            self.model,
            config.segment_length,
            derive_seed(config.seed, "sampling"),
            config.learner.sampled_burn_in,
        )

    def _learn(self) -> tuple[int, dict[str, float]]:
        before = dict(self.sampler.seconds)
        segment = self.sampler.collect()
        sampling_end = time.perf_counter()
        losses = self.learner.update(segment)
        seconds = {name: self.sampler.seconds[name] - before[name] for name in ("env", "policy")}
        seconds["learner"] = time.perf_counter() - sampling_end
        self.episodes.extend(self.sampler.pop_episodes())
        rates = {f"time/SPS_{name}": segment.num_steps / max(s, 1e-9) for name, s in seconds.items()}
        return segment.num_steps, {**self.episodes.means(), **losses, **rates}

    def _get_parts(self) -> dict[str, Any]:
        return {
            "learner": self.learner.get_state(),
            "samplers": pack_env_states([{"first_row": 0, "sampler": self.sampler.get_state()}]),
            "episodes": self.episodes.get_state(),
        }

    def _set_parts(self, training: dict[str, Any]) -> None:
        self.learner.set_state(training["learner"])
        if not self.sampler.restores_env:
            _log.warning(
                "%s has no get_state/set_state%s: resuming with new episodes, not exactly",
                self.config.env.id,
                ", or a wrapper is not stateless" if self.config.env.wrappers else "",
            )
        samplers = unpack_env_states(training["samplers"], self.config.env.id, self.trust)
        # A checkpoint written while an env runner was lost lacks some environments.
        if [len(entry["sampler"]["lengths"]) for entry in samplers] == [self.config.env.num_envs]:
            self.sampler.set_state(samplers[0]["sampler"])
        else:
            _log.warning(
                "sampled by %d processes before and by 1 now: all environments start new episodes",
                len(samplers),
            )
            self.sampler.restart(derive_seed(self.config.seed, "sampling", self.step))
        self.episodes.set_state(training["episodes"])

    def _close(self) -> None:
        self._envs.close()


_PICKLED = "pickled env"


def pack_env_states(samplers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the states `samplers` in a form that a checkpoint can store.

    Each sampler state contains an environment state, which is pickled if it is not plain data.
    """
    return [{**entry, "sampler": _pack(entry["sampler"])} for entry in samplers]


def unpack_env_states(samplers: Sequence[dict[str, Any]], name: str, trust: bool) -> list[dict[str, Any]]:
    """Return the sampler states that `pack_env_states` packed.

    Without `trust` nothing is unpickled. Environments with pickled states then start new episodes, and a
    warning names the environment `name`.
    """
    entries = [{**entry, "sampler": dict(entry["sampler"])} for entry in samplers]
    is_exact = True
    for entry in entries:
        payload = entry["sampler"].pop(_PICKLED, None)
        if payload is not None:
            state = pickle.loads(payload.tobytes()) if trust and payload.size else None
            entry["sampler"]["env"] = state
            is_exact = is_exact and state is not None
    if not is_exact:
        _log.warning(
            "the state of %s is not plain data and is read only with --trust: resuming with new episodes, "
            "not exactly",
            name,
        )
    return entries


def _pack(state: dict[str, Any]) -> dict[str, Any]:
    try:
        to_plain(state["env"])
        return state
    except (TypeError, RecursionError):
        pass
    try:
        content = pickle.dumps(state["env"])
    except Exception:  # noqa: BLE001  (an environment may hold objects that cannot be pickled: windows, threads)
        content = b""
    return {**state, "env": None, _PICKLED: np.frombuffer(content, np.uint8)}
