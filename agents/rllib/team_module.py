"""A team's policy as an RLModule."""

from __future__ import annotations

from gymnasium import spaces
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from scrubjay.agents.team_policy import TeamPolicy, TeamPolicyConfig


class TeamModule(TorchRLModule):
    """Holds a `TeamPolicy` for `SegmentGAMATR`; it has no forward pass for RLlib's own learners and env runners.

    Its spaces are a team's, tuples with one part per agent; `model_config` has `policy`, a `TeamPolicyConfig`.
    Raises TypeError if either is of another kind.
    """

    policy: TeamPolicy

    def setup(self) -> None:
        """Build the policy; called by RLlib."""
        config = self.model_config.get("policy")
        if not isinstance(config, TeamPolicyConfig):
            raise TypeError(f"model_config['policy'] is {config!r}: expected a TeamPolicyConfig")
        seen, done = self.observation_space, self.action_space
        if not isinstance(seen, spaces.Tuple) or not isinstance(done, spaces.Tuple):
            raise TypeError(f"spaces {seen} and {done}: expected tuples with one part per agent")
        self.policy = TeamPolicy(seen.spaces[0], done.spaces[0], len(seen.spaces), config)
