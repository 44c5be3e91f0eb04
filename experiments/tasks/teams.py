"""Creation of multi-agent environments by name, single or vectorized."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from pettingzoo import AECEnv, ParallelEnv

from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.teams.env import TeamEnv, TeamEnvs
from scrubjay.envs.teams import ParallelTeams
from scrubjay.experiments.cli.failures import check_at_least
from scrubjay.experiments.tasks.environments import (
    EnvFacts,
    KwargValue,
    admit,
    construction_errors,
    is_safe_team,
    load_callable,
    mark_untrusted,
)
from scrubjay.experiments.tasks.faults import check_team, describe_import_error, exit_errors
from scrubjay.experiments.tasks.random_actions import RandomActor

_TRIAL_STEPS = 16
_GYMNASIUM_ID = r"-v\d+$"


@dataclass(frozen=True)
class TeamEnvConfig:
    """Multi-agent environment, its settings and the number of parallel teams."""

    id: str = "scrubjay.envs.uav:parallel_env"
    """`module:callable` that returns a PettingZoo ParallelEnv. If the module also has a function `teams`,
    this function makes the vector environment."""
    kwargs: dict[str, KwargValue] = field(default_factory=dict)
    """Keyword arguments of the environment; change one with `--set name=value`."""
    num_envs: int = 32
    """Number of parallel environments, each with one team."""
    wrappers: ClassVar[tuple[str, ...]] = ()
    """Empty, since gymnasium's wrappers are for single agents."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "num_envs")

    @property
    def num_processes(self) -> int:
        """Zero, since teams run in the process of the learner."""
        return 0

    def make(self, render_mode: str | None = None) -> ParallelEnv[Any, Any, Any]:
        """Return one environment. Raises ValueError if the id or a setting is unknown or untrusted."""
        admit(self.id, self.kwargs)
        kwargs: dict[str, Any] = dict(self.kwargs)
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        return check_team(self._call(self.id, **kwargs), self.id)

    def reward_threshold(self) -> None:
        """Return None: no registry says at which return a team has solved its task."""

    def make_batch(self, num_envs: int | None = None) -> TeamEnv:
        """Return a vector environment of `num_envs` teams.

        Raises the errors of `make`, and ValueError if the agents of a team have different spaces.
        """
        count = self.num_envs if num_envs is None else num_envs
        module, _, _ = self.id.partition(":")
        self.make().close()  # a single environment reports a bad id or setting best
        if callable(getattr(importlib.import_module(module), "teams", None)):
            return self._call(f"{module}:teams", num_envs=count, **self.kwargs)
        try:
            return ParallelTeams(self.make, count)
        except ValueError as error:
            raise ValueError(f"environment {self.id!r}: {error}") from error

    def try_out(self) -> None:
        """Take some random steps, to find faults of a user's environment before training.

        Raises ValueError if the environment violates the team API.
        """
        teams = self.make_batch(min(self.num_envs, 2))  # two, since all teams must have the same spaces
        actor = RandomActor(teams.single_action_space, seed=0)
        with contextlib.closing(teams), self._errors():
            spaces = Spaces.from_env(teams)
            envs = TeamEnvs(teams, spaces.action_masks)
            inputs = envs.reset(seed=0)
            for _ in range(_TRIAL_STEPS):
                inputs = envs.step(actor.act(inputs).actions).following

    def as_untrusted(self) -> Self:
        """Return a copy of this config with the id marked as untrusted, for configs that are read from files.

        An id is not marked if it is safe or if the user named it in this process.
        """
        return replace(self, id=mark_untrusted(self.id, self.kwargs, self.is_safe))

    @property
    def is_safe(self) -> bool:
        """True if an untrusted file may name this environment."""
        known_ids = frozenset(teams.id for teams in KNOWN_TEAMS.values())
        return is_safe_team(self.id, self.kwargs, known_ids)

    def facts(self) -> EnvFacts:
        """Return the environment's properties that a run stores."""
        return EnvFacts(self.spaces())

    def spaces(self) -> Spaces:
        """Return the spaces of a team."""
        with contextlib.closing(self.make_batch(1)) as env, self._errors():
            return Spaces.from_env(env)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise ValueError with the id of the environment on a fault of its code in the `with` block."""
        try:
            with exit_errors(self.id):
                yield
        except ImportError as error:
            raise ValueError(describe_import_error(self.id, error)) from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"environment {self.id!r}: {error}") from error

    def _call(self, name: str, **kwargs: Any) -> Any:
        function = load_callable(name)
        if function is None:
            alone = f"gymnasium ids are for single agents (scrubjay train ppo --env {self.id}); for a team "
            raise ValueError(
                f"environment {self.id!r}: {alone if re.search(_GYMNASIUM_ID, self.id) else ''}"
                f"write module:callable, as in {TeamEnvConfig.id!r}"
            )
        with construction_errors(self.id, kwargs):
            return function(**kwargs)


def returns_team(name: str, kwargs: Mapping[str, KwargValue]) -> bool:
    """Make an environment once; return True if `name` is the `module:callable` of a PettingZoo environment.

    Raises the errors of `TeamEnvConfig.make`, except that of a single-agent environment.
    """
    admit(name, kwargs)
    if load_callable(name) is None:
        return False
    env = TeamEnvConfig(name)._call(name, **kwargs)
    if not isinstance(env, ParallelEnv | AECEnv):
        return False
    check_team(env, name).close()
    return True


@dataclass(frozen=True)
class KnownTeamEnv:
    """Team environment with a short name, its presets and heuristics."""

    id: str
    """`module:callable`, as in `TeamEnvConfig`."""
    presets: bool = False
    """True if the environment accepts the name of a preset as its argument `preset`."""
    rules_path: str = ""
    """`module:name` of the heuristics: a mapping from names to functions that build a policy from a seed."""
    default_rule: str = "random"
    """Name of the policy if the user names no policy."""

    def rules(self) -> Mapping[str, Callable[[int], Any]]:
        """Return a dict from the name of each heuristic to a function that builds a policy from a seed."""
        module, _, name = self.rules_path.partition(":")
        return getattr(importlib.import_module(module), name) if module else {}


KNOWN_TEAMS: dict[str, KnownTeamEnv] = {
    "uav": KnownTeamEnv(
        "scrubjay.envs.uav:parallel_env",
        presets=True,
        rules_path="scrubjay.envs.uav.heuristics:HEURISTICS",
        default_rule="follow",
    ),
}
"""Team environments by short name, as in `scrubjay play uav`."""


def find_known_team(id: str) -> KnownTeamEnv:
    """Return the entry of `KNOWN_TEAMS` with this `module:callable`.

    If there is no such entry, return a new `KnownTeamEnv` without presets and heuristics.
    """
    return next((entry for entry in KNOWN_TEAMS.values() if entry.id == id), KnownTeamEnv(id))
