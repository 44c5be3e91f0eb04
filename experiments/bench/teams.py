"""Environment steps per second of teams in training, and of the environment alone with random actions.

Run: `python -P -m scrubjay.experiments.bench.teams`

One process, one thread. A step is a step of one environment, for any team size. The environment alone is a
PettingZoo ParallelEnv. It makes the same number of steps as one update, with actions sampled beforehand.
Training and environment take turns, so that a busy machine slows both; the first round is a warm-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import tyro

from scrubjay.agents.teams.sampler import TeamSampler
from scrubjay.experiments.bench import time_in_turns
from scrubjay.experiments.recipes import RECIPES
from scrubjay.experiments.recipes.teams import with_method
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig


@dataclass(frozen=True)
class TeamsBench:
    """Options of the benchmark."""

    cases: tuple[tuple[str, str], ...] = (
        ("spread", "hatrpo"),
        ("spread", "mappo"),
        ("uav-small", "hatrpo"),
        ("uav-small", "gamatr"),
        ("uav-paper", "hatrpo"),
        ("uav-paper", "gamatr"),
    )
    """Pairs of a recipe name and a method name, e.g. `spread` and `hatrpo`."""
    rounds: int = 5
    """Timed updates per case."""


def main(bench: TeamsBench) -> None:
    """Run the benchmark and print its table."""
    print(f"1 thread, medians of {bench.rounds} updates; torch {torch.__version__}\n")
    print(
        "| recipe | method | agents | environment alone, steps/s | sampling | training | training / alone |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for recipe, method in bench.cases:
        config = RECIPES[recipe]()
        assert isinstance(config, TeamTaskConfig)
        config = with_method(replace(config, recipe=recipe), method)
        agents, bare, sampling, training = _measure(config, bench.rounds)
        print(
            f"| {recipe} | {method} | {agents} | {bare:,.0f} | {sampling:,.0f} | {training:,.0f} "
            f"| {training / bare:.2f} |",
            flush=True,
        )


def _measure(config: TeamTaskConfig, rounds: int) -> tuple[int, float, float, float]:
    """Return the number of agents and three speeds in steps per second.

    The speeds are those of the bare environment, of sampling, and of training, which includes sampling.
    """
    teams = config.env.make_batch()
    policy = config.make_policy(teams)
    sampler = TeamSampler(teams, policy, config.segment_length, seed=0)
    learner = config.learner.build(policy)
    latest: dict[str, Any] = {}
    methods: dict[str, Callable[[], object]] = {
        "sampling": lambda: latest.update(segment=sampler.collect()),
        "learning": lambda: learner.update(latest["segment"]),
        "bare": _build_bare_loop(config),
    }
    seconds = time_in_turns(methods, rounds, clock=time.perf_counter)
    seconds["training"] = list(map(sum, zip(seconds["sampling"], seconds["learning"], strict=True)))
    rates = {part: config.steps_per_update / median(durations) for part, durations in seconds.items()}
    return policy.num_agents, rates["bare"], rates["sampling"], rates["training"]


def _build_bare_loop(config: TeamTaskConfig) -> Callable[[], None]:
    """Return a function that steps one environment with random actions, `steps_per_update` times."""
    env = config.env.make()
    env.reset(seed=0)
    actions = [
        {agent: env.action_space(agent).sample() for agent in env.possible_agents}
        for _ in range(config.steps_per_update)
    ]

    def step_all() -> None:
        for action in actions:
            env.step({agent: action[agent] for agent in env.agents})
            if not env.agents:
                env.reset()

    return step_all


if __name__ == "__main__":
    main(tyro.cli(TeamsBench, description=__doc__))
