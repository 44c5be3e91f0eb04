"""Best responses of single agents, and their gains in return, for the page of a team's episode.

The gain of an agent is the increase of its return if only this agent changes to its best response.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from scrubjay.experiments.experiment_types.team import TeamTaskConfig
from scrubjay.experiments.reports.equilibrium import (
    get_trust_region_config,
    learner_state,
    measure_gains_with_progress,
)
from scrubjay.experiments.run import Run
from scrubjay.experiments.tasks.kwargs import KwargValue
from scrubjay.experiments.viz.trace import Trace


@dataclasses.dataclass(frozen=True)
class BestResponses:
    """Best response of each agent to the rest of a run's team, each trained for `steps` environment steps.

    Raises ValueError if `steps` is below 1, and TypeError if the run is not a team trained by trust regions.
    """

    run: Run
    settings: dict[str, KwargValue]
    """Environment settings that override those of the run."""
    steps: int
    episodes: int = 100
    """Number of evaluation episodes per team."""
    seed: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"response_steps={self.steps}: must be at least 1")
        get_trust_region_config(self._config)

    @classmethod
    def from_run(cls, source: str, settings: dict[str, KwargValue], steps: int, trust: bool) -> BestResponses:
        """Build best responses to the run in directory `source`. Raises ValueError if `source` is a file."""
        if Path(source).is_file():
            raise ValueError(f"best responses need a run, but {source} is a file; name the run's directory")
        return cls(Run.load(source, trust), settings, steps)

    def add_to_trace(self, trace: Trace) -> Trace:
        """Train the best responses; return the trace with the gain of each agent added to `Trace.about`."""
        config = self._config
        gains = measure_gains_with_progress(
            "best responses",
            self.run.team_policy_for(config.env),
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
                f"{gain.gain:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}], from a return of {gain.before:.3g}"
            )
            for agent, gain in zip(agents, gains, strict=True)
        }
        about["gains"] = (
            f"lower bounds after {self.steps:,} steps of training; means over {self.episodes} episodes "
            "with sampled actions, with 95 % intervals"
        )
        return dataclasses.replace(trace, about=trace.about | about)

    @property
    def _config(self) -> TeamTaskConfig:
        config = self.run.config
        if not isinstance(config, TeamTaskConfig):
            raise TypeError(f"best responses need a run of a team; {self.run.path} is another type of run")
        kwargs = config.env.kwargs | self.settings
        return dataclasses.replace(config, env=dataclasses.replace(config.env, kwargs=kwargs))
