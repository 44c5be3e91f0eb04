"""A run directory: what was asked, what happened, and the policy that came of it."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments.evaluation.policy import MAX_COPIES
from scrubjay.experiments.kinds import Source, from_json, to_json, weights_of
from scrubjay.experiments.kinds.base import Experiment
from scrubjay.experiments.runs import progress
from scrubjay.experiments.runs.checkpoint import (
    checkpoint_step,
    latest_checkpoint,
    load_weights,
    write_weights,
)
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.directory import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    INITIAL,
    METRICS,
    RESULT,
    check_files,
    check_name,
    lock,
    write_atomically,
)
from scrubjay.experiments.runs.reading import (
    MOST_BYTES,
    Fields,
    read_kept,
    read_lines,
    read_object,
    with_numbers,
)
from scrubjay.experiments.runs.room import ROOM, check_room
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.facts import Facts
from scrubjay.experiments.tasks.names import FoundName
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.experiments.words.arguments import OWN
from scrubjay.memory import MemoryConfig
from scrubjay.memory.named import UnknownNameError
from scrubjay.memory.sketch import MisfitError, fitted, sketch, state_nbytes


class Run:
    """One experiment's directory.

    config.json, environment.json (its spaces, where something acts), metrics.jsonl (one row per update),
    TensorBoard events, checkpoints/, and when finished result.json and curve.png; initial.safetensors where
    it began with another run's weights.

    Example:
        run = Run.load("runs/tmaze-gru-s0-20260101-120000")
        action, state = run.policy.act(observation, state, start)
    """

    def __init__(self, path: Path, config: Experiment, trust: bool = False, found: bool = False) -> None:
        self.path = path
        self.config = config
        self.trust = trust
        self.found = found
        """Whether nobody vouches for the config, which was read from the directory: its sizes have bounds."""
        self.source = f"in {CONFIG}"
        """Where the config is, in words."""
        self.as_written: Experiment | None = None
        """What config.json says, where `extended` has made another of it that is not written yet."""

    @classmethod
    def create(cls, config: Experiment, path: Path | str | None = None) -> Run:
        """Make a new directory, with a copy of the weights that `config.init_from` names.

        Raises ValueError if it already holds a run, or is about to, or if those weights do not fit.
        """
        if path is not None and not str(path):
            raise ValueError(
                "the run directory's name is empty; name a folder, or leave it away for one in runs"
            )
        check_name(Path(path or ""))
        config, weights = with_weights(config)
        path = _made(config) if path is None else Path(path)
        path.mkdir(parents=True, exist_ok=True)
        check_files(path)
        with lock(path):  # of two that begin at once, the second finds the first one's config
            if (path / CONFIG).exists():
                raise ValueError(f"{path} already holds a run; choose another directory, or: {_resume(path)}")
            # What is there would be gone on from, or written over, though nobody knows whose it is.
            for name in (CHECKPOINTS, METRICS, RESULT):
                if (path / name).exists():
                    raise ValueError(
                        f"{path} holds {name} of a run without its {CONFIG}; choose another directory"
                    )
            for name in (ENVIRONMENT, INITIAL):  # of a beginning that was killed, perhaps
                (path / name).unlink(missing_ok=True)
            if config.acts is not None:
                _store_facts(config, path / ENVIRONMENT)
            if weights is not None:
                write_weights(path / INITIAL, weights)
            write_atomically(path / CONFIG, to_json(config))
        return cls(path, config)

    @classmethod
    def load(cls, path: Path | str, trust: bool = False) -> Run:
        """Open a directory, a stranger's too; raises ValueError if it holds no run, or links.

        With `trust`, code that it names or has pickled may run: environments that are neither ours nor named
        by you in this process, training states of older versions and of environments that are no plain data.
        """
        path = Path(path)
        if not trust and os.path.lexists(path / CONFIG):
            check_files(path)
        try:
            text = read_kept(path / CONFIG)
        except OSError:
            raise ValueError(f"no run at {path}{_runs_nearby(path)}") from None
        try:
            return cls(path, from_json(text, trust), trust, found=not trust)
        except (ValueError, TypeError) as error:
            own = OWN if isinstance(error, UnknownNameError) else ""
            raise ValueError(f"{path / CONFIG}: {error}{own}") from error

    def of_environment(self, name: str) -> Run:
        """Return the same run, of whose environment the user has given the name, so that it may be made.

        Raises ValueError if the run's has another.
        """
        config: Any = self.config
        if config.acts is None or config.env.id != name:
            raise ValueError(f"{self.path} is not of the environment {name!r}")
        env = dataclasses.replace(config.env, id=name)
        return Run(self.path, dataclasses.replace(config, env=env), self.trust, self.found)

    def remembering(self, memory: MemoryConfig) -> Run:
        """Return the same run, whose weights are to be used by a memory with other settings."""
        run = Run(self.path, self.config.with_memory(memory), self.trust, self.found)
        run.source = "with these settings of its memory"
        return run

    def check(self, ray: RayOptions | None = None) -> None:
        """Raise ValueError or TypeError, in one clear line, if this cannot run here, or on Ray if told so.

        Of a run that was found, also if it would take more memory than such a one may.
        """
        if self.found:
            check_room(self.config.rough_bytes())
        self.config.check(ray)

    def extended(self, total_steps: int) -> Run:
        """Return the same run with another total of steps, which its directory learns when training goes on.

        Raises ValueError if it has that many already, or if its result has outlived its checkpoints.
        """
        if total_steps == self.config.total_steps and not self.finished:
            return self
        if self.finished and self.latest is None:
            raise ValueError(f"{self.path} has a result and no whole checkpoint to go on from")
        try:
            config = self.config.extended(total_steps, self.step)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        run = Run(self.path, config, self.trust, self.found)
        run.as_written = self.config
        return run

    def write_extension(self) -> None:
        """Write into the directory what `extended` has changed, and that there is no result of it yet.

        Only who holds the directory's lock may. Raises ValueError if another has extended it meanwhile.
        """
        if self.as_written is None:
            return
        if Run.load(self.path, self.trust).config != self.as_written:
            raise ValueError(f"{self.path} has been extended by another process meanwhile")
        # The result goes first: a kill here leaves the run as it was, to be evaluated once more.
        (self.path / RESULT).unlink(missing_ok=True)
        write_atomically(self.path / CONFIG, to_json(self.config))
        self.as_written = None

    @property
    def again(self) -> str:
        """The command that goes on with it, naming a user's own environment, unless only a file did."""
        config: Any = self.config
        name = "" if config.acts is None else config.env.id
        own = ":" in name and not name.startswith("scrubjay.envs:") and not isinstance(name, FoundName)
        return _resume(self.path, *(["--env", name] if own else []))

    @property
    def finished(self) -> bool:
        """Whether the run reached its last step and was evaluated."""
        return self.as_written is None and (self.path / RESULT).exists()

    @property
    def result(self) -> dict[str, Any]:
        """Evaluation of the trained policy; raises ValueError while there is none."""
        if not self.finished:
            raise ValueError(f"{self.path} is not finished; go on with: {self.again}")
        result = read_object(self.path / RESULT)
        result.remedy = (
            "runs of eval_episodes=0 are told no score; if this one was, delete the file and evaluate anew "
            f"with: {self.again}"
        )
        # The tests of a supervised run are a list of such objects.
        with_numbers(Fields({k: v for k, v in result.items() if k != "tests"}, result.source))
        return result

    @property
    def latest(self) -> Path | None:
        """The newest whole checkpoint, found by looking."""
        return latest_checkpoint(self.path / CHECKPOINTS)

    @property
    def step(self) -> int:
        """Environment steps behind the newest checkpoint."""
        latest = self.latest
        return checkpoint_step(latest) if latest else 0

    def metrics(self) -> list[dict[str, float]]:
        """Return one row per update; a last line cut off by a kill is left out.

        Raises ValueError if another is damaged.
        """
        rows = [with_numbers(row) for row in read_lines(self.path / METRICS)]
        for row in rows:
            _ = row["step"]
        return [dict(row) for row in rows]

    @property
    def lost(self) -> list[str]:
        """What there is to say where its last losses are no numbers, or nothing. Raises as `metrics`."""
        return [word for row in self.metrics()[-1:] for word in progress.lost(row)]

    @cached_property
    def facts(self) -> Facts:
        """What is known of the environment, as kept when the run began; of an older run, by making one.

        Raises ValueError if the file is damaged or, of an older run, only a file names the environment;
        TypeError if nothing acts.
        """
        config: Any = self.config
        if config.acts is None:
            raise TypeError(f"{self.path} is a run of kind {config.kind!r}, in which nothing acts")
        file = self.path / ENVIRONMENT
        try:
            text = read_kept(file)
        except FileNotFoundError:
            return config.env.facts()
        try:
            return Facts.from_json(text)
        except ValueError as error:
            raise ValueError(f"{file}: {error}; without it the environment is asked") from error

    @property
    def success_without_memory(self) -> float | None:
        """The best success there is without memory; None where nobody worked it out. Raises as `facts`.

        Who is told the time may come further than who sees the environment alone.
        """
        config: Any = self.config
        if config.acts != "agent":
            return config.success_without_memory
        return None if config.policy.clock else self.facts.success_without_memory

    @cached_property
    def policy(self) -> Policy:
        """The policy at the newest checkpoint, on the CPU.

        Raises ValueError if there is none yet, or it does not fit the run; TypeError if none will be.
        """
        config = self._config_of("agent", "policy")
        weights, spaces = load_weights(self.checkpoint), self.facts.spaces
        try:
            return self._fitted(lambda: config.policy.build(spaces), weights)
        except MisfitError as error:
            raise self._misfit("policy", error) from error

    @cached_property
    def model(self) -> nn.Module:
        """What a supervised run has learned, at the newest checkpoint, on the CPU.

        Raises ValueError if there is none yet, or it does not fit the run.
        """
        weights = load_weights(self.checkpoint)
        if self.found:
            check_room(self.config.rough_bytes())
        try:
            return fitted(self.config.make_model, weights).eval()
        except MisfitError as error:
            raise self._misfit("model", error) from error

    def policy_in(self, env: EnvConfig) -> Policy:
        """Return `policy` to play in `env`; raises as it, and ValueError if that is no environment for it."""
        policy, met = self.policy, env.spaces()
        known = Spaces(policy.observation_space, policy.action_space)
        if (misfit := known.misfit(met)) is not None:
            raise ValueError(f"the policy of {self.path} is for no such environment as {env.id!r}: {misfit}")
        return policy

    @cached_property
    def team_policy(self) -> TeamPolicy:
        """The team's policy at the newest checkpoint, on the CPU; raises as `policy`."""
        return self.team_policy_in()

    def team_policy_in(self, env: TeamEnvConfig | None = None) -> TeamPolicy:
        """Return it for another environment, of more agents, say.

        Raises as `policy`, and ValueError also if it does not fit.
        """
        config = self._config_of("team", "team")
        weights = load_weights(self.checkpoint)
        spaces = self.facts.spaces if env is None else env.spaces()
        try:
            return self._fitted(lambda: config.policy.build(spaces), weights)
        except MisfitError as error:
            if env is None or env == config.env:
                raise self._misfit("team", error) from error
            raise ValueError(
                f"the policy of {self.path} does not fit {env.kwargs}: it learned in "
                f"{config.env.kwargs}; what an agent sees and can do must be alike, and only "
                f"policy.shared=True serves teams of other sizes ({error})"
            ) from error

    def _misfit(self, what: str, error: MisfitError) -> ValueError:
        return ValueError(f"the weights in {self.latest} are not of the {what} {self.source}: {error}")

    def _fitted(self, build: Callable[[], Any], weights: dict[str, Tensor]) -> Any:
        """Return a policy with these weights; of a found run only if there is room for its memory, too."""
        policy = fitted(build, weights)
        if self.found:
            rows = MAX_COPIES
            taken = state_nbytes(sketch(build, ROOM), rows)
            check_room({f"the memory of {rows} environments by {CONFIG}": taken})
        return policy.eval()

    def _config_of(self, whose: str, lacking: str) -> Any:
        if self.config.acts != whose:
            raise TypeError(f"{self.path} is a run of kind {self.config.kind!r}, which has no {lacking}")
        return self.config

    @property
    def checkpoint(self) -> Path:
        """The newest whole checkpoint; raises ValueError if there is none."""
        latest = self.latest
        if latest is None:
            raise ValueError(f"{self.path} has no checkpoint yet; go on with: {self.again}")
        return latest


def _resume(path: Path, *flags: str) -> str:
    return shlex.join(["scrubjay", "resume", str(path), *flags])


def with_weights(config: Experiment) -> tuple[Experiment, dict[str, Tensor] | None]:
    """Return the weights that a config names to begin with, None if it names none, and their step in it.

    Raises ValueError if there are none, or if they do not fit, naming what differs.
    """
    if config.init_from is None:
        return config, None
    run = Run.load(config.init_from)
    # Of a run of before there was such a file the weights alone tell: its environment is not made.
    known = run.config.acts is not None and (run.path / ENVIRONMENT).exists()
    spaces = run.facts.spaces if known else None
    weights, step = weights_of(Source(run.path, run.config, run.checkpoint, spaces), config)
    any_config: Any = config
    return dataclasses.replace(any_config, init_step=step), weights


def _made(config: Experiment) -> Path:
    """Make the directory of a run that was given none, and that no other process has made."""
    while True:
        path = default_path(config)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path


def default_path(config: Experiment) -> Path:
    """Return `runs/<recipe>-<memory>-s<seed>-<time>`, made different from every existing one."""
    name = f"{config.recipe}-{config.label}-s{config.seed}-{datetime.now():%Y%m%d-%H%M%S}".replace("/", "-")
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def _store_facts(config: Any, path: Path) -> None:
    """Keep what is known of the environment, if it can be made and known again."""
    try:
        facts = config.env.facts()
        text = facts.to_json()
        kept = Facts.from_json(text)
    except Exception:  # noqa: BLE001  (whoever makes the environment in earnest is told why it cannot be)
        return
    if kept == facts and len(text) <= MOST_BYTES:
        write_atomically(path, text)


def _runs_nearby(path: Path) -> str:
    """Return which runs there are below a folder that is none, or else beside it; nothing without any."""
    for folder in (path, path.parent):
        names = sorted(child.parent.name for child in folder.glob(f"*/{CONFIG}"))
        if names:
            return f"; runs in {folder}: {', '.join(names)}"
    return ""
