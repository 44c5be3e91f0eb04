"""Self-supervised reconstruction: the memory's output must suffice to redraw what was just seen.

Nothing else teaches a memory that is read without gradients what to keep. Lampinen et al. 2021
(arXiv 2105.14039); its decoders are not published, so these mirror our encoders.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.agents.rl.encoders.entities import without_padding
from scrubjay.agents.rl.encoders.layers import Scale
from scrubjay.agents.rl.encoders.observation import category_sizes
from scrubjay.agents.rl.encoders.shape import channels_last, halving_channels, image_shape, is_image
from scrubjay.agents.rl.observations import from_leaves, leaf_spaces, to_leaves
from scrubjay.agents.rl.segment import Observation, Segment


class Reconstruction(nn.Module):
    """Predicts the current observation from features and scores the prediction, summed over its leaves.

    Images with bounds and MultiBinary: sigmoid cross-entropy, the mean over pixels or bits. Discrete and
    MultiDiscrete: softmax cross-entropy, the mean over entries. Other boxes: mean squared error. Of sets, as
    `EntityEncoder` knows them, empty slots are to be drawn empty, whatever they hold.
    """

    def __init__(self, space: spaces.Space, dim: int) -> None:
        super().__init__()
        self.leaves = leaf_spaces(space)
        self.decoders = nn.ModuleList(_leaf_decoder(leaf, dim) for leaf in self.leaves.values())

    def forward(self, features: Float[Tensor, "batch dim"], observation: Observation) -> Float[Tensor, ""]:
        """Return the mean loss of redrawing each observation from the features of the same row."""
        leaves = without_padding(to_leaves(observation), self.leaves)
        losses = [
            decode(features, leaves[key]) for key, decode in zip(self.leaves, self.decoders, strict=True)
        ]
        return torch.stack(losses).sum()


class Redrawing(nn.Module):
    """`Reconstruction` of a whole segment."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, dim: int) -> None:
        super().__init__()
        self.predict = Reconstruction(observation_space, dim)

    def forward(self, features: Float[Tensor, "batch time dim"], segment: Segment) -> Float[Tensor, ""]:
        """Return the mean loss of redrawing what is seen in each step."""
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
        # Where each entry's logits lie; behind them all a column of nothing, for entries of fewer categories.
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
        predicted = self.linear(features)
        target = self.scale(target).to(predicted.dtype).reshape(predicted.shape)
        if self.binary:
            return functional.binary_cross_entropy_with_logits(predicted, target)
        return functional.mse_loss(predicted, target)


class _ImageDecoder(nn.Module):
    """Transposed convolutions that double a small map until it covers the image, then a crop."""

    def __init__(self, space: spaces.Box, dim: int) -> None:
        super().__init__()
        self.scale = Scale(space)
        self.channels_last = channels_last(space)
        channels, self.height, self.width = image_shape(space)
        hidden = halving_channels(self.height, self.width)[::-1]
        factor = 2 ** len(hidden)
        self.small = (hidden[0] if hidden else channels, -(-self.height // factor), -(-self.width // factor))
        self.linear = nn.Linear(dim, math.prod(self.small))
        layers: list[nn.Module] = []
        for inputs, outputs in zip(hidden, [*hidden[1:], channels], strict=False):
            layers += [nn.SiLU(), nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1)]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        predicted = self.convolutions(self.linear(features).unflatten(-1, self.small))
        predicted = predicted[..., : self.height, : self.width]
        target = self.scale(target).to(predicted.dtype)
        if self.channels_last:
            target = target.movedim(-1, 1)
        if self.scale.bounded:
            return functional.binary_cross_entropy_with_logits(predicted, target)
        return functional.mse_loss(predicted, target)


def _leaf_decoder(space: spaces.Space, dim: int) -> nn.Module:
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return _IndexDecoder(space, dim)
    if isinstance(space, spaces.Box) and is_image(space):
        return _ImageDecoder(space, dim)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return _VectorDecoder(space, dim)
    raise TypeError(f"no decoder for space {space}")
