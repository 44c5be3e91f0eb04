"""A policy with any memory, or a team's, as an RLModule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchMultiCategorical,
)
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from scrubjay.agents.rl.distributions import DiagonalGaussian
from scrubjay.agents.rl.observations import from_leaves, to_leaves, to_tensors
from scrubjay.agents.rl.policy import Policy, PolicyConfig
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.teams.policy import TeamPolicy, TeamPolicyConfig


class MemoryModule(TorchRLModule, ValueFunctionAPI):
    """Holds a `Policy` that RLlib's own PPO and runners can use: `STATE_IN`, `STATE_OUT` are its memory's.

    `model_config` has `policy`, a `PolicyConfig`, and `max_seq_len`, the steps over which RLlib
    backpropagates.

    Cost with RLlib's own env runners: they keep the memory's whole state for every single step, which
    `scrubjay list` tells in bytes. At width 64 that is 256 B a step for gru and 143 kB for hcam; `SegmentPPO`
    keeps one state for each segment of many steps instead. And RLlib samples with a batch of one step
    through Python connectors, several times slower than `SegmentPPO`.

    Raises TypeError without a `PolicyConfig`, and on spaces that the policy or RLlib does not support.

    Example:
        policy = PolicyConfig(memory=make_config("hcam"))
        spec = RLModuleSpec(module_class=MemoryModule, model_config={"policy": policy, "max_seq_len": 32})
        config = PPOConfig().environment("CartPole-v1").rl_module(rl_module_spec=spec)
    """

    policy: Policy

    def setup(self) -> None:
        """Build the policy; called by RLlib."""
        config = self.model_config.get("policy")
        if not isinstance(config, PolicyConfig):
            raise TypeError(f"model_config['policy'] is {config!r}: expected a PolicyConfig")
        self.policy = config.build(Spaces(self.observation_space, self.action_space))
        self.action_dist_cls = _distribution(self.action_space)

    def get_initial_state(self) -> dict[str, np.ndarray]:
        """Return the memory's state at the birth of an episode, without a batch axis; called by RLlib."""
        return {name: value[0].cpu().numpy() for name, value in self.policy.initial_state(1).items()}

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        features, state = self._remember(batch)
        distribution = self.policy.actor(features)
        if isinstance(distribution, DiagonalGaussian):
            log_std = distribution.log_std.expand_as(distribution.mean)
            inputs = torch.cat([distribution.mean, log_std], dim=-1)
        else:
            inputs = distribution.log_probs.flatten(features.dim() - 1)
        out = {Columns.ACTION_DIST_INPUTS: inputs, Columns.EMBEDDINGS: features}
        return {**out, Columns.STATE_OUT: state} if state else out

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Return the critic's value of every step; called by RLlib's learners."""
        features = self._remember(batch)[0] if embeddings is None else embeddings
        return self.policy.critic(features).squeeze(-1)

    def _remember(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        seen = to_tensors(self.observation_space, batch[Columns.OBS], self.policy.device)
        if not self.is_stateful():  # then RLlib gives observations no time axis
            remembered, _ = self.policy.memory(self.policy.encoder(seen).unsqueeze(1), {})
            return self.policy.with_view(remembered.squeeze(1), seen), {}
        # Rows are parts of single episodes, each from the state that RLlib stored before it.
        leaves = to_leaves(seen)
        rows_and_time = next(iter(leaves.values())).shape[:2]
        flat = from_leaves({key: leaf.flatten(0, 1) for key, leaf in leaves.items()})
        encoded = self.policy.encoder(flat).unflatten(0, rows_and_time)
        remembered, state = self.policy.memory(encoded, batch[Columns.STATE_IN])
        features = self.policy.with_view(remembered.flatten(0, 1), flat)
        return features.unflatten(0, rows_and_time), state


class TeamModule(TorchRLModule):
    """Holds a `TeamPolicy` for `SegmentTraining`; has no forward pass for RLlib's own learners and runners.

    Its spaces are a team's, tuples with one part per agent; `model_config` has `policy`, a
    `TeamPolicyConfig`. Raises TypeError if either is of another kind.
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
        self.policy = config.build(Spaces(seen.spaces[0], done.spaces[0], len(seen.spaces)))


def of_row(one: Spaces) -> tuple[spaces.Space, spaces.Space]:
    """Return the spaces of a whole row, as RLlib is told them: of a team, tuples with one part per agent."""
    if one.num_agents is None:
        return one.observation, one.action
    return spaces.Tuple([one.observation] * one.num_agents), spaces.Tuple([one.action] * one.num_agents)


def _distribution(space: spaces.Space) -> Any:
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return TorchCategorical
    if isinstance(space, spaces.MultiDiscrete) and not np.any(space.start):
        # The policy has as many logits for every choice, those that do not exist with probability zero.
        lengths = [int(space.nvec.max())] * space.nvec.size
        distribution: Any = TorchMultiCategorical
        return distribution.get_partial_dist_cls(space=space, input_lens=lengths)
    if isinstance(space, spaces.Box):
        return TorchDiagGaussian
    raise TypeError(
        f"action space {space}: RLlib has no distribution for it; use Box, or Discrete or MultiDiscrete "
        "from zero"
    )
