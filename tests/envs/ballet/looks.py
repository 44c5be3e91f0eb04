"""Digest of images, to compare them with recordings."""

from __future__ import annotations

import hashlib

import numpy as np


def digest(images):
    whole = hashlib.sha256()
    for image in images:
        whole.update(np.round(image * 255).astype(np.uint8).tobytes())
    return whole.hexdigest()[:12]
