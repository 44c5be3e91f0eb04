"""Where and on how many threads torch computes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


def resolve_device(name: str) -> torch.device:
    """Return the device for auto, cpu or cuda, or another of torch's.

    Raises ValueError if torch knows none of that name, or sees none here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":  # asked without waking it up
            known = (device.index or 0) < torch.cuda.device_count()
        else:
            known = torch.zeros(1, device=device).item() == 0
    except (RuntimeError, AssertionError, NotImplementedError):
        known = False
    if not known:
        why = "torch sees no such GPU here" if name.startswith("cuda") else "torch cannot compute there"
        raise ValueError(f"device={name!r}: {why}; choose cpu or auto")
    return device


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, which for policies of these sizes is fastest, unless OMP_NUM_THREADS is set."""
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
