"""Policies, learners and chat models: things that act, holding any memory; in `kwai`, an agent that talks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "advantages": ("generalized_advantage",),
    "gamatr": ("GAMATR",),
    "gamatr_config": ("GAMATRConfig",),
    "local_chat": ("LocalChatModel",),
    "policy": (
        "Evaluation",
        "Policy",
        "PolicyConfig",
        "PolicyStep",
    ),
    "ppo": (
        "PPO",
        "PPOConfig",
    ),
    "sampler": (
        "EpisodeStats",
        "Sampler",
    ),
    "segment": (
        "Observation",
        "Segment",
    ),
    "team_env": (
        "TeamEnv",
        "TeamStep",
    ),
    "team_policy": (
        "TeamPolicy",
        "TeamPolicyConfig",
        "TeamPolicyStep",
    ),
    "team_sampler": (
        "TeamEpisodeStats",
        "TeamSampler",
    ),
    "team_segment": ("TeamSegment",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # On first use: an agent that talks must not wait for torch.
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
