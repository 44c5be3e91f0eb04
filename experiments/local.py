"""The local engine: environments, policy and learner in one process, exactly resumable on the CPU."""

from __future__ import annotations

import json
import logging
import random
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from scrubjay.agents.policy import Policy
from scrubjay.agents.ppo import PPO
from scrubjay.agents.sampler import Sampler
from scrubjay.experiments.checkpoint import checkpoint_step, load_training, load_weights, save_checkpoint
from scrubjay.experiments.config import TrainConfig
from scrubjay.experiments.device import one_thread, resolve_device
from scrubjay.experiments.evaluation import evaluate
from scrubjay.experiments.metrics import EpisodeWindow, MetricsLog
from scrubjay.experiments.progress import ProgressDisplay
from scrubjay.experiments.run import CHECKPOINTS, METRICS, RESULT, Run, lock, write_atomically
from scrubjay.experiments.seeding import derive_seed
from scrubjay.experiments.stopping import Interrupted, StopRequest

_log = logging.getLogger(__name__)


def train_locally(config: TrainConfig, run_dir: Path, progress: bool = False) -> None:
    """Train from the newest checkpoint in `run_dir`, or from the start, to the end; then evaluate and plot.

    Seeds the global generators of torch, numpy and random. Raises Interrupted after Ctrl-C or SIGTERM,
    a checkpoint written.
    """
    run = Run(run_dir, config)
    if run.finished:
        return
    with one_thread(), StopRequest() as stop, LocalEngine(config, run_dir) as engine:
        title = f"{config.recipe} {config.label} s{config.seed}"
        total = config.updates * config.steps_per_update
        with ProgressDisplay(title, total, engine.step, progress) as display:
            while engine.step < total and stop.signal_number is None:
                row = engine.update()
                display.update(engine.step, row)
        engine.save()
        _draw(run)
        if stop.signal_number is not None:
            raise Interrupted(run_dir, stop.signal_number)
        _finish(run, engine)


class LocalEngine:
    """Sampler, learner, record and checkpoints of one run; a context manager that closes its files."""

    def __init__(self, config: TrainConfig, run_dir: Path) -> None:
        self.config = config
        self.folder = run_dir / CHECKPOINTS
        self.step = 0
        self.seconds = 0.0
        self.episodes = EpisodeWindow()
        self._lock = lock(run_dir)
        latest = Run(run_dir, config).latest
        _seed_everything(derive_seed(config.seed, "weights"))
        self._envs = config.env.make_vector()
        spaces = self._envs.single_observation_space, self._envs.single_action_space
        self.policy = Policy(*spaces, config.policy).to(resolve_device(config.device))
        self.learner = PPO(self.policy, config.ppo, derive_seed(config.seed, "minibatches"))
        self.sampler = Sampler(
            self._envs, self.policy, config.segment_length, derive_seed(config.seed, "sampling")
        )
        offset = 0
        if latest is not None:
            self.step = checkpoint_step(latest)
            offset = self._restore(latest)
        self._metrics = MetricsLog(run_dir / METRICS, offset, self.step)
        self._saved_at = time.monotonic()
        self._saved_step = self.step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._envs.close()
        self._lock.close()

    def update(self) -> dict[str, float]:
        """Collect one segment, learn from it, record it; checkpoint if it is time. Returns the row."""
        before = dict(self.sampler.seconds)
        began = time.perf_counter()
        segment = self.sampler.collect()
        sampled = time.perf_counter()
        losses = self.learner.update(segment)
        ended = time.perf_counter()
        self.step += segment.num_steps
        self.seconds += ended - began
        self.episodes.extend(self.sampler.pop_episodes())
        steps = segment.num_steps
        spent = {name: self.sampler.seconds[name] - before.get(name, 0.0) for name in ("env", "policy")}
        spent["learner"] = ended - sampled
        row = {
            **self.episodes.means(),
            **losses,
            "charts/SPS": steps / (ended - began),
            **{f"time/SPS_{name}": steps / max(seconds, 1e-9) for name, seconds in spent.items()},
            "time/seconds": self.seconds,
        }
        self._metrics.write(self.step, row)
        if time.monotonic() - self._saved_at >= self.config.checkpoint_seconds:
            self.save()
        return row

    def save(self) -> None:
        """Write a checkpoint of everything that the future of the run depends on."""
        if self.step == self._saved_step:
            return
        training = {
            "learner": self.learner.get_state(),
            "sampler": self.sampler.get_state(),
            "episodes": self.episodes.get_state(),
            "seconds": self.seconds,
            "metrics_bytes": self._metrics.sync(),
            "random": _random_states(),
        }
        save_checkpoint(self.folder, self.step, self.policy.state_dict(), training)
        self._saved_at = time.monotonic()
        self._saved_step = self.step

    def _restore(self, checkpoint: Path) -> int:
        training = load_training(checkpoint)
        self.policy.load_state_dict(load_weights(checkpoint))
        self.learner.set_state(training["learner"])
        if not self.sampler.exact:
            _log.warning(
                "%s offers no get_state/set_state: resuming with fresh episodes, not exactly",
                self.config.env.id,
            )
        self.sampler.set_state(training["sampler"])
        self.episodes.set_state(training["episodes"])
        self.seconds = training["seconds"]
        _restore_random_states(training["random"])
        return training["metrics_bytes"]


def _finish(run: Run, engine: LocalEngine) -> None:
    config = engine.config
    result: dict[str, Any] = {"step": engine.step, "seconds": engine.seconds}
    if config.eval_episodes:
        seed = derive_seed(config.seed, "evaluation")
        try:
            result |= evaluate(engine.policy, config.env, config.eval_episodes, seed).summary()
        except ValueError as error:  # the training was fine; the environment never ends
            _log.warning("not evaluated: %s", error)
    write_atomically(run.path / RESULT, json.dumps(result, indent=2) + "\n")


def _draw(run: Run) -> None:
    from scrubjay.experiments.plot import plot_runs  # matplotlib is slow to import

    if any("charts/episodic_return" in row for row in run.metrics()):
        plot_runs([run], run.path / "curve.png")


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
