"""Multi-agent environments by name, and known ones by short name."""

import inspect

import numpy as np
import pytest

from scrubjay.envs import uav
from scrubjay.envs.teams import ParallelTeams
from scrubjay.envs.uav.batch import UAVTeams
from scrubjay.experiments.tasks.teams import KNOWN_TEAMS, KnownTeamEnv, TeamEnvConfig, find_known_team

UAV = "scrubjay.envs.uav:parallel_env"


@pytest.mark.parametrize("name", KNOWN_TEAMS)
def test_what_is_known_of_an_environment_is_so(name):
    entry = KNOWN_TEAMS[name]
    assert find_known_team(entry.id) is entry
    env = TeamEnvConfig(entry.id).make(render_mode="rgb_array")
    observations, _ = env.reset(seed=1)
    assert set(observations) == set(env.possible_agents)
    env.close()
    assert entry.default_rule in {"random", *entry.rules()}
    module, _, function = entry.id.partition(":")
    parameters = inspect.signature(getattr(__import__(module, fromlist=[function]), function)).parameters
    assert ("preset" in parameters) == entry.presets


@pytest.mark.parametrize("name", [name for name, entry in KNOWN_TEAMS.items() if entry.rules_path])
def test_rules_act_in_as_many_rows_as_there_are(name):
    config = TeamEnvConfig(KNOWN_TEAMS[name].id, num_envs=3)
    teams = config.make_batch()
    for make in find_known_team(config.id).rules().values():
        observations, alive = teams.reset(seed=2)
        actions = make(0)(teams, observations, alive, np.ones(3, dtype=bool))
        assert actions.shape[:2] == alive.shape
        assert teams.step(actions).rewards.shape == alive.shape


def test_a_stranger_offers_nothing():
    stranger = find_known_team("mpe2.simple_spread_v3:parallel_env")
    assert stranger == KnownTeamEnv("mpe2.simple_spread_v3:parallel_env")
    assert stranger.rules() == {}
    assert (stranger.presets, stranger.default_rule) == (False, "random")


def test_rows_are_the_modules_own_teams_or_parallel_environments(monkeypatch):
    config = TeamEnvConfig(UAV, {"num_users": 4, "max_steps": 3}, num_envs=2)
    own = config.make_batch(5)
    assert isinstance(own, UAVTeams)
    monkeypatch.delattr(uav, "teams")
    parallel_teams = config.make_batch()
    assert isinstance(parallel_teams, ParallelTeams)
    assert own.possible_agents == parallel_teams.possible_agents
    assert own.reset(seed=0)[1].shape == (5, 2)
    assert parallel_teams.reset(seed=0)[1].shape == (2, 2)


@pytest.mark.parametrize(
    ("id", "kwargs", "message"),
    [
        ("scrubjay/UAV-v0", {}, "write module:callable, as in 'scrubjay.envs.uav:parallel_env'"),
        ("scrubjay.envs.uavs:env", {}, "No module named 'scrubjay.envs.uavs'"),
        (UAV, {"num_uav": 3}, "did you mean 'num_uavs'"),
        (UAV, {"num_uavs": 0}, "num_uavs=0"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(id, kwargs, message):
    config = TeamEnvConfig(id, kwargs)
    for make in (config.make, config.make_batch):
        with pytest.raises(ValueError, match=message) as error_info:
            make()
        assert id in str(error_info.value)


def test_there_is_a_team_at_least():
    with pytest.raises(ValueError, match="num_envs=0: must be at least 1"):
        TeamEnvConfig(num_envs=0)
