"""Image encoder: strided convolutions, optionally with attention between regions."""

from __future__ import annotations

from typing import Literal

from gymnasium import spaces
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.layers import Scale, initialise, linear
from scrubjay.agents.rl.encoders.routing import REGIONS, RoutingBlock
from scrubjay.agents.rl.encoders.shape import IMAGE_CHANNELS, channels_last, halving_channels, image_shape

ImageEncoderType = Literal["convolution", "routing"]
"""Architecture of the image encoder; see `ImageEncoder`."""

_MAX_ROUTING_SIDE = 16  # tokens along the shorter side


class ImageEncoder(nn.Module):
    """Convolutional encoder: stride-2 layers until the shorter side is at most 8 pixels, then a linear layer.

    With `encoder_type="routing"` a `RoutingBlock` follows the first feature map whose shorter side is at most
    16. Raises ValueError if a side of the image has fewer pixels than the block has regions along each side.
    """

    def __init__(self, space: spaces.Box, dim: int, encoder_type: ImageEncoderType = "convolution") -> None:
        super().__init__()
        self.scale = Scale(space)
        self.channels_last = channels_last(space)
        channels, height, width = image_shape(space)
        maps = halving_channels(height, width)
        layers: list[nn.Module] = []
        has_routing = encoder_type == "convolution"
        if not has_routing and min(height, width) < REGIONS:
            raise ValueError(
                f"images='routing' needs at least {REGIONS} x {REGIONS} pixels, one per region; the image "
                f"has {height} x {width}: use images='convolution'"
            )
        if not has_routing and not maps:
            # The image is too small for any stride-2 layer.
            layers.append(_init_convolution(nn.Conv2d(channels, IMAGE_CHANNELS[0], kernel_size=1)))
            layers.append(RoutingBlock(IMAGE_CHANNELS[0], height, width))
            channels, has_routing = IMAGE_CHANNELS[0], True
        for out_channels in maps:
            convolution = nn.Conv2d(channels, out_channels, kernel_size=4, stride=2, padding=1)
            layers += [_init_convolution(convolution), nn.SiLU()]
            channels, height, width = out_channels, height // 2, width // 2
            if not has_routing and min(height, width) <= _MAX_ROUTING_SIDE:
                layers.append(RoutingBlock(channels, height, width))
                has_routing = True
        self.convolutions = nn.Sequential(*layers)
        self.linear = linear(channels * height * width, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images `[batch, *shape]` as `[batch, dim]`."""
        images = self.scale(images).to(self.linear.weight.dtype)
        if self.channels_last:
            images = images.movedim(-1, 1)
        features = self.convolutions(images).flatten(1)
        return nn.functional.silu(self.linear(features))


def _init_convolution(convolution: nn.Conv2d) -> nn.Conv2d:
    initialise(convolution)
    return convolution
