"""Policies and learners: things that act, holding any memory."""

from scrubjay.agents.advantages import generalized_advantage
from scrubjay.agents.gamatr import GAMATR
from scrubjay.agents.gamatr_config import GAMATRConfig
from scrubjay.agents.policy import Evaluation, Policy, PolicyConfig, PolicyStep
from scrubjay.agents.ppo import PPO, PPOConfig
from scrubjay.agents.sampler import EpisodeStats, Sampler
from scrubjay.agents.segment import Observation, Segment
from scrubjay.agents.team_env import TeamEnv, TeamStep
from scrubjay.agents.team_policy import TeamPolicy, TeamPolicyConfig, TeamPolicyStep
from scrubjay.agents.team_sampler import TeamEpisodeStats, TeamSampler
from scrubjay.agents.team_segment import TeamSegment

__all__ = [
    "GAMATR",
    "PPO",
    "EpisodeStats",
    "Evaluation",
    "GAMATRConfig",
    "Observation",
    "PPOConfig",
    "Policy",
    "PolicyConfig",
    "PolicyStep",
    "Sampler",
    "Segment",
    "TeamEnv",
    "TeamEpisodeStats",
    "TeamPolicy",
    "TeamPolicyConfig",
    "TeamPolicyStep",
    "TeamSampler",
    "TeamSegment",
    "TeamStep",
    "generalized_advantage",
]
