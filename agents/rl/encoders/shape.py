"""Image shapes: axes of an image space and layer widths of the image encoder."""

from __future__ import annotations

import math

from gymnasium import spaces

IMAGE_CHANNELS = (16, 32, 32, 64)
"""Output channels of the image encoder's layers; deeper layers repeat the last number."""


def is_image(space: spaces.Space) -> bool:
    """Return True if a space is a Box with three axes."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3


def channels_last(space: spaces.Box) -> bool:
    """Return True if an image space has channels last: the last axis is not longer than the first."""
    return space.shape[-1] <= space.shape[0]


def image_shape(space: spaces.Box) -> tuple[int, int, int]:
    """Return the channels, height and width of an image space."""
    if channels_last(space):
        return space.shape[2], space.shape[0], space.shape[1]
    return space.shape[0], space.shape[1], space.shape[2]


def halving_channels(height: int, width: int) -> list[int]:
    """Return the number of output channels of each stride-2 layer of the image encoder.

    The layers reduce the shorter side of the image to at most 8 pixels.
    """
    count = max(0, math.ceil(math.log2(min(height, width) / 8)))
    return [IMAGE_CHANNELS[min(layer, len(IMAGE_CHANNELS) - 1)] for layer in range(count)]
