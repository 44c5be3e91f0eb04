"""Convolutional networks of published agents: Nature CNN and the deep network of IMPALA."""

from __future__ import annotations

from torch import Tensor, nn

NATURE_SIDE = 36
"""Least number of pixels along each side of an image for `build_nature`."""
_IMPALA_CHANNELS = (16, 32, 32)


def build_nature(channels: int, height: int, width: int) -> nn.Sequential:
    """Return the network of Mnih et al. 2015 (doi 10.1038/nature14236), with 512 features as output.

    Its layers are those of `NatureCNN` in Stable-Baselines3, in the same order.
    """
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel_size=8, stride=4),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=4, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, kernel_size=3, stride=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * height * width, 512),
        nn.ReLU(),
    )


def build_impala(channels: int, height: int, width: int) -> nn.Sequential:
    """Return the deep network of Espeholt et al. 2018 (arXiv 1802.01561), with 256 features as output.

    Three sections have a convolution, a pooling that halves the image, and two residual blocks.
    """
    layers: list[nn.Module] = []
    for out_channels in _IMPALA_CHANNELS:
        layers += [
            nn.Conv2d(channels, out_channels, kernel_size=3, padding=1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            ResidualBlock(out_channels),
            ResidualBlock(out_channels),
        ]
        channels, height, width = out_channels, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(
        *layers, nn.ReLU(), nn.Flatten(), nn.Linear(channels * height * width, 256), nn.ReLU()
    )


class ResidualBlock(nn.Module):
    """Two convolutions, each after a ReLU, whose result is added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return images of the same shape, `[batch, channels, height, width]`."""
        return images + self.layers(images)
