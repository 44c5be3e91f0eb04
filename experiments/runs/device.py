"""Device and thread count of torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


def resolve_device(name: str) -> torch.device:
    """Return the torch device for auto, cpu, cuda, or another device name.

    Raises ValueError if torch does not know the name, or the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":  # does not initialize the GPU
            is_available = (device.index or 0) < torch.cuda.device_count()
        else:
            is_available = torch.zeros(1, device=device).item() == 0
    except (RuntimeError, AssertionError, NotImplementedError):
        is_available = False
    if not is_available:
        why = "torch sees no such GPU here" if name.startswith("cuda") else "torch cannot compute on it"
        raise ValueError(f"device={name!r}: {why}; choose cpu or auto")
    return device


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one torch thread in the `with` block, unless OMP_NUM_THREADS is set.

    One thread is fastest for small policies.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
