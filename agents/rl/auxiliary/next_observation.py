"""Auxiliary loss of predicting the next observation from the memory's output and the action."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.agents.rl.auxiliary.reconstruction import Reconstruction
from scrubjay.agents.rl.encoders.observation import ObservationEncoder
from scrubjay.agents.rl.observations import from_leaves, to_leaves
from scrubjay.agents.rl.segment import Segment


class NextObservation(nn.Module):
    """Head that predicts the next observation of the same episode from features and the action.

    Reconstructing the current observation needs no memory, since the policy receives it. Predicting the
    next observation needs past observations. The loss function is the same as in `Reconstruction`. The
    predictive heads of Wayne et al. 2018 (MERLIN, arXiv 1803.10760) are similar, but also learn a prior.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, dim: int) -> None:
        super().__init__()
        self.action = ObservationEncoder(_as_sampled(action_space), dim)
        self.features = nn.Linear(dim, dim)
        self.predict = Reconstruction(observation_space, dim)

    def forward(self, features: Float[Tensor, "batch time dim"], segment: Segment) -> Float[Tensor, ""]:
        """Return the mean loss over steps whose next step is in the same episode; 0 if there are none."""
        follows = ~segment.starts[:, 1:]
        if not follows.any():
            return features.sum() * 0
        action_features = self.action(segment.actions[:, :-1][follows])
        leaves = {key: leaf[:, 1:][follows] for key, leaf in to_leaves(segment.observations).items()}
        both = nn.functional.silu(self.features(features[:, :-1][follows]) + action_features)
        return self.predict(both, from_leaves(leaves))


def _as_sampled(space: spaces.Space) -> spaces.Space:
    """Return the space of a policy's sampled actions: zero-based indices or unbounded numbers.

    The action head's `to_env` later converts these actions to `space`, the environment's action space.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec)
    if isinstance(space, spaces.Box):
        return spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    return space
