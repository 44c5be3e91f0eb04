"""Choice of a policy's encoder by name: a built-in encoder or `module:factory`."""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.images import is_image
from scrubjay.agents.rl.encoders.observation import (
    EntityEncoder,
    ImageEncoderType,
    IndexEncoder,
    Pooling,
    linear,
    make_encoder,
)
from scrubjay.agents.rl.observations import from_leaves, leaf_dtype, leaf_spaces
from scrubjay.agents.rl.segment import Observation

ENCODERS = ("linear", "mlp", "nature", "impala")
"""Names of the built-in encoders; see `PolicyConfig.encoder`."""
HIDDEN_SIZES = (64, 64)
"""Default widths of the hidden layers of the encoder "mlp"."""

_FACTORY = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


class UntrustedName(str):
    """Name of code from an untrusted file: of an environment, a wrapper or an encoder. The code must not run.

    The class is a str, so that it is serialized, compared and sent to workers like other names. The name
    stays untrusted when other fields of its config change.
    """

    reason: str
    """Why the name is not trusted."""

    def __new__(cls, name: str, reason: str = "the name comes from a file") -> Self:
        """Return a name that is not trusted for `reason`."""
        value = super().__new__(cls, name)
        value.reason = reason
        return value


def is_factory(name: str) -> bool:
    """Return True if `name` is the `module:factory` of an encoder, which is code of the user."""
    return ":" in name


def check_encoder(name: str, sizes: Sequence[int], images: ImageEncoderType, pooling: Pooling) -> None:
    """Raise ValueError if an encoder does not exist, or if a setting would have no effect on it."""
    if name not in ENCODERS and not _FACTORY.fullmatch(name):
        raise ValueError(
            f"encoder={str(name)!r:.80}: choose from {', '.join(ENCODERS)}, or write module:factory"
        )
    if name == "mlp":
        if not sizes or min(sizes) < 1:
            raise ValueError(f"encoder_sizes={tuple(sizes)}: mlp needs at least one width of at least 1")
    elif tuple(sizes) != HIDDEN_SIZES:
        raise ValueError(f"encoder_sizes={tuple(sizes)} has an effect only with encoder='mlp', not {name!r}")
    if images != "auto" and name not in ("linear", "mlp"):
        raise ValueError(
            f"images={images!r} has no effect with encoder={str(name)!r}, which encodes images itself"
        )
    if pooling != "attention" and is_factory(name):
        raise ValueError(
            f"pooling={pooling!r} has no effect with encoder={str(name)!r}, which encodes sets itself"
        )


def build_encoder(
    name: str,
    space: spaces.Space,
    dim: int,
    sizes: Sequence[int] = HIDDEN_SIZES,
    pooling: Pooling = "attention",
    images: ImageEncoderType = "auto",
) -> nn.Module:
    """Return an encoder of observations of `space`, with output `[batch, dim]`.

    Raises TypeError or ValueError if the encoder does not support `space`.

    Args:
        name: One of `ENCODERS`, or `module:factory`.
        space: Observation space.
        dim: Number of features.
        sizes: Widths of the hidden layers of "mlp".
        pooling: Pooling of sets.
        images: Image encoder of "linear" and "mlp".
    """
    if is_factory(name):
        return CustomEncoder(name, space, dim)
    if name == "mlp":
        return MLPEncoder(make_encoder(space, sizes[0], pooling, images), sizes, dim)
    if name == "linear":
        return make_encoder(space, dim, pooling, images)
    if not any(map(is_image, leaf_spaces(space).values())):
        raise ValueError(
            f"encoder {name!r} needs an image; the observation space {space} has none: choose linear or mlp"
        )
    return make_encoder(space, dim, pooling, cast(Any, name))


class MLPEncoder(nn.Module):
    """Encoder "linear" of width `sizes[0]`, and a linear layer with SiLU for each further width and `dim`."""

    def __init__(self, first: nn.Module, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.first = first
        widths = [*sizes, dim]
        layers: list[nn.Module] = [] if _ends_with_activation(first) else [nn.SiLU()]
        for inputs, outputs in itertools.pairwise(widths):
            layers += [linear(inputs, outputs), nn.SiLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, observation: Observation) -> Tensor:
        """Encode observations, whose leaves are `[batch, *shape]`, as one vector each."""
        return self.layers(self.first(observation))


def _ends_with_activation(encoder: Any) -> bool:
    if isinstance(encoder, EntityEncoder):
        return True
    return encoder.project is None and not isinstance(encoder.encoders[0], IndexEncoder)


class CustomEncoder(nn.Module):
    """Encoder that the user's `module:factory` makes, called as `factory(observation_space, dim)`.

    The factory returns a module from observations to features `[batch, dim]`. An observation is a tensor
    `[batch, *shape]`, or for Dict and Tuple spaces a dict of such tensors, with keys such as "body/speed".
    Values are those of the environment: images are not scaled. Raises ValueError on an `UntrustedName` and
    if the factory fails, and TypeError if it returns something else.
    """

    def __init__(self, name: str, space: spaces.Space, dim: int) -> None:
        super().__init__()
        self.name, self.dim = str(name), dim
        factory = _load_factory(name)
        try:
            module = factory(space, dim)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                f"encoder {self.name!r} rejects the observation space {space} with dim={dim}: {reason}"
            ) from error
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"encoder {self.name!r} returned a {type(module).__name__}, not a torch.nn.Module"
            )
        self.module = module
        if not torch.empty(()).is_meta:
            self._try_out(space)

    def _try_out(self, space: spaces.Space) -> None:
        """Encode two observations, to find a wrong shape before training."""
        leaves = {}
        for key, leaf in leaf_spaces(space).items():
            start = torch.as_tensor(getattr(leaf, "start", 0), dtype=leaf_dtype(leaf))
            leaves[key] = start.expand(2, *(leaf.shape or ())).clone()
        training = self.module.training
        self.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            self(from_leaves(leaves))
        self.module.train(training)

    def forward(self, observation: Observation) -> Tensor:
        """Encode observations. Raises ValueError if the module returns another shape than `[batch, dim]`."""
        features = self.module(observation)
        if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[1] != self.dim:
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"encoder {self.name!r} returned {shape}; expected a tensor [batch, {self.dim}]")
        return features


def _load_factory(name: str) -> Callable[..., Any]:
    """Import and return the function of `module:factory`."""
    if isinstance(name, UntrustedName):
        raise ValueError(  # noqa: TRY004  (the value is untrusted, not the type wrong)
            f"encoder {str(name)!r}: {name.reason}, and importing its module executes code from outside "
            "Scrubjay; add --trust if you trust it (in Python trust=True)"
        )
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(
            f"encoder {name!r}: {error}; write module:factory with a module in the current folder or an "
            "installed one"
        ) from error
    except AttributeError as error:
        raise ValueError(f"encoder {name!r}: {error}") from error
    if not callable(factory):
        raise TypeError(f"encoder {name!r}: {attribute} is a {type(factory).__name__}, not a callable")
    return factory
