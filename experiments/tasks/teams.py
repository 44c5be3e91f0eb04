"""From the name of a multi-agent environment to many teams stepped at once, or to one that can be watched."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from pettingzoo import ParallelEnv

from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.teams.env import TeamEnv
from scrubjay.envs.teams import ParallelTeams
from scrubjay.experiments.tasks.environments import REFUSALS, named_callable, refusal
from scrubjay.experiments.tasks.facts import Facts
from scrubjay.experiments.tasks.names import admit, found, is_our_team
from scrubjay.experiments.tasks.returned import check_team
from scrubjay.experiments.tasks.settings import KwargValue

_TRIED_STEPS = 16
_GYMNASIUM_ID = r"-v\d+$"


@dataclass(frozen=True)
class TeamEnvConfig:
    """Which multi-agent environment, with what settings, and how many teams side by side."""

    id: str = "scrubjay.envs.uav:parallel_env"
    """`module:callable` returning a PettingZoo ParallelEnv; if the module also has `teams`, that steps all
    rows."""
    kwargs: dict[str, KwargValue] = field(default_factory=dict)
    """Settings handed to the environment; `--set name=value` changes one."""
    num_envs: int = 32
    """Teams stepped together: the rows of the batch."""

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise ValueError(f"num_envs={self.num_envs}: at least 1 environment is needed")

    def make(self, render_mode: str | None = None) -> ParallelEnv[Any, Any, Any]:
        """Return one environment. Raises ValueError if there is none of that name, or only a file's, or a
        setting is refused.
        """
        admit(self.id, self.kwargs)
        kwargs: dict[str, Any] = dict(self.kwargs)
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        return check_team(self._call(self.id, **kwargs), self.id)

    def make_teams(self, num_envs: int | None = None) -> TeamEnv:
        """Return `num_envs` teams; raises ValueError as `make`, and if the agents of a team are not alike."""
        count = self.num_envs if num_envs is None else num_envs
        module, _, _ = self.id.partition(":")
        self.make().close()  # a bad name or setting is best reported by one environment
        if callable(getattr(importlib.import_module(module), "teams", None)):
            return self._call(f"{module}:teams", num_envs=count, **self.kwargs)
        try:
            return ParallelTeams(self.make, count)
        except ValueError as error:
            raise ValueError(f"environment {self.id!r}: {error}") from error

    def make_rows(self, num_envs: int | None = None) -> TeamEnv:
        """Return what a policy is trained in: `make_teams`."""
        return self.make_teams(num_envs)

    def try_out(self) -> None:
        """Begin an episode and act at random for some steps; raises ValueError if that is not a team's.

        What is wrong with an environment of the user's is told before a run is begun.
        """
        teams = self.make_teams(min(self.num_envs, 2))  # two, since rows must be alike, too
        space = teams.single_action_space
        space.seed(0)
        try:
            _, alive = teams.reset(seed=0)
            for _ in range(_TRIED_STEPS):
                teams.step(np.array([[space.sample() for _ in row] for row in alive]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"environment {self.id!r}: {error}") from error
        finally:
            teams.close()

    def as_found(self) -> Self:
        """Return the same, read from a file: it makes nothing that is neither ours nor the user's."""
        known = frozenset(teams.id for teams in KNOWN_TEAMS.values())
        return replace(self, id=found(self.id, self.kwargs, is_our_team(self.id, self.kwargs, known)))

    def facts(self) -> Facts:
        """Return what a run keeps of the environment."""
        return Facts(self.spaces())

    def spaces(self) -> Spaces:
        """Return the spaces of a team."""
        env = self.make_teams(1)
        try:
            return Spaces.of(env)
        finally:
            env.close()

    def _call(self, name: str, **kwargs: Any) -> Any:
        function = named_callable(name)
        if function is None:
            alone = f"ids of gymnasium are of one agent (scrubjay train ppo --env {self.id}); for a team "
            raise ValueError(
                f"environment {self.id!r}: {alone if re.search(_GYMNASIUM_ID, self.id) else ''}"
                f"write module:callable, as in {TeamEnvConfig.id!r}"
            )
        try:
            return function(**kwargs)
        except REFUSALS as error:
            raise ValueError(refusal(self.id, kwargs, error)) from error


@dataclass(frozen=True)
class KnownTeams:
    """An environment that goes by a short name, and what it offers beside itself."""

    id: str
    """`module:callable`, as in `TeamEnvConfig`."""
    presets: bool = False
    """Whether it takes the name of a preset, as `preset`."""
    rules_at: str = ""
    """`module:name` of its rules of thumb: a mapping from names to what makes one from a seed."""
    usual_rule: str = "random"
    """Who plays if nobody is named."""

    def rules(self) -> Mapping[str, Callable[[int], Any]]:
        """Return its rules of thumb by name, each made from a seed."""
        module, _, name = self.rules_at.partition(":")
        return getattr(importlib.import_module(module), name) if module else {}


KNOWN_TEAMS: dict[str, KnownTeams] = {
    "uav": KnownTeams(
        "scrubjay.envs.uav:parallel_env",
        presets=True,
        rules_at="scrubjay.envs.uav.heuristics:HEURISTICS",
        usual_rule="follow",
    ),
}
"""Environments of teams by their short names, as in `scrubjay play uav`."""


def known_by(id: str) -> KnownTeams:
    """Return what is known of an environment by its `module:callable`.

    A stranger offers nothing.
    """
    return next((known for known in KNOWN_TEAMS.values() if known.id == id), KnownTeams(id))
