"""Sinusoids are those of the paper, also for millions of steps."""

import math

import torch

from scrubjay.memory.parts.layers import sinusoids


def test_they_are_the_papers():
    steps = [0, 1, 17, 1999, 1_000_000, 123_456_789]
    actual = sinusoids(torch.tensor(steps).view(2, 3), 6).flatten(0, 1)
    for row, step in zip(actual, steps, strict=True):
        angles = [step / 10_000 ** (2 * pair / 6) for pair in range(3)]
        expected = [*map(math.sin, angles), *map(math.cos, angles)]
        torch.testing.assert_close(row, torch.tensor(expected).double(), atol=1e-7, rtol=0)
