"""Auxiliary losses by name: prediction tasks on the memory's output that teach it what to retain.

If a memory is read without gradients, only an auxiliary loss trains its contents (Lampinen et al. 2021, arXiv
2105.14039). The decoders of that paper are not published. The decoders here mirror our encoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.agents.rl.composite import action_leaves, split_actions
from scrubjay.agents.rl.encoders.images import ImageLayout, is_image
from scrubjay.agents.rl.encoders.observation import (
    ObservationEncoder,
    Scale,
    category_sizes,
    halving_channels,
    make_encoder,
    mask_padding,
)
from scrubjay.agents.rl.observations import from_leaves, leaf_spaces, to_leaves
from scrubjay.agents.rl.segment import Observation, Segment

Auxiliary = Literal["reconstruction", "next_observation", "verifier"]

_HORIZONS = (1, 4, 16)
"""Numbers of steps from a step to the observations that `Verifier` must identify."""


class Reconstruction(nn.Module):
    """Decoder that predicts the current observation from features.

    The loss is a sum over the leaves of the observation space. Images with finite bounds and MultiBinary
    leaves have a sigmoid cross-entropy, averaged over pixels or bits. Discrete and MultiDiscrete leaves have
    a softmax cross-entropy, averaged over entries. All other Box leaves have a mean squared error. In sets
    (see `EntityEncoder`), the target for padding is 0 for numbers and the lowest valid index for indices.
    """

    def __init__(self, space: spaces.Space, dim: int) -> None:
        super().__init__()
        self.leaves = leaf_spaces(space)
        self.decoders = nn.ModuleList(_leaf_decoder(leaf, dim) for leaf in self.leaves.values())

    def forward(self, features: Float[Tensor, "batch dim"], observation: Observation) -> Float[Tensor, ""]:
        """Return the mean loss of reconstructing each observation from the features of the same batch row."""
        leaves = mask_padding(to_leaves(observation), self.leaves)
        losses = [
            decode(features, leaves[key]) for key, decode in zip(self.leaves, self.decoders, strict=True)
        ]
        return torch.stack(losses).sum()


class SegmentReconstruction(nn.Module):
    """Head that applies `Reconstruction` to every step of a segment."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, dim: int) -> None:
        super().__init__()
        self.predict = Reconstruction(observation_space, dim)

    def forward(self, features: Float[Tensor, "batch time dim"], segment: Segment) -> Float[Tensor, ""]:
        """Return the mean loss of reconstructing the observation of each step."""
        leaves = {key: leaf.flatten(0, 1) for key, leaf in to_leaves(segment.observations).items()}
        return self.predict(features.flatten(0, 1), from_leaves(leaves))


class _IndexDecoder(nn.Module):
    starts: Tensor
    places: Tensor

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete, dim: int) -> None:
        super().__init__()
        sizes, starts = category_sizes(space)
        self.register_buffer("starts", torch.as_tensor(starts), persistent=False)
        self.linear = nn.Linear(dim, int(sizes.sum()))
        # Index of each entry's logits. Entries with fewer categories are padded by an extra last column of
        # -inf.
        within = np.arange(sizes.max())
        places = np.where(within < sizes[:, None], (np.cumsum(sizes) - sizes)[:, None] + within, sizes.sum())
        self.register_buffer("places", torch.as_tensor(places), persistent=False)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        logits = functional.pad(self.linear(features), (0, 1), value=-torch.inf)
        by_entry = logits.index_select(1, self.places.flatten()).unflatten(1, self.places.shape)
        indices = target.reshape(target.shape[0], -1) - self.starts
        return functional.cross_entropy(by_entry.flatten(0, 1), indices.flatten())


class _VectorDecoder(nn.Module):
    def __init__(self, space: spaces.Box | spaces.MultiBinary, dim: int) -> None:
        super().__init__()
        self.scale = Scale(space)
        self.binary = isinstance(space, spaces.MultiBinary)
        self.linear = nn.Linear(dim, math.prod(space.shape))

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        prediction = self.linear(features)
        target = self.scale(target).to(prediction.dtype).reshape(prediction.shape)
        if self.binary:
            return functional.binary_cross_entropy_with_logits(prediction, target)
        return functional.mse_loss(prediction, target)


class _ImageDecoder(nn.Module):
    """Transposed convolutions that double a small feature map until it covers the image, then a crop."""

    def __init__(self, space: spaces.Box, dim: int) -> None:
        super().__init__()
        self.scale = Scale(space)
        self.layout = ImageLayout.from_space(space)
        channels, self.height, self.width = self.layout.channels, self.layout.height, self.layout.width
        hidden = halving_channels(self.height, self.width)[::-1]
        factor = 2 ** len(hidden)
        self.small = (hidden[0] if hidden else channels, -(-self.height // factor), -(-self.width // factor))
        self.linear = nn.Linear(dim, math.prod(self.small))
        layers: list[nn.Module] = []
        for inputs, outputs in zip(hidden, [*hidden[1:], channels], strict=False):
            layers += [nn.SiLU(), nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1)]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        prediction = self.convolutions(self.linear(features).unflatten(-1, self.small))
        prediction = prediction[..., : self.height, : self.width]
        target = self.layout.channels_first(self.scale(target).to(prediction.dtype))
        if self.scale.is_bounded:
            return functional.binary_cross_entropy_with_logits(prediction, target)
        return functional.mse_loss(prediction, target)


def _leaf_decoder(space: spaces.Space, dim: int) -> nn.Module:
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return _IndexDecoder(space, dim)
    if isinstance(space, spaces.Box) and is_image(space):
        return _ImageDecoder(space, dim)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return _VectorDecoder(space, dim)
    raise TypeError(f"no decoder for space {space}; use Box, Discrete, MultiDiscrete or MultiBinary")


class NextObservation(nn.Module):
    """Head that predicts the next observation of the same episode from features and the action.

    Reconstructing the current observation needs no memory, since the policy receives it. Predicting the
    next observation needs past observations. The loss function is the same as in `Reconstruction`. The
    predictive heads of Wayne et al. 2018 (MERLIN, arXiv 1803.10760) are similar, but also learn a prior.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, dim: int) -> None:
        super().__init__()
        is_composite = isinstance(action_space, (spaces.Dict, spaces.Tuple))
        self.parts = action_leaves(action_space) if is_composite else None
        self.action = ObservationEncoder(_as_sampled(action_space), dim)
        self.features = nn.Linear(dim, dim)
        self.predict = Reconstruction(observation_space, dim)

    def forward(self, features: Float[Tensor, "batch time dim"], segment: Segment) -> Float[Tensor, ""]:
        """Return the mean loss over steps whose next step is in the same episode; 0 if there are none."""
        follows = ~segment.starts[:, 1:]
        if not follows.any():
            return features.sum() * 0
        actions = segment.actions[:, :-1][follows]
        if self.parts is not None:
            actions = {str(key): part for key, part in enumerate(split_actions(self.parts, actions))}
        action_features = self.action(actions)
        leaves = {key: leaf[:, 1:][follows] for key, leaf in to_leaves(segment.observations).items()}
        both = nn.functional.silu(self.features(features[:, :-1][follows]) + action_features)
        return self.predict(both, from_leaves(leaves))


def _as_sampled(space: spaces.Space) -> spaces.Space:
    """Return the space of a policy's sampled actions: zero-based indices or unbounded numbers.

    The action head's `to_env` later converts these actions to `space`, the environment's action space. The
    result for a Dict or Tuple space is a Tuple of its parts.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return spaces.Tuple([_as_sampled(part) for part in action_leaves(space)])
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec)
    if isinstance(space, spaces.Box):
        return spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    return space


class Verifier(nn.Module):
    """Head that identifies, from the features of a step, the observations 1, 4 and 16 steps later.

    The candidates are the observations of all environments at the later step. This is the verifier of the
    Consciousness Prior (Bengio 2017, arXiv 1709.08568, section 2.2), which matches a past conscious state
    with the present. The memory must retain information that predicts later observations, but need not
    reconstruct them. The paper does not specify the verifier. Here its score is bilinear, with a softmax over
    the batch, as in van den Oord et al. 2018 (arXiv 1807.03748). A batch of one has no negatives, so its loss
    is 0.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, dim: int) -> None:
        super().__init__()
        self.encoder = make_encoder(observation_space, dim)
        self.tell = nn.Linear(dim, len(_HORIZONS) * dim)

    def forward(self, features: Float[Tensor, "batch time dim"], segment: Segment) -> Float[Tensor, ""]:
        """Return the mean loss over all pairs of steps that lie in the same episode, 1, 4 or 16 steps apart.

        Returns 0 if there are no such pairs.
        """
        rows = {key: leaf.flatten(0, 1) for key, leaf in to_leaves(segment.observations).items()}
        targets = self.encoder(from_leaves(rows)).unflatten(0, segment.starts.shape)
        episode = segment.starts.cumsum(1)
        losses = []
        for later, query in zip(_HORIZONS, self.tell(features).chunk(len(_HORIZONS), dim=-1), strict=True):
            scores = torch.einsum("btd,ctd->tbc", query[:, :-later], targets[:, later:])
            scores = scores * targets.shape[-1] ** -0.5
            own = scores.log_softmax(-1).diagonal(dim1=1, dim2=2).T
            losses.append(-own[episode[:, later:] == episode[:, :-later]])
        loss = torch.cat(losses)
        return loss.mean() if len(loss) else features.sum() * 0


HEADS: dict[Auxiliary, Callable[[spaces.Space, spaces.Space, int], nn.Module]] = {
    "reconstruction": SegmentReconstruction,
    "next_observation": NextObservation,
    "verifier": Verifier,
}
"""Head classes by name, built from observation space, action space and feature width.

A head maps features and their segment to a scalar loss."""
