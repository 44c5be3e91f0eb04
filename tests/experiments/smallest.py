"""Smallest configs of a team and of a sequence model, for tests of other parts."""

from __future__ import annotations

from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.runs.sequence import SequenceTaskConfig
from scrubjay.experiments.tasks.sequences import MQAR
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import make_config

TEAM = TeamTaskConfig(
    recipe="tiny-team",
    env=TeamEnvConfig(kwargs={"max_steps": 6}, num_envs=4),
    policy=TeamPolicyConfig(memory=make_config("gru", dim=8), graph_heads=2),
    learner=GAMATRConfig(minibatches=2),
    total_steps=64,
    segment_length=8,
    device="cpu",
    eval_episodes=1,
)
BATCH = 2 * 32
"""Tokens per batch of sequences."""
SEQUENCES = SequenceTaskConfig(
    suite=MQAR(length=32, num_items=4),
    memory=make_config("gru", dim=8),
    num_blocks=1,
    parameters=4000,
    batch_rows=2,
    total_steps=4 * BATCH,
    eval_rows=4,
    eval_items=(2,),
    eval_longer=(2,),
)
