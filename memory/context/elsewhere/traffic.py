"""Traffic of attention elsewhere, and the number of tokens from which it pays."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scrubjay.memory.context.policies.base import CacheShape

_NORMALISER_BYTES = 4


@dataclass(frozen=True)
class Link:
    """Connection of the model to its stores, and the speed of both sides."""

    round_trip: float
    """Time between a request and its reply without data, in seconds. All stores are asked at once."""
    bandwidth: float
    """Bytes per second of the connection, shared by all stores."""
    model_bandwidth: float
    """Bytes of keys and values that the model's device reads per second."""
    store_bandwidth: float
    """Bytes of keys and values that a store reads per second."""


def count_traffic(shape: CacheShape, num_stores: int) -> int:
    """Return the bytes that one generated token sends and receives.

    These are its queries to each store, an output in float32 and a normaliser for each head back, and its own
    keys and values once.
    """
    query = shape.heads * shape.key_width * shape.itemsize
    reply = shape.heads * (shape.value_width * _NORMALISER_BYTES + _NORMALISER_BYTES)
    return shape.layers * shape.batch * num_stores * (query + reply) + shape.token_bytes


def estimate_seconds(shape: CacheShape, num_stores: int, link: Link, tokens: int) -> tuple[float, float]:
    """Return the seconds of attention for one generated token after `tokens` tokens: here, and in the stores.

    The model's device reads all keys and values for each token, and so do the stores together. The layers
    wait for each other, so each layer costs a round trip.

    Args:
        shape: Sizes of the cache.
        num_stores: Number of stores.
        link: Speed of the machines and of their connection.
        tokens: Tokens of the text.
    """
    here = tokens * shape.token_bytes / link.model_bandwidth
    reading = tokens * shape.token_bytes / (num_stores * link.store_bandwidth)
    travel = shape.layers * link.round_trip + count_traffic(shape, num_stores) / link.bandwidth
    return here, reading + travel


def count_break_even_tokens(shape: CacheShape, num_stores: int, link: Link) -> float:
    """Return the length of a text from which attention in the stores is faster; infinity if it never is.

    This is the length at which the two times of `estimate_seconds` are equal.

    Args:
        shape: Sizes of the cache.
        num_stores: Number of stores.
        link: Speed of the machines and of their connection.
    """
    _, cost = estimate_seconds(shape, num_stores, link, 0)
    saving = shape.token_bytes * (1 / link.model_bandwidth - 1 / (num_stores * link.store_bandwidth))
    return cost / saving if saving > 0 else math.inf
