"""Policies, learners and chat models: things that act, holding any memory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from scrubjay.agents.local_chat import LocalChatModel

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

# On first use: who trains policies must not wait for langchain and transformers.
_LATER = {"LocalChatModel": "local_chat"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
