"""Reuse of host memory freed by gradient steps."""

from __future__ import annotations

import functools

import torch

_BYTES = 32_000_000


@functools.cache
def retain_freed_memory() -> None:
    """Make the C library retain up to twice `_BYTES` of freed memory, once for the whole process.

    Tensors saved for the backward pass are freed at the end of a step, returned to the system and allocated
    again. Mapping the pages of a megabyte costs as much as writing it five times. glibc retains blocks
    smaller than the largest block freed so far, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD). This block is
    never written, so it costs nothing. On other systems nothing changes.
    """
    torch.empty(_BYTES, dtype=torch.uint8)
