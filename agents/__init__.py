"""Policies and learners: things that act, holding any memory."""

from scrubjay.agents.advantages import generalized_advantage
from scrubjay.agents.policy import Evaluation, Policy, PolicyConfig, PolicyStep
from scrubjay.agents.ppo import PPO, PPOConfig
from scrubjay.agents.sampler import EpisodeStats, Sampler
from scrubjay.agents.segment import Observation, Segment

__all__ = [
    "PPO",
    "EpisodeStats",
    "Evaluation",
    "Observation",
    "PPOConfig",
    "Policy",
    "PolicyConfig",
    "PolicyStep",
    "Sampler",
    "Segment",
    "generalized_advantage",
]
