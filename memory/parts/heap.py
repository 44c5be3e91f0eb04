"""Reuse of host memory freed by gradient steps."""

from __future__ import annotations

import functools

import torch

_BYTES = 32_000_000


@functools.cache
def retain_freed_memory() -> None:
    """Make the C library retain freed memory in the whole process, up to 64 MB.

    Without this call, memory of tensors that are saved for the backward pass is returned to the system at the
    end of a gradient step and mapped again in the next step. Mapping a megabyte takes as long as writing the
    megabyte five times. When a block of at most 32 MiB is freed, glibc raises a limit: from then on it
    retains smaller blocks, up to twice the size of that block in total (mallopt(3), M_MMAP_THRESHOLD). This
    function therefore frees one block of 32 MB. The block is never written, so it costs nothing. On systems
    without glibc nothing changes."""
    torch.empty(_BYTES, dtype=torch.uint8)
