"""Benchmark of teams: one row per recipe and method; the bare loop has as many steps as an update."""

import dataclasses

import pytest

from scrubjay.experiments import RECIPES
from scrubjay.experiments.bench import teams
from scrubjay.experiments.bench.teams import TeamsBench, main
from scrubjay.experiments.tasks.teams import TeamEnvConfig


def test_a_row_tells_the_rates_of_its_recipe_and_method(monkeypatch, capsys):
    measured_cases = []

    def measure(config, rounds):
        measured_cases.append((config.recipe, config.method, rounds))
        return 2, 4000.0, 3000.0, 1000.0

    monkeypatch.setattr(teams, "_measure", measure)
    cases = (("uav-small", "gamatr"), ("uav-paper", "mappo"))
    main(TeamsBench(cases=cases, rounds=3))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| uav")]
    assert measured_cases == [(*case, 3) for case in cases]
    assert rows == [f"| {recipe} | {method} | 2 | 4,000 | 3,000 | 1,000 | 0.25 |" for recipe, method in cases]


def test_the_cases_measured_by_default_are_there():
    from scrubjay.experiments.recipes.teams import METHODS

    for recipe, method in TeamsBench().cases:
        assert RECIPES[recipe]().policy_type == "team"
        assert method in METHODS


@pytest.fixture
def config():
    env = TeamEnvConfig(kwargs={"num_users": 4, "max_steps": 3}, num_envs=4)
    return dataclasses.replace(RECIPES["uav-small"](), env=env, segment_length=4, device="cpu")


def test_bare_steps_are_an_updates_whatever_episodes_do(config, monkeypatch):
    call_counts = {"step": 0, "reset": 0}
    make = TeamEnvConfig.make

    def make_counting(self, **options):
        env = make(self, **options)
        for name in call_counts:
            function = getattr(env, name)

            def count_call(*words, name=name, function=function, **options):
                call_counts[name] += 1
                return function(*words, **options)

            setattr(env, name, count_call)
        return env

    monkeypatch.setattr(TeamEnvConfig, "make", make_counting)
    step_all = teams._build_bare_loop(config)
    step_all()
    assert call_counts["step"] == config.steps_per_update == 16
    assert call_counts["reset"] == 1 + 16 // 3


def test_what_is_measured_is_the_team_of_the_recipe(config):
    agents, *rates = teams._measure(config, rounds=1)
    assert agents == 2
    assert all(rate > 0 for rate in rates)
