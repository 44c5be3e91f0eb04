"""Assertion that a file is a picture with some content."""

from __future__ import annotations

import numpy as np
from PIL import Image


def assert_picture(path) -> None:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[0] > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
