"""Policies, learners and chat models: things that act, holding any memory; in `kwai`, an agent that talks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay.kernels.first_use import imported_on_first_use

if TYPE_CHECKING:
    from scrubjay.agents.advantages import generalized_advantage
    from scrubjay.agents.gamatr import GAMATR
    from scrubjay.agents.gamatr_config import GAMATRConfig
    from scrubjay.agents.local_chat import LocalChatModel
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
    "LocalChatModel",
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

# An agent that talks must not wait for torch.
__getattr__ = imported_on_first_use(
    __name__,
    {
        "advantages": ["generalized_advantage"],
        "gamatr": ["GAMATR"],
        "gamatr_config": ["GAMATRConfig"],
        "local_chat": ["LocalChatModel"],
        "policy": ["Evaluation", "Policy", "PolicyConfig", "PolicyStep"],
        "ppo": ["PPO", "PPOConfig"],
        "sampler": ["EpisodeStats", "Sampler"],
        "segment": ["Observation", "Segment"],
        "team_env": ["TeamEnv", "TeamStep"],
        "team_policy": ["TeamPolicy", "TeamPolicyConfig", "TeamPolicyStep"],
        "team_sampler": ["TeamEpisodeStats", "TeamSampler"],
        "team_segment": ["TeamSegment"],
    },
)
