"""Small configs of both algorithms, for one process."""

from __future__ import annotations

from typing import Any

from mpe2 import simple_spread_v3

from scrubjay.agents import PolicyConfig, PPOConfig, TeamPolicyConfig
from scrubjay.agents.rllib import SegmentGAMATRConfig, SegmentPPOConfig
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.envs.teams import ParallelTeams
from scrubjay.experiments import EnvConfig
from scrubjay.memory import make_config


def make_teams(num_envs):
    return ParallelTeams(lambda: simple_spread_v3.parallel_env(N=3, max_cycles=5), num_envs)


def ppo_config(memory="gru", **fields):
    return SegmentPPOConfig().segments(
        envs=EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 2}).make_batch,
        num_envs=4,
        segment_length=8,
        policy=PolicyConfig(memory=make_config(memory, dim=16), **fields),
        learner=PPOConfig(num_minibatches=2),
        learner_seed=3,
    )


def team_config(mode: Any = "sequential", shared=True):
    return SegmentGAMATRConfig().segments(
        envs=make_teams,
        num_envs=4,
        segment_length=8,
        policy=TeamPolicyConfig(memory=make_config("gru", dim=16), graph_rounds=1, shared=shared),
        learner=GAMATRConfig(mode=mode, minibatches=2),
        learner_seed=3,
    )
