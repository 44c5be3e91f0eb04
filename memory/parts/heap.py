"""What becomes of memory that a gradient step has freed."""

from __future__ import annotations

import functools

import torch

_BYTES = 32_000_000


@functools.cache
def keep_freed() -> None:
    """Have the C library keep up to twice this much of what is freed, once and for the whole process.

    What a pass writes down for its way back is freed at the end of the step, given back to the system and
    asked for again: the pages of a megabyte cost as much as filling it five times. glibc keeps what is
    smaller than the largest block that it saw freed, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD); this one
    is never touched, so it costs nothing. Elsewhere nothing changes.
    """
    torch.empty(_BYTES, dtype=torch.uint8)
