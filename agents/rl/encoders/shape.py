"""What a space says of an image: its axes, and how often it is halved."""

from __future__ import annotations

import math

from gymnasium import spaces

IMAGE_CHANNELS = (16, 32, 32, 64)
"""Feature maps of the image encoder's layers; deeper ones repeat the last."""


def is_image(space: spaces.Space) -> bool:
    """Return whether a space is a Box of three axes."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3


def channels_last(space: spaces.Box) -> bool:
    """Return whether an image's last axis is the channels: the shorter of first and last, last in a draw."""
    return space.shape[-1] <= space.shape[0]


def image_shape(space: spaces.Box) -> tuple[int, int, int]:
    """Return an image's channels, height and width."""
    if channels_last(space):
        return space.shape[2], space.shape[0], space.shape[1]
    return space.shape[0], space.shape[1], space.shape[2]


def halving_channels(height: int, width: int) -> list[int]:
    """Return the feature maps of each halving layer that brings the shorter side down to 8 pixels."""
    count = max(0, math.ceil(math.log2(min(height, width) / 8)))
    return [IMAGE_CHANNELS[min(layer, len(IMAGE_CHANNELS) - 1)] for layer in range(count)]
