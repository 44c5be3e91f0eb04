"""Which chunks a search looks into, and which records it keeps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from scrubjay.kernels import choose_chunks
from scrubjay.kernels.select import best


def best_chunks(
    scores: Float[np.ndarray, "M"], count: int, allowed: Bool[np.ndarray, "M"] | None = None
) -> Int[np.ndarray, "K"]:
    """Return the places of up to `count` chunks that are allowed, the best first; none of a score of NaN."""
    valid = np.array([[len(scores)]]) if allowed is None else allowed[None, None]
    chunks = choose_chunks(valid, scores=scores[None, None, None], top_k=count).chunks[0, 0, 0]
    return chunks[chunks >= 0]


def best_records(scores: Mapping[int, float], count: int) -> list[int]:
    """Return the numbers of the best scores, best first; of equals the newest, whose number is highest."""
    numbers = np.array(sorted(scores, reverse=True), dtype=np.int64)
    return numbers[best(np.array([scores[number] for number in numbers.tolist()]), count)].tolist()
