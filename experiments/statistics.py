"""Summary statistics of runs or episodes, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Run = TypeVar("Run")


def interquartile_mean(scores: ArrayLike) -> float:
    """Return the mean of the middle half: a quarter of the scores, rounded down, is cut at either end.

    Paper: Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice", section 4.3.
    With three scores nothing is cut, so the result is the mean. Raises ValueError if there are no scores.
    """
    values = np.asarray(scores, dtype=float).ravel()
    if values.size == 0:
        raise ValueError("no scores: at least one run is needed")
    if np.isnan(values).any():
        return math.nan
    # As scipy's `trim_mean`, which takes ten times as long for a few scores; an interval needs 2,000 means.
    cut, end = values.size // 4, values.size - values.size // 4
    return float(np.partition(values, (cut, end - 1))[cut:end].mean())


def format_spread(scores: Sequence[float]) -> str:
    """Format the interquartile mean of a few scores, with minimum and maximum, to three decimals."""
    return f"{interquartile_mean(scores):.3f} [{min(scores):.3f}, {max(scores):.3f}]"


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float] = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic of `scores`, shape [runs] or [runs, tasks].

    Runs are sampled with replacement within each task (stratified), so every task keeps its weight.
    """
    values = np.asarray(scores, dtype=float)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"scores have shape {values.shape}; expected [runs] or [runs, tasks], not empty")
    runs, tasks = values.shape
    rng = np.random.default_rng(seed)
    estimates = [
        statistic(values[rng.integers(runs, size=(runs, tasks)), np.arange(tasks)]) for _ in range(resamples)
    ]
    low, high = np.quantile(estimates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def format_interval(scores: Sequence[float], write: Callable[[float], str]) -> str:
    """Format the interquartile mean with its bootstrap interval; a single score has no interval."""
    mean = write(interquartile_mean(scores))
    if len(scores) == 1:
        return mean
    low, high = bootstrap_interval(scores)
    return f"{mean} [{write(low)}, {write(high)}]"


def group_runs(runs: Iterable[Run], *fields: str) -> dict[Any, list[Run]]:
    """Return the runs by the values of these fields of their configs, in the order of the runs."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(attrgetter(*(f"config.{name}" for name in fields))(run), []).append(run)
    return groups


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson interval of a success probability; it lies in [0, 1] and has a positive width."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(
            f"{successes} successes in {trials} trials: need 0 <= successes <= trials, trials > 0"
        )
    z = _normal_quantile((1 + confidence) / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else centre - half  # avoid rounding errors at the ends
    return low, 1.0 if successes == trials else centre + half


def normal_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of the mean by the normal approximation.

    For a single value, both ends of the interval equal this value. Raises ValueError if `values` is empty.
    """
    sample = np.asarray(values, dtype=float).ravel()
    if sample.size == 0:
        raise ValueError("no values: at least one is needed")
    if sample.size == 1:
        return float(sample[0]), float(sample[0])
    half = _normal_quantile((1 + confidence) / 2) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return float(sample.mean()) - half, float(sample.mean()) + half


def difference_interval(
    first: ArrayLike, second: ArrayLike, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the difference of two sample means, `first - second`, and its confidence interval.

    Uses the normal approximation for independent samples with unequal variances.
    Raises ValueError on a sample of fewer than 2 values.
    """
    samples = [np.asarray(values, dtype=float).ravel() for values in (first, second)]
    for sample in samples:
        if sample.size < 2:
            raise ValueError(f"a sample has size {sample.size}: must be at least 2 for an interval")
    difference = float(samples[0].mean() - samples[1].mean())
    half = _normal_quantile((1 + confidence) / 2) * math.sqrt(sum(s.var(ddof=1) / s.size for s in samples))
    return difference, difference - half, difference + half


def _normal_quantile(probability: float) -> float:
    from scipy.special import ndtri  # imported late, since help texts do not need it

    return float(ndtri(probability))
