"""Policies, learners and chat models for any memory; `kwai` has a language-model agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports

if TYPE_CHECKING:
    from scrubjay.agents.chat.model import LocalChatModel as LocalChatModel
    from scrubjay.agents.conformance import check_learner as check_learner
    from scrubjay.agents.language.declarations import tool as tool
    from scrubjay.agents.learners import list_learners as list_learners
    from scrubjay.agents.learners import make_learner_config as make_learner_config
    from scrubjay.agents.learners import register_learner as register_learner
    from scrubjay.agents.rl.advantages import generalized_advantage as generalized_advantage
    from scrubjay.agents.rl.learner import Learner as Learner
    from scrubjay.agents.rl.learner import LearnerConfig as LearnerConfig
    from scrubjay.agents.rl.model_card import Origin as Origin
    from scrubjay.agents.rl.policy import Evaluation as Evaluation
    from scrubjay.agents.rl.policy import Policy as Policy
    from scrubjay.agents.rl.policy import PolicyConfig as PolicyConfig
    from scrubjay.agents.rl.policy import PolicyStep as PolicyStep
    from scrubjay.agents.rl.ppo import PPO as PPO
    from scrubjay.agents.rl.ppo import PPOConfig as PPOConfig
    from scrubjay.agents.rl.rollout import EpisodeStats as EpisodeStats
    from scrubjay.agents.rl.rollout import TeamEpisodeStats as TeamEpisodeStats
    from scrubjay.agents.rl.sampler import Sampler as Sampler
    from scrubjay.agents.rl.segment import Observation as Observation
    from scrubjay.agents.rl.segment import Segment as Segment
    from scrubjay.agents.rl.spaces import Spaces as Spaces
    from scrubjay.agents.teams.env import TeamEnv as TeamEnv
    from scrubjay.agents.teams.env import TeamStep as TeamStep
    from scrubjay.agents.teams.gamatr import GAMATR as GAMATR
    from scrubjay.agents.teams.gamatr import GAMATRConfig as GAMATRConfig
    from scrubjay.agents.teams.policy import TeamPolicy as TeamPolicy
    from scrubjay.agents.teams.policy import TeamPolicyConfig as TeamPolicyConfig
    from scrubjay.agents.teams.policy import TeamPolicyStep as TeamPolicyStep
    from scrubjay.agents.teams.sampler import TeamSampler as TeamSampler
    from scrubjay.agents.teams.segment import TeamSegment as TeamSegment

# Imported lazily: a language-model agent must not wait for the import of torch.
__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "chat.model": ["LocalChatModel"],
        "conformance": ["check_learner"],
        "learners": ["list_learners", "make_learner_config", "register_learner"],
        "rl.advantages": ["generalized_advantage"],
        "rl.model_card": ["Origin"],
        "rl.learner": ["Learner", "LearnerConfig"],
        "rl.policy": ["Evaluation", "Policy", "PolicyConfig", "PolicyStep"],
        "rl.ppo": ["PPO", "PPOConfig"],
        "rl.rollout": ["EpisodeStats", "TeamEpisodeStats"],
        "rl.sampler": ["Sampler"],
        "rl.segment": ["Observation", "Segment"],
        "rl.spaces": ["Spaces"],
        "teams.env": ["TeamEnv", "TeamStep"],
        "teams.gamatr": ["GAMATR", "GAMATRConfig"],
        "teams.policy": ["TeamPolicy", "TeamPolicyConfig", "TeamPolicyStep"],
        "teams.sampler": ["TeamSampler"],
        "teams.segment": ["TeamSegment"],
        "language.declarations": ["tool"],
    },
    packages=("embeddings", "kwai", "langchain", "rllib", "tools"),
)
