"""What each agent of a team could still gain alone, told on the page of its episode."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.looking.trace import Trace
from scrubjay.experiments.reports.equilibrium import learner_state, of_trust_region, watched_gains
from scrubjay.experiments.run import Run
from scrubjay.experiments.tasks.settings import KwargValue


@dataclasses.dataclass(frozen=True)
class Responses:
    """Best responses to the team of a run, of `steps` environment steps each.

    Raises ValueError if there is no step, and TypeError if the run is of no team that learned by trust
    regions.
    """

    run: Run
    settings: dict[str, KwargValue]
    """Of the environment, beside the run's own."""
    steps: int
    episodes: int = 100
    """How many are played with each team."""
    seed: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"response_steps={self.steps}: at least 1 is needed")
        of_trust_region(self._config)

    @classmethod
    def to(cls, what: str, settings: dict[str, KwargValue], steps: int, trust: bool) -> Responses:
        """Return those to the team of the run in a directory."""
        if Path(what).is_file():
            raise ValueError(
                f"best responses are learned from a run; {what} is a file: name the run's directory"
            )
        return cls(Run.load(what, trust), settings, steps)

    def told_in(self, trace: Trace) -> Trace:
        """Return the trace with what each agent gains."""
        config = self._config
        told = watched_gains(
            "best responses",
            self.run.team_policy_in(config.env),
            config,
            self.steps,
            self.episodes,
            self.seed,
            learner_state(self.run),
        )
        env = config.env.make()
        agents = list(env.possible_agents)
        env.close()
        about = {
            f"gain of {agent} alone": (
                f"{gain.gain:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}], of a return of {gain.before:.3g}"
            )
            for agent, gain in zip(agents, told, strict=True)
        }
        about["gains"] = (
            f"at least, after {self.steps:,} steps of learning alone; means over {self.episodes} episodes, "
            "actions drawn, with 95 % intervals"
        )
        return dataclasses.replace(trace, about=trace.about | about)

    @property
    def _config(self) -> TeamTaskConfig:
        config = self.run.config
        if not isinstance(config, TeamTaskConfig):
            raise TypeError(f"best responses are of teams; {self.run.path} is a run of one agent")
        kwargs = config.env.kwargs | self.settings
        return dataclasses.replace(config, env=dataclasses.replace(config.env, kwargs=kwargs))
