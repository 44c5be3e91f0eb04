"""RLModules with a single-agent or team policy."""

from __future__ import annotations

from typing import Any

import numpy as np
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

from scrubjay.agents.rl.observations import from_leaves, to_leaves, to_tensors
from scrubjay.agents.rl.policy import Policy, PolicyConfig
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.teams.policy import TeamPolicy, TeamPolicyConfig


class MemoryModule(TorchRLModule, ValueFunctionAPI):
    """RLModule with a `Policy`, for RLlib's own PPO and env runners.

    `model_config` must have two entries. `policy` is a `PolicyConfig`, and `max_seq_len` is the number of
    steps of RLlib's backpropagation through time. `STATE_IN` and `STATE_OUT` are memory states.

    RLlib's env runners store the memory state of every step. At width 64 a state has 256 B for gru and 143 kB
    for hcam; `scrubjay list` shows the size in bytes for every memory. `SegmentPPO` stores one state per
    segment instead. `SegmentPPO` also samples several times faster, since RLlib samples step by step through
    Python connectors.

    An action mask must be the leaf `action_mask` of the observations, since RLlib's env runners drop infos.

    Example::

        policy = PolicyConfig(memory=make_config("hcam"))
        spec = RLModuleSpec(module_class=MemoryModule, model_config={"policy": policy, "max_seq_len": 32})
        config = PPOConfig().environment("CartPole-v1").rl_module(rl_module_spec=spec)

    Raises:
        TypeError: If `policy` is not a `PolicyConfig`, or if the policy or RLlib does not support a space.
    """

    policy: Policy

    def setup(self) -> None:
        """Build the policy; called by RLlib."""
        self.policy = _build_policy(self)
        self.action_dist_cls = _distribution(self.action_space)

    def get_initial_state(self) -> dict[str, np.ndarray]:
        """Return the memory state at episode start, without a batch axis; called by RLlib."""
        return {name: value[0].cpu().numpy() for name, value in self.policy.initial_state(1).items()}

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        features, critic_features, state = self._apply_memory(batch)
        observations = to_tensors(self.observation_space, batch[Columns.OBS], self.policy.device)
        inputs = self.policy.distribution(features, observations).outputs()
        out = {Columns.ACTION_DIST_INPUTS: inputs, Columns.EMBEDDINGS: critic_features}
        return {**out, Columns.STATE_OUT: state} if state else out

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if self.policy.normalizer is not None:
            raise ValueError(
                "normalize_observations=True: RLlib's learners do not update the statistics of observations; "
                "use scrubjay.agents.rllib.SegmentPPO, or normalize in the environment"
            )
        return self._forward(batch, **kwargs)

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Return the value estimate of every step; called by RLlib's learners."""
        features = self._apply_memory(batch)[1] if embeddings is None else embeddings
        return self.policy.critic(features).squeeze(-1)

    def _apply_memory(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the inputs of the heads of actor and critic, and the next memory state."""
        observations = to_tensors(self.observation_space, batch[Columns.OBS], self.policy.device)
        observations = self.policy.normalize(observations)
        leaves = to_leaves(observations)
        shape = next(iter(leaves.values())).shape[:2]
        if not self.is_stateful():  # RLlib then omits the time axis
            features, critic_features, _ = self.policy.head_inputs(observations, (shape[0], 1), {}, None)
            return features.squeeze(1), critic_features.squeeze(1), {}
        # Each batch row is a part of one episode and starts from the state that RLlib stored for it.
        flat = from_leaves({key: leaf.flatten(0, 1) for key, leaf in leaves.items()})
        return self.policy.head_inputs(flat, (shape[0], shape[1]), batch[Columns.STATE_IN], None)


class SegmentModule(TorchRLModule):
    """RLModule with a `Policy`, for `SegmentTraining` only: it has no forward pass for RLlib's learners.

    Supports every action space that `Policy` supports. Raises TypeError if `model_config["policy"]` is not a
    `PolicyConfig`.
    """

    policy: Policy

    def setup(self) -> None:
        """Build the policy; called by RLlib."""
        self.policy = _build_policy(self)


class TeamModule(TorchRLModule):
    """RLModule with a `TeamPolicy`, for `SegmentTraining` only: it has no forward pass for RLlib's learners.

    Raises:
        TypeError: If the spaces are not Tuple spaces with one entry per agent, or if `model_config["policy"]`
            is not a `TeamPolicyConfig`.
    """

    policy: TeamPolicy

    def setup(self) -> None:
        """Build the policy; called by RLlib."""
        config = self.model_config.get("policy")
        if not isinstance(config, TeamPolicyConfig):
            raise TypeError(f"model_config['policy'] is {config!r}: expected a TeamPolicyConfig")
        observation_space, action_space = self.observation_space, self.action_space
        if not isinstance(observation_space, spaces.Tuple) or not isinstance(action_space, spaces.Tuple):
            raise TypeError(
                f"spaces {observation_space} and {action_space}: expected Tuple spaces with one entry per "
                "agent"
            )
        num_agents = len(observation_space.spaces)
        self.policy = config.build(Spaces(observation_space.spaces[0], action_space.spaces[0], num_agents))


def build_row_spaces(one: Spaces) -> tuple[spaces.Space, spaces.Space]:
    """Return the observation space and the action space of one environment for RLlib.

    For a team, both are Tuple spaces with one entry per agent.
    """
    if one.num_agents is None:
        return one.observation, one.action
    return spaces.Tuple([one.observation] * one.num_agents), spaces.Tuple([one.action] * one.num_agents)


def _build_policy(module: TorchRLModule) -> Policy:
    config = module.model_config.get("policy")
    if not isinstance(config, PolicyConfig):
        raise TypeError(f"model_config['policy'] is {config!r}: expected a PolicyConfig")
    return config.build(Spaces(module.observation_space, module.action_space))


def _distribution(space: spaces.Space) -> Any:
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return TorchCategorical
    if isinstance(space, spaces.MultiDiscrete) and not np.any(space.start):
        # The policy pads all entries to the same number of logits; padding has probability 0.
        lengths = [int(space.nvec.max())] * space.nvec.size
        distribution: Any = TorchMultiCategorical
        return distribution.get_partial_dist_cls(space=space, input_lens=lengths)
    if isinstance(space, spaces.Box):
        return TorchDiagGaussian
    raise TypeError(
        f"action space {space} is not supported by RLlib; use a Box, or a Discrete or MultiDiscrete that "
        "starts at 0"
    )
