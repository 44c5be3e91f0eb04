"""Layout of images in observations: color or grayscale images, videos and grids of cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from torch import Tensor

_LEAST_GRAYSCALE = 32
"""Smallest side of a grayscale image in pixels; smaller arrays with two axes are tables of numbers."""
_MOST_GRID = 31
"""Largest shorter side of a grid of cells."""


def is_image(space: spaces.Space) -> bool:
    """Return True if a space is a Box of images.

    A Box with three axes is an image with its channels first or last. A Box with four axes is a video or
    stack of such images, with the frames first. A Box of bytes with two axes is a grayscale image if it has
    at least 32 x 32 pixels.
    """
    if not isinstance(space, spaces.Box):
        return False
    if len(space.shape) == 2:
        is_large = min(space.shape) >= _LEAST_GRAYSCALE
        return is_large and space.dtype == np.uint8 and bool(space.high.max() > 1)
    return len(space.shape) in (3, 4)


@dataclass(frozen=True)
class ImageLayout:
    """Axes of an image space; an encoder reads an image as `[channels, height, width]`."""

    channels: int
    """Number of channels of all frames together."""
    height: int
    width: int
    axes: int
    """Number of axes: 2 for a grayscale image, 3 for an image with channels, 4 for a video."""
    channels_last: bool

    @classmethod
    def from_space(cls, space: spaces.Box, is_grid: bool = False) -> ImageLayout:
        """Return the layout of a space for which `is_image` is True.

        Channels are last if the last axis is not longer than the first. In a grid of cells, channels may
        outnumber the cells along a side, so the axes of a square grid are those of equal length. Raises
        TypeError if a video does not have its frames first.
        """
        shape = space.shape
        if len(shape) == 2:
            return cls(1, *shape, axes=2, channels_last=False)
        first, middle, last = shape[-3:]
        channels_last = last <= first
        if is_grid and (first == middle) != (middle == last):
            channels_last = first == middle
        channels, height, width = (last, first, middle) if channels_last else (first, middle, last)
        if len(shape) == 3:
            return cls(channels, height, width, 3, channels_last)
        if height != width and (channels > min(height, width) or shape[0] >= max(height, width)):
            raise TypeError(
                f"space {space}: a Box with four axes is a video, so its shape must be [frames, height, "
                "width, channels] or [frames, channels, height, width]; move the axis of the frames first"
            )
        return cls(shape[0] * channels, height, width, 4, channels_last)

    def channels_first(self, images: Tensor) -> Tensor:
        """Return images `[batch, *shape]` as `[batch, channels, height, width]`."""
        if self.axes == 2:
            return images.unsqueeze(1)
        if self.channels_last:
            images = images.movedim(-1, -3)
        return images if self.axes == 3 else images.flatten(1, 2)


def is_grid(space: spaces.Box) -> bool:
    """Return True if an image is so small, and of integers, that it is a grid of cells and no photo.

    The numbers of a cell are then codes, as of an object and its color, which an encoder reads as categories.
    A grid has at most 31 cells along its shorter side.
    """
    layout = ImageLayout.from_space(space, is_grid=True)
    return bool(np.issubdtype(space.dtype, np.integer)) and min(layout.height, layout.width) <= _MOST_GRID
