"""Action distributions without validation and broadcasting, for speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.observation import linear

_SMALL = 0.01
"""Gain of the weights of action heads. Small weights make the initial policy nearly uniform, so the first
updates do not depend on them."""
IMPOSSIBLE = -1e9
"""Logit of padding and forbidden choices: finite, so that 0 * log 0 is 0 in the entropy and its gradient."""
_LOG_STD_BOUNDS = (-5.0, 2.0)
"""Bounds of a log standard deviation that depends on the input, so that densities stay finite."""

Deviation = Literal["constant", "state"]
"""Standard deviation of Gaussian actions: a parameter (constant), or an output of the network (state)."""


@runtime_checkable
class Distribution(Protocol):
    """Interface of a batch of action distributions; `...` are any leading axes, such as batch and time."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Sample one action from each distribution of the batch."""
        ...

    def mode(self) -> Tensor:
        """Return the most likely action of each distribution."""
        ...

    def log_prob(self, action: Tensor) -> Float[Tensor, "..."]:
        """Return the log-probability or log-density of each action, in nats."""
        ...

    def entropy(self) -> Float[Tensor, "..."]:
        """Return the entropy, in nats."""
        ...

    def kl(self, other: Self) -> Float[Tensor, "..."]:
        """Return the exact divergence KL(self, other), in nats."""
        ...

    def outputs(self) -> Float[Tensor, "... outputs"]:
        """Return the normalized parameters of each distribution as one vector, such as log-probabilities."""
        ...

    def fisher(self, direction: Float[Tensor, "... outputs"]) -> Float[Tensor, "... outputs"]:
        """Return F v for a direction v, where F is the Fisher information with respect to `outputs`."""
        ...

    def agent(self, index: int) -> Self:
        """Return the distribution of agent `index`; the last leading axis must be the axis of agents."""
        ...

    def detach(self) -> Self:
        """Return a copy without gradients."""
        ...


class Categorical:
    """Categorical distribution over K choices, from logits `[..., K]`; actions are indices `[...]`."""

    __slots__ = ("log_probs",)

    def __init__(self, logits: Float[Tensor, "... choices"]) -> None:
        self.log_probs = logits.log_softmax(dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Sample indices by the Gumbel-max trick: the argmax of log p plus Gumbel noise."""
        noise = torch.empty_like(self.log_probs).exponential_(generator=generator)
        return (self.log_probs - noise.log_()).argmax(dim=-1)

    def mode(self) -> Tensor:
        """Return the most likely indices."""
        return self.log_probs.argmax(dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability of each index."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return the entropy."""
        return -(self.log_probs.exp() * self.log_probs).sum(dim=-1)

    def kl(self, other: Categorical) -> Tensor:
        """Return the divergence KL(self, other)."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(dim=-1)

    def barrier(self) -> Tensor:
        """Return the divergence KL(uniform, self), which grows without bound as a probability goes to 0."""
        there = self.log_probs > 0.5 * IMPOSSIBLE
        count = there.sum(dim=-1)
        return -torch.where(there, self.log_probs, 0).sum(dim=-1) / count - count.log()

    def restrict(self, mask: Bool[Tensor, "... choices"]) -> Self:
        """Return the distribution over the choices where `mask` is True; others have the probability 0."""

        def renormalize(log_probs: Tensor) -> Tensor:
            normalized = log_probs.masked_fill(~mask, IMPOSSIBLE).log_softmax(dim=-1)
            # Constant, so that divergences and differences of outputs have no rounding errors of this size.
            return normalized.masked_fill(~mask, IMPOSSIBLE)

        return self._map(renormalize)

    def outputs(self) -> Tensor:
        """Return the log-probabilities of all choices."""
        return self.log_probs

    def fisher(self, direction: Tensor) -> Tensor:
        """Return F v for the vector v = `direction`, where F is the Fisher information of `outputs`.

        F is diagonal: its entries are the probabilities of the choices.
        """
        return self.outputs().detach().exp() * direction

    def agent(self, index: int) -> Self:
        """Return the distribution of one agent."""
        return self._map(lambda log_probs: log_probs[..., index, :])

    def detach(self) -> Self:
        """Return a copy without gradients."""
        return self._map(Tensor.detach)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        result = object.__new__(type(self))
        result.log_probs = function(self.log_probs)
        return result


class IndependentCategoricals(Categorical):
    """N independent categorical distributions, from logits `[..., N, K]`; actions are indices `[..., N]`."""

    __slots__ = ()

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the joint log-probability of all N indices."""
        return super().log_prob(action).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Return the joint entropy of all N choices."""
        return super().entropy().sum(dim=-1)

    def kl(self, other: Categorical) -> Tensor:
        """Return KL(self, other), summed over the N distributions."""
        return super().kl(other).sum(dim=-1)

    def barrier(self) -> Tensor:
        """Return KL(uniform, self), summed over the N distributions."""
        return super().barrier().sum(dim=-1)

    def outputs(self) -> Tensor:
        """Return the log-probabilities of all choices, concatenated."""
        return self.log_probs.flatten(-2)

    def agent(self, index: int) -> Self:
        """Return the distribution of one agent."""
        return self._map(lambda log_probs: log_probs[..., index, :, :])


class DiagonalGaussian:
    """Normal distribution with diagonal covariance, from mean and log standard deviation `[..., N]`.

    The log standard deviation may also be `[N]`, or `[agents, N]` for agents.
    """

    __slots__ = ("log_std", "mean")

    def __init__(self, mean: Float[Tensor, "... numbers"], log_std: Float[Tensor, "... numbers"]) -> None:
        self.mean = mean
        self.log_std = log_std

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Sample actions."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return torch.addcmul(self.mean, self.log_std.exp(), noise)

    def mode(self) -> Tensor:
        """Return the mean."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the joint log-density of all N numbers."""
        deviations = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * deviations.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Return the joint entropy of all N numbers."""
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=-1)
        return entropy.expand(self.mean.shape[:-1])

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """Return KL(self, other), summed over the N numbers."""
        ratio = self.log_std - other.log_std
        distance = (self.mean - other.mean).square() * (-2 * other.log_std).exp()
        return (0.5 * ((2 * ratio).exp() + distance - 1) - ratio).sum(dim=-1)

    def outputs(self) -> Tensor:
        """Return the means followed by the log standard deviations."""
        return torch.cat([self.mean, self.log_std.expand_as(self.mean)], dim=-1)

    def fisher(self, direction: Tensor) -> Tensor:
        """Return F v for the vector v = `direction`, where F is the Fisher information of `outputs`.

        F is diagonal: its entries are 1 / variance for the means, and 2 for the log standard deviations.
        """
        mean_direction, log_std_direction = direction.chunk(2, dim=-1)
        return torch.cat([mean_direction * (-2 * self.log_std.detach()).exp(), 2 * log_std_direction], dim=-1)

    def agent(self, index: int) -> Self:
        """Return the distribution of one agent."""
        log_std = self.log_std if self.log_std.ndim == 1 else self.log_std[..., index, :]
        return type(self)(self.mean[..., index, :], log_std)

    def detach(self) -> Self:
        """Return a copy without gradients."""
        return type(self)(self.mean.detach(), self.log_std.detach())


def stack_agents(distributions: Sequence[Distribution]) -> Distribution:
    """Stack the distributions of all agents, which must have the same class.

    The new axis of agents follows the leading axes of the inputs, such as batch and time.
    """
    first = distributions[0]
    if isinstance(first, DiagonalGaussian):
        means = torch.stack([one.mean for one in distributions], dim=-2)  # pyright: ignore[reportAttributeAccessIssue]
        log_stds = torch.stack([one.log_std for one in distributions], dim=-2)  # pyright: ignore[reportAttributeAccessIssue]
        return DiagonalGaussian(means, log_stds)
    assert isinstance(first, Categorical)
    axis = -3 if isinstance(first, IndependentCategoricals) else -2
    log_probs = [one.log_probs for one in distributions]  # pyright: ignore[reportAttributeAccessIssue]
    return first._map(lambda _: torch.stack(log_probs, dim=axis))


class CategoricalHead(nn.Module):
    """Action head for Discrete, MultiDiscrete and MultiBinary spaces."""

    impossible: Tensor | None
    places: Tensor

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary, dim: int) -> None:
        super().__init__()
        self.shape = tuple(space.shape or ())
        self.dtype = space.dtype
        if isinstance(space, spaces.Discrete):
            sizes, self.first = np.array([int(space.n)]), np.array(int(space.start))
        elif isinstance(space, spaces.MultiDiscrete):
            sizes, self.first = space.nvec.ravel(), np.asarray(space.start)
        else:
            sizes, self.first = np.full(math.prod(space.shape), 2), np.array(0)
        self.single = isinstance(space, spaces.Discrete)
        self.choices = (len(sizes), int(sizes.max()))
        self.linear = linear(dim, len(sizes) * int(sizes.max()), _SMALL)
        impossible = np.arange(int(sizes.max())) >= sizes[:, None] if sizes.min() < sizes.max() else None
        padding = None if impossible is None else torch.as_tensor(impossible)
        self.register_buffer("impossible", padding, persistent=False)
        # Index of each logit in an action mask, which has no entries for padding.
        places = np.minimum((np.cumsum(sizes) - sizes)[:, None] + np.arange(sizes.max()), sizes.sum() - 1)
        self.register_buffer("places", torch.as_tensor(places.ravel()), persistent=False)

    def forward(
        self, features: Float[Tensor, "... dim"], mask: Bool[Tensor, "... actions"] | None = None
    ) -> Categorical:
        """Return the distribution over zero-based indices.

        `mask` is True for allowed actions; for a MultiDiscrete space the masks of all parts are concatenated.
        The other actions have the probability 0 and no gradient.
        """
        logits = self.linear(features)
        if self.single:
            return Categorical(logits) if mask is None else Categorical(logits).restrict(mask)
        logits = logits.unflatten(-1, self.choices)
        if self.impossible is not None:
            logits = logits.masked_fill(self.impossible, IMPOSSIBLE)
        if mask is None:
            return IndependentCategoricals(logits)
        by_part = mask.index_select(-1, self.places).unflatten(-1, self.choices)
        if self.impossible is not None:
            by_part = by_part & ~self.impossible
        return IndependentCategoricals(logits).restrict(by_part)

    def to_env(self, action: Tensor) -> np.ndarray:
        """Convert sampled indices to the environment's space: add its start value, set shape and dtype."""
        array = action.cpu().numpy()
        if self.single:
            return array + self.first if self.first else array
        return (array.reshape(*array.shape[:-1], *self.shape) + self.first).astype(self.dtype)


class GaussianHead(nn.Module):
    """Gaussian action head for Box spaces.

    In a dimension with two finite bounds the samples -1, 0 and 1 stand for the lower bound, the center and
    the upper bound. All other dimensions keep their units: the sample 0 stands for the number in the space
    that is nearest to 0, and the sample 1 for a number that is larger by 1. Numbers beyond a bound are
    clipped.

    With `deviation="constant"` the standard deviation is a parameter. With `deviation="state"` it depends on
    the features, and its logarithm is bounded smoothly.
    """

    def __init__(self, space: spaces.Box, dim: int, deviation: Deviation = "constant") -> None:
        super().__init__()
        self.shape = space.shape
        self.dtype = space.dtype
        self.low, self.high = space.low, space.high
        # An untrained policy has mean 0 and standard deviation 1, which should cover the range.
        is_bounded = np.isfinite(space.low) & np.isfinite(space.high)
        low = np.where(is_bounded, space.low, -1.0).astype(np.float64)
        high = np.where(is_bounded, space.high, 1.0).astype(np.float64)
        nearest = np.clip(0.0, space.low, space.high)
        self.centre = np.where(is_bounded, low / 2 + high / 2, nearest)
        self.half_range = high / 2 - low / 2
        count = math.prod(space.shape)
        self.linear = linear(dim, count, _SMALL)
        self.log_std = nn.Parameter(torch.zeros(count)) if deviation == "constant" else None
        self.deviation = linear(dim, count, _SMALL) if deviation == "state" else None

    def forward(self, features: Float[Tensor, "... dim"]) -> DiagonalGaussian:
        """Return the distribution over unbounded numbers."""
        if self.deviation is None:
            assert self.log_std is not None
            return DiagonalGaussian(self.linear(features), self.log_std)
        return DiagonalGaussian(self.linear(features), _bound_log_std(self.deviation(features)))

    def to_env(self, action: Tensor) -> np.ndarray:
        """Convert sampled actions to the environment's space: scale, clip to bounds, set shape and dtype."""
        array = action.cpu().numpy()
        values = array.reshape(*array.shape[:-1], *self.shape) * self.half_range + self.centre
        return np.clip(values, self.low, self.high).astype(self.dtype)


def _bound_log_std(value: Tensor) -> Tensor:
    """Bound log standard deviations to `_LOG_STD_BOUNDS`; near 0 the result equals `value`."""
    low, high = _LOG_STD_BOUNDS
    return torch.where(value < 0, low * (value / low).tanh(), high * (value / high).tanh())


def make_part_head(
    space: spaces.Space, dim: int, deviation: Deviation = "constant"
) -> CategoricalHead | GaussianHead:
    """Return the head that maps features of width `dim` to a distribution over a space without parts.

    `deviation` applies to a Box only. Raises TypeError if the space is not supported.
    """
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return CategoricalHead(space, dim)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return GaussianHead(space, dim, deviation)
    raise TypeError(
        f"action space {space} is not supported; use Discrete, MultiDiscrete, MultiBinary, a Box of floats, "
        "or a Dict or Tuple of these"
    )
