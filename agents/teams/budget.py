"""How a team's budget of divergence is shared out among its agents."""

from __future__ import annotations

from collections.abc import Sequence


def allocate_kl(gains: Sequence[float], total: float) -> list[float]:
    """Return each agent's limit such that the sum of predicted improvements is largest.

    An agent whose natural gradient gains q = g'F^-1 g improves by sqrt(2 d q) at a divergence of d. The
    sum over agents, with the d summing to `total`, is largest where all slopes sqrt(q / 2d) are equal: d
    proportional to q. By Cauchy and Schwarz the sum is then sqrt(2 total sum(q)), and no other split reaches it.
    If nobody gains, all get the same.
    """
    whole = sum(gains)
    if not whole > 0:
        return [total / len(gains)] * len(gains)
    return [total * gain / whole for gain in gains]
