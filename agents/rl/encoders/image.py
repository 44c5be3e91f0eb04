"""Encoder of images: convolutions that halve them, and, of one kind, attention between regions."""

from __future__ import annotations

from typing import Literal

from gymnasium import spaces
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.layers import Scale, initialise, linear
from scrubjay.agents.rl.encoders.routing import REGIONS, RoutingBlock
from scrubjay.agents.rl.encoders.shape import IMAGE_CHANNELS, channels_last, halving_channels, image_shape

ImageKind = Literal["convolution", "routing"]
"""How images become one vector; see `ImageEncoder`."""

_MOST_ROUTED = 16  # tokens along the shorter side


class ImageEncoder(nn.Module):
    """Convolutions that halve the image until its shorter side is at most 8 pixels, then a linear layer.

    Of the kind "routing" the first map whose shorter side is at most 16 goes through a `RoutingBlock`. Raises
    ValueError if an image is too small for its regions.
    """

    def __init__(self, space: spaces.Box, dim: int, kind: ImageKind = "convolution") -> None:
        super().__init__()
        self.scale = Scale(space)
        self.channels_last = channels_last(space)
        channels, height, width = image_shape(space)
        maps = halving_channels(height, width)
        layers: list[nn.Module] = []
        routed = kind == "convolution"
        if not routed and min(height, width) < REGIONS:
            raise ValueError(
                f"images='routing' cuts an image into {REGIONS} x {REGIONS} regions, which one of {height} x "
                f"{width} pixels is too small for; use images='convolution'"
            )
        if not routed and not maps:
            # So small an image is never halved.
            layers.append(_initialised(nn.Conv2d(channels, IMAGE_CHANNELS[0], kernel_size=1)))
            layers.append(RoutingBlock(IMAGE_CHANNELS[0], height, width))
            channels, routed = IMAGE_CHANNELS[0], True
        for out_channels in maps:
            convolution = nn.Conv2d(channels, out_channels, kernel_size=4, stride=2, padding=1)
            layers += [_initialised(convolution), nn.SiLU()]
            channels, height, width = out_channels, height // 2, width // 2
            if not routed and min(height, width) <= _MOST_ROUTED:
                layers.append(RoutingBlock(channels, height, width))
                routed = True
        self.convolutions = nn.Sequential(*layers)
        self.linear = linear(channels * height * width, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Return `[batch, dim]` from `[batch, *shape]`."""
        images = self.scale(images).to(self.linear.weight.dtype)
        if self.channels_last:
            images = images.movedim(-1, 1)
        features = self.convolutions(images).flatten(1)
        return nn.functional.silu(self.linear(features))


def _initialised(convolution: nn.Conv2d) -> nn.Conv2d:
    initialise(convolution)
    return convolution
