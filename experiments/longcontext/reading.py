"""How a model reads a text of any length: block by block, into a cache that a policy keeps small."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.memory import context

RECOMPUTE = "recompute"
"""Name of the peer that keeps no cache."""


@dataclass
class Elapsed:
    """Seconds that a block of code took."""

    wall: float = 0.0
    """On the clock."""
    cpu: float = 0.0
    """Of this process's processor time, which neighbours on the machine disturb less."""


@contextmanager
def stopwatch() -> Iterator[Elapsed]:
    """Measure the block; the result is complete after it."""
    _await_device()
    elapsed, wall, cpu = Elapsed(), time.perf_counter(), time.process_time()
    yield elapsed
    _await_device()
    elapsed.wall, elapsed.cpu = time.perf_counter() - wall, time.process_time() - cpu


@torch.no_grad()
def read(
    model: PreTrainedModel, cache: context.PolicyCache, tokens: Int[Tensor, " time"], block: int
) -> Iterator[Float[Tensor, " vocabulary"]]:
    """Read the tokens in blocks; yield after each the logits of the token that follows.

    A policy that chooses at the end of a prompt reads all as one block, or the end of each would choose.
    """
    for piece in tokens.split(cache.policy.call_length(len(tokens), block)):
        yield model(piece[None].to(model.device), cache=cache, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def recompute(model: PreTrainedModel, tokens: Int[Tensor, " time"]) -> Float[Tensor, " vocabulary"]:
    """Read the tokens afresh, without any cache; return the logits of the token that follows."""
    return model(tokens[None].to(model.device), use_cache=False, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def losses(
    model: PreTrainedModel,
    cache: context.PolicyCache,
    tokens: Int[Tensor, " time"],
    targets: Int[Tensor, " time"],
) -> Float[Tensor, " time"]:
    """Read one block; return the negative log-likelihood, in nats, of the token after each of its tokens."""
    logits = model(tokens[None].to(model.device), cache=cache).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), targets.to(model.device), reduction="none")


def held_bytes(cache: context.PolicyCache) -> int:
    """Return the bytes of keys, values and what goes with them, wherever they lie."""
    return cache.nbytes() + cache.nbytes("cpu") + cache.nbytes("disk")


def tokenize(tokenizer: Any, text: str) -> Int[Tensor, " time"]:
    """Return the tokens of a text that may be longer than the model was trained for."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"])


def resident_bytes() -> int:
    """Return the memory of this process now, or where the system does not tell, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource
        import sys

        # Darwin counts bytes, others kilobytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _await_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
