"""Trace of a team episode: attention weights between agents match the network."""

import dataclasses
from typing import Any

import pytest
import torch

from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments import train
from scrubjay.experiments.commands.main import main
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.experiments.viz.differences import learner_state, measure_gains
from scrubjay.experiments.viz.episode import trace_team
from scrubjay.experiments.viz.look import look
from scrubjay.experiments.viz.trace import from_json, read_trace, to_json
from scrubjay.memory import make_config

ENV = TeamEnvConfig(kwargs={"num_uavs": 3, "num_users": 4, "max_steps": 5}, num_envs=2)


def policy_for(**fields: Any):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fields.setdefault("memory", make_config("gtrxl", dim=16, window=3, num_layers=1))
        teams = ENV.make_batch()
        config = TeamTaskConfig(env=ENV, policy=TeamPolicyConfig(**fields))
        return config.make_policy(teams).eval()


@pytest.mark.parametrize("shared", [False, True])
def test_who_acts_hears_and_recalls_is_told_by_name(shared):
    trace = trace_team(policy_for(shared=shared), ENV)
    assert from_json(to_json(trace)) == trace
    assert len(trace.steps) == 5
    agents, track_names = ENV.make().possible_agents, ("reward", "value", "change by messages")
    assert set(trace.tracks) == {f"{agent}/{name}" for agent in agents for name in track_names}
    pairs = {f"{one} hears {other}" for one in agents for other in agents if one != other}
    for number, step in enumerate(trace.steps):
        assert step.picture is not None
        assert [move.split(" ")[0] for move in step.choice.split("; ")] == agents
        assert set(step.options) <= pairs
        assert {one.name.split("/")[0] for one in step.recalls} == set(agents)
        assert all(one.steps.max() <= number for one in step.recalls)
    total = sum(reward or 0 for reward in trace.tracks[f"{agents[0]}/reward"])
    assert float(trace.about[f"return of {agents[0]}"]) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_shares_are_those_that_add_up_to_what_an_agent_hears(shared):
    """One round adds the sum of the neighbors' messages, weighted by attention, to a node."""
    policy = policy_for(shared=shared, graph_rounds=1, graph_heads=1)
    teams = ENV.make_batch(1)
    observations, alive = teams.reset(seed=1)
    leaves = {key: torch.as_tensor(value) for key, value in observations.items()}
    state = policy.initial_state(1)
    looks = []
    did = policy.step(leaves, torch.as_tensor(alive), state, deterministic=True, traces=looks)
    alike = policy.step(leaves, torch.as_tensor(alive), state, deterministic=True)
    for name in ("action", "log_prob", "value"):
        torch.testing.assert_close(getattr(did, name), getattr(alike, name))
    assert did.state.keys() == alike.state.keys()
    for key, value in did.state.items():
        torch.testing.assert_close(value, alike.state[key])
    for agent, agent_trace in enumerate(looks):
        actor = policy.actors[0 if shared else agent]
        network = actor.network
        (round_,) = network.rounds
        nodes = round_.norm(network._encode(leaves, 2))
        messages = agent_trace.graph_weights[0, 0] @ round_.source(nodes)[0] + round_.bias
        torch.testing.assert_close(messages, round_.dense(nodes, leaves_hear(leaves))[0, agent])
        alone = network._encode(leaves, 2)[:, agent]
        changes = (network._nodes(leaves, None, agent, 1) - alone).norm(dim=-1) / alone.norm(dim=-1)
        torch.testing.assert_close(agent_trace.graph_change, changes)
        assert float(agent_trace.graph_weights.sum()) == pytest.approx(1, abs=1e-5)


def leaves_hear(leaves):
    from scrubjay.agents.teams.network import ADJACENCY, build_hearing_mask

    return build_hearing_mask(leaves.get(ADJACENCY), None)


def test_how_strongly_each_agent_writes_is_told():
    trace = trace_team(policy_for(memory=make_config("gru", dim=16)), ENV)
    for agent in ENV.make().possible_agents:
        changes = trace.tracks[f"{agent}/change of the state relative to its norm"]
        assert changes[0] == pytest.approx(1)  # the state starts at zero
        assert all(0 < (value or 0) < 1 for value in changes[1:])


def test_without_rounds_nobody_is_heard():
    trace = trace_team(policy_for(graph_rounds=0), ENV, max_steps=2)
    assert [step.options for step in trace.steps] == [{}, {}]
    with pytest.raises(ValueError, match="max_steps=0"):
        trace_team(policy_for(), ENV, max_steps=0)


@pytest.mark.slow
def test_a_run_of_a_team_is_looked_at(tmp_path, capsys):
    config = TeamTaskConfig(
        env=dataclasses.replace(ENV, num_envs=2),
        learner=GAMATRConfig(minibatches=2),
        total_steps=6,
        segment_length=3,
        device="cpu",
        eval_episodes=0,
    )
    run = train(config, tmp_path / "run")
    assert main(["look", str(run.path), "--out", str(tmp_path / "team.json"), "--max-steps", "3"]) == 0
    assert "3 steps" in capsys.readouterr().out
    assert read_trace(tmp_path / "team.json") == look(run, max_steps=3).trace
    assert None not in read_trace(tmp_path / "team.json").tracks["uav_0/value"]
    words = ["look", str(run.path), "--out", str(tmp_path / "team.json"), "--best-response"]
    assert main([*words, "--max-steps", "2", "--response-steps", "6"]) == 0
    about = read_trace(tmp_path / "team.json").about
    agent_gains = measure_gains(run.team_policy_for(ENV), config, 6, 100, 1, learner_state(run), "again")
    for agent, gain in zip(ENV.make().possible_agents, agent_gains, strict=True):
        assert about[f"gain of {agent} alone"].startswith(f"{gain.gain:+.3g} [")
    for more, message in (
        (["--response-steps", "0"], "response_steps=0: must be at least 1"),
        (["--set", "wings=2"], "wings"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["look", str(tmp_path / "team.json"), "--best-response"]) == 2
    assert "name the run's directory" in capsys.readouterr().err
