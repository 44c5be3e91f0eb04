"""Run directory of an experiment: its config, metrics, checkpoints, result and trained policy."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.choice import UntrustedName
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.experiments import progress
from scrubjay.experiments.cli.arguments import OWN_MODULE_HINT
from scrubjay.experiments.files import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    INITIAL,
    METRICS,
    RESULT,
    Fields,
    check_files,
    check_numbers,
    create_run_files,
    read_object,
    read_untrusted,
)
from scrubjay.experiments.resources import MEMORY_LIMIT, check_memory_limit
from scrubjay.experiments.runs import ownership
from scrubjay.experiments.runs.checkpoint import (
    BEST,
    LATEST,
    TRAINING,
    WEIGHTS,
    check_sizes,
    checkpoint_step,
    find_checkpoint,
    load_weights,
)
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.config import Experiment, make_directory
from scrubjay.experiments.runs.evaluation import MAX_ENVS
from scrubjay.experiments.runs.initial_weights import load_initial_weights
from scrubjay.experiments.runs.kinds import from_json, to_json
from scrubjay.experiments.runs.metrics import read_metrics
from scrubjay.experiments.runs.status import Status, list_nearby_runs, read_status
from scrubjay.experiments.tasks.environments import EnvConfig, EnvFacts, encode_facts, with_names
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import MemoryConfig
from scrubjay.memory.config_registry import UnknownNameError
from scrubjay.memory.sketch import MisfitError, build_matching, nbytes, sketch, state_nbytes

_HEADER_BYTES = 2**20
"""Maximum size of the names and shapes in a weights file."""


class Run:
    """Directory of one experiment.

    It contains config.json, environment.json (the spaces, in reinforcement learning only), metrics.jsonl (one
    row per update), TensorBoard events and checkpoints/. A finished run adds result.json and curve.png. A run
    that failed, or that early stopping ended, has a result.json that says so. A run that was initialized with
    the weights of another run has initial.safetensors.

    Args:
        path: The directory.
        config: Config of the experiment.
        trust: Allow the run to execute any code, as for `load`.
        untrusted: The config was read from an untrusted directory.
        checkpoint: Name of the checkpoint to use: latest, best, or for example step_1000.

    Example::

        run = Run.load("runs/tmaze-gru-s0-20260101-120000")
        action, state = run.policy.act(observation, state, start)
    """

    def __init__(
        self,
        path: Path,
        config: Experiment,
        trust: bool = False,
        untrusted: bool = False,
        checkpoint: str = LATEST,
    ) -> None:
        self.path = path
        self.config = config
        self.trust = trust
        self.checkpoint_name = checkpoint
        """Name of the checkpoint that the run uses: "latest", "best", or for example "step_1000"."""
        self.untrusted = untrusted
        """True if the config was read from an untrusted directory; its sizes are then limited."""
        self.source = f"in {CONFIG}"
        """Origin of the config, for error messages."""
        self.stored_config: Experiment | None = None
        """Config in config.json if `with_total_steps` made another one that is not written yet; else None."""

    @classmethod
    def create(cls, config: Experiment, path: Path | str | None = None, facts: EnvFacts | None = None) -> Run:
        """Create a run directory, with a copy of the weights that `config.init_from` names.

        Args:
            config: Config of the experiment.
            path: Directory to create; by default a new folder in `runs`.
            facts: Result of `config.check`. Without it the environment is created to find the facts.

        Raises:
            ValueError: If the directory already holds a run, or if the weights do not match the config.
        """
        if path is not None and not str(path):
            raise ValueError(
                "the name of the run directory is empty; pass a folder, or omit it to create one in runs"
            )
        config, weights = resolve_initial_weights(config)
        path = make_directory(config) if path is None else Path(path)
        contents: dict[str, str | bytes | None] = {
            INITIAL: None if weights is None else save(weights),
            ENVIRONMENT: None if config.policy_type is None else encode_facts(config, facts),
            CONFIG: to_json(config),
        }
        create_run_files(path, contents, _format_resume_command(path))
        ownership.record(path, str(contents[CONFIG]), config)
        run = cls(path, config)
        if facts is not None:
            run.facts = facts
        return run

    @classmethod
    def load(cls, path: Path | str, trust: bool = False, checkpoint: str = LATEST) -> Run:
        """Open a run directory, which may be untrusted.

        The run may create environments of Scrubjay and those that the user named in this process. It may also
        create its own environment if this user started it here: if its path, its config.json and the files of
        the environment's module are the same as in training.

        Args:
            path: The directory.
            trust: Allow the run to execute any code. It may create any environment, and load the pickled
                states of environments whose states are not plain data.
            checkpoint: Weights to use: "latest", "best" (by the evaluations of `eval_every`), or one of the
                last steps, for example "step_1000".

        Raises:
            ValueError: If the directory holds no run, or if it holds links and `trust` is False.
        """
        path = Path(path)
        if not trust and os.path.lexists(path / CONFIG):
            check_files(path)
        try:
            text = read_untrusted(path / CONFIG)
        except OSError:
            raise ValueError(f"no run at {path}{list_nearby_runs(path)}") from None
        try:
            config = from_json(text, trust)
            return cls(path, ownership.trust_own(path, text, config), trust, not trust, checkpoint)
        except (ValueError, TypeError) as error:
            own = OWN_MODULE_HINT if isinstance(error, UnknownNameError) else ""
            raise ValueError(f"{path / CONFIG}: {error}{own}") from error

    def with_trusted_env(self, name: str | None, wrappers: Sequence[str] = ()) -> Run:
        """Return a copy of this run that trusts the environment `name` and `wrappers`, which the user passed.

        Raises:
            ValueError: If the run uses a different environment or different wrappers.
        """
        config: Any = self.config
        if name is not None and (config.policy_type is None or config.env.id != name):
            raise ValueError(f"{self.path} does not use the environment {name!r}; omit --env, or correct it")
        own_wrappers = () if config.policy_type is None else config.env.wrappers
        for wrapper in wrappers:
            if wrapper not in own_wrappers:
                raise ValueError(
                    f"{self.path} does not use the wrapper {wrapper!r}; omit --wrap, or correct it"
                )
        if name is None and not wrappers:
            return self
        trusted_wrappers = [str(text) if text in wrappers else text for text in own_wrappers]
        env = with_names(config.env, name or config.env.id, *trusted_wrappers)
        return self._with_config(dataclasses.replace(config, env=env))

    def with_memory(self, memory: MemoryConfig) -> Run:
        """Return a copy of this run with other memory settings, but with the same weights."""
        run = self._with_config(self.config.with_memory(memory))
        run.source = "with these memory settings"
        return run

    def _with_config(self, config: Experiment) -> Run:
        return Run(self.path, config, self.trust, self.untrusted, self.checkpoint_name)

    def check(self, ray: RayOptions | None = None) -> None:
        """Raise ValueError or TypeError if the experiment cannot run on this machine.

        If `ray` is not None, check that it can run on Ray instead. An untrusted run must also stay within the
        memory limit.
        """
        if self.untrusted:
            self.config.check_limits()
            check_sizes(self.path, self._size_limits)
        self.config.check(ray)

    def with_total_steps(self, total_steps: int) -> Run:
        """Return a copy of this run with another total of steps. Training writes the total to config.json.

        Raises:
            ValueError: If the run has already completed `total_steps` steps, or if it has a result but no
                checkpoint.
        """
        if total_steps == self.config.total_steps and not self.is_finished:
            return self
        if self.is_finished and self.latest is None:
            raise ValueError(f"{self.path} has a result but no complete checkpoint to resume from")
        try:
            config = self.config.with_total_steps(total_steps, _step_of(self.latest))
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        run = self._with_config(config)
        run.stored_config = self.config
        return run

    def check_current(self) -> None:
        """Raise ValueError if another process has extended the run since it was loaded.

        The caller must hold the lock of the directory.
        """
        if Run.load(self.path, self.trust).config != (self.stored_config or self.config):
            raise ValueError(
                f"{self.path} was extended by another process since it was loaded; load it again"
            )

    def write_extension(self) -> None:
        """Write the new total of steps to config.json and delete the old result.

        The caller must hold the lock of the directory.

        Raises:
            ValueError: If another process has extended the run since it was loaded.
        """
        if self.stored_config is None:
            return
        self.check_current()
        # Delete the result first: after a kill here the run has its old config and is evaluated again.
        (self.path / RESULT).unlink(missing_ok=True)
        ownership.replace_config(self.path, self.path / CONFIG, to_json(self.config))
        self.stored_config = None

    @property
    def resume_command(self) -> str:
        """Command that resumes the run.

        The command names a custom environment with --env and custom wrappers with --wrap, unless the name
        comes from an untrusted file.
        """
        config: Any = self.config
        names = () if config.policy_type is None else (config.env.id, *config.env.wrappers)
        flags = [
            [flag, name]
            for flag, name in zip(["--env", *["--wrap"] * len(names)], names, strict=False)
            if ":" in name.partition("(")[0]
            and not name.startswith("scrubjay.envs:")
            and not isinstance(name, UntrustedName)
        ]
        return _format_resume_command(self.path, *itertools.chain.from_iterable(flags))

    @property
    def status(self) -> Status:
        """Status of the run: "finished", "stopped early", "failed" or "unfinished"."""
        return "unfinished" if self.stored_config is not None else read_status(self.path)

    @property
    def is_finished(self) -> bool:
        """True if the run reached its last step and was evaluated."""
        return self.status == "finished"

    @property
    def result(self) -> dict[str, Any]:
        """Evaluation of the trained policy. Raises ValueError if the run is not finished."""
        if not self.is_finished:
            reason = "" if self.status == "unfinished" else f" ({self.status})"
            raise ValueError(f"{self.path} is not finished{reason}; resume with: {self.resume_command}")
        result = read_object(self.path / RESULT)
        result.remedy = (
            "runs with eval_episodes=0 have no score; if this run should have one, delete the file and "
            "evaluate "
            f"again with: {self.resume_command}"
        )
        if "status" in result:
            raise ValueError(f"{result.source} is damaged: status={result['status']!r:.40} does not exist")
        # The "tests" of a supervised run are a list of such objects.
        check_numbers(Fields({k: v for k, v in result.items() if k != "tests"}, result.source))
        return result

    @property
    def latest(self) -> Path | None:
        """Latest complete checkpoint on disk; None if there is none.

        Raises CheckpointError, a ValueError, if an untrusted run has larger files than its config implies.
        """
        return self._find_checkpoint(LATEST)

    @property
    def step(self) -> int:
        """Environment steps at the checkpoint that the run uses; 0 without a checkpoint."""
        return _step_of(self._find_checkpoint(self.checkpoint_name))

    def metrics(self) -> list[dict[str, float]]:
        """Return one row per update; an incomplete last line is skipped.

        Raises:
            ValueError: If another line is damaged.
        """
        return read_metrics(self.path / METRICS)

    @property
    def loss_warnings(self) -> list[str]:
        """Warnings about non-finite losses in the last row of metrics. Raises the errors of `metrics`."""
        return [word for row in self.metrics()[-1:] for word in progress.loss_warnings(row)]

    @cached_property
    def facts(self) -> EnvFacts:
        """Facts about the environment, as stored when the run started.

        If environment.json is missing, the environment is created instead. Raises ValueError if the file is
        damaged, or if the environment must be created but its name is untrusted. Raises
        TypeError if the experiment has no environment.
        """
        config: Any = self.config
        if config.policy_type is None:
            raise TypeError(f"{self.path} is a run of kind {config.kind!r}, which has no environment")
        file = self.path / ENVIRONMENT
        try:
            text = read_untrusted(file)
        except FileNotFoundError:
            return config.env.facts()
        try:
            return EnvFacts.from_json(text)
        except ValueError as error:
            raise ValueError(
                f"{file}: {error}; delete this file to read the spaces from the environment"
            ) from error

    @property
    def success_without_memory(self) -> float | None:
        """Best possible success rate without memory; None if it is unknown. Raises the errors of `facts`.

        Also None for a policy that observes the time, since such a policy may exceed the rate that is
        possible with the observations alone.
        """
        config: Any = self.config
        if config.policy_type != "agent":
            return config.success_without_memory
        return None if config.policy.clock else self.facts.success_without_memory

    @cached_property
    def policy(self) -> Policy:
        """Policy at the checkpoint that the run uses, on the CPU.

        Raises ValueError if there is no checkpoint yet, or its weights do not match the config; TypeError if
        the run trains no policy.
        """
        return self._load_policy("agent", "policy")

    @cached_property
    def model(self) -> nn.Module:
        """Model of a supervised run at the latest checkpoint, on the CPU.

        Raises ValueError if there is no checkpoint yet, or its weights do not match the config.
        """
        weights = load_weights(self.checkpoint)
        if self.untrusted:
            self.config.check_limits()
        try:
            return build_matching(self.config.make_model, weights).eval()
        except MisfitError as error:
            raise self._mismatch_error("model", error) from error

    def policy_for(self, env: EnvConfig) -> Policy:
        """Return `policy` for use in `env`.

        Raises the errors of `policy`, and ValueError if the spaces of `env` are not those of the policy.
        """
        policy, env_spaces = self.policy, env.spaces()
        if (misfit := policy.spaces.find_mismatch(env_spaces)) is not None:
            raise ValueError(f"the policy of {self.path} does not match the environment {env.id!r}: {misfit}")
        return policy

    @cached_property
    def team_policy(self) -> TeamPolicy:
        """Policy of the team at the latest checkpoint, on the CPU. Raises the errors of `policy`."""
        return self._load_policy("team", "team")

    def team_policy_for(self, env: TeamEnvConfig) -> TeamPolicy:
        """Return the policy of the team for `env`, which may have another number of agents.

        Raises the errors of `policy`, and ValueError if the policy does not match `env`.
        """
        return self._load_policy("team", "team", env)

    def _load_policy(self, policy_type: str, name: str, env: TeamEnvConfig | None = None) -> Any:
        """Return the latest policy for the spaces of `env`, or for those of the run if `env` is None."""
        config: Any = self.config
        if config.policy_type != policy_type:
            raise TypeError(f"{self.path} is a run of kind {config.kind!r}, which has no {name}")
        weights = load_weights(self.checkpoint)
        spaces = self.facts.spaces if env is None else env.spaces()

        def build() -> Any:
            return config.build_policy(spaces)

        try:
            policy = build_matching(build, weights)
        except MisfitError as error:
            if env is None or env == config.env:
                raise self._mismatch_error(name, error) from error
            raise ValueError(
                f"the policy of {self.path} does not match the environment settings {env.kwargs}: it was "
                f"trained with {config.env.kwargs}. Each agent needs the same observation and action spaces "
                "as in training. Other team sizes need policy.shared=True and policy.identity=False "
                f"({error})"
            ) from error
        if self.untrusted:
            state_bytes = state_nbytes(sketch(build, MEMORY_LIMIT), MAX_ENVS)
            check_memory_limit({f"the memory of {MAX_ENVS} environments by {CONFIG}": state_bytes})
        return policy.eval()

    def _size_limits(self) -> dict[str, int]:
        """Return the maximum sizes of the weights and training files, by the config and the spaces."""
        config: Any = self.config
        build = config.make_model
        if config.policy_type is not None:
            spaces = self.facts.spaces
            build = lambda: config.build_policy(spaces)
        weights_bytes = nbytes(sketch(build, MEMORY_LIMIT).state_dict()) + _HEADER_BYTES
        # Learners store up to three tensors per weight. Environments and memories fill the memory limit.
        training_bytes = 3 * weights_bytes + MEMORY_LIMIT
        return {INITIAL: weights_bytes, WEIGHTS: weights_bytes, TRAINING: training_bytes}

    def _mismatch_error(self, what: str, error: MisfitError) -> ValueError:
        return ValueError(f"the weights in {self.checkpoint} do not match the {what} {self.source}: {error}")

    @property
    def checkpoint(self) -> Path:
        """Complete checkpoint that the run uses. Raises ValueError if there is none."""
        path = self._find_checkpoint(self.checkpoint_name)
        if path is None:
            missing = f"checkpoint yet; to train the run, call: {self.resume_command}"
            if self.checkpoint_name == BEST:
                missing = "best checkpoint, which only evaluations keep; train with --eval-every N"
            raise ValueError(f"{self.path} has no {missing}")
        return path

    def _find_checkpoint(self, name: str) -> Path | None:
        if self.untrusted:
            check_sizes(self.path, self._size_limits)
        return find_checkpoint(self.path / CHECKPOINTS, name)


def _step_of(checkpoint: Path | None) -> int:
    return checkpoint_step(checkpoint) if checkpoint else 0


def _format_resume_command(path: Path, *flags: str) -> str:
    return shlex.join(["scrubjay", "resume", str(path), *flags])


def resolve_initial_weights(config: Experiment) -> tuple[Experiment, dict[str, Tensor] | None]:
    """Load the weights that `config.init_from` names.

    Returns a pair: the config with `init_step` set, and the weights. If `init_from` is None, the pair is the
    unchanged config and None. Raises ValueError if there are no weights, or if they do not match the config;
    the message names the difference.
    """
    if config.init_from is None:
        return config, None
    run = Run.load(config.init_from)
    # Without this file the weights alone are compared, to avoid creating the environment.
    has_spaces = run.config.policy_type is not None and (run.path / ENVIRONMENT).exists()
    spaces = run.facts.spaces if has_spaces else None
    checkpoint = run.checkpoint
    weights = load_initial_weights(config, run.config, checkpoint, spaces)
    return dataclasses.replace(config, init_step=checkpoint_step(checkpoint)), weights
