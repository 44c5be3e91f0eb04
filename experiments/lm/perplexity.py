"""Perplexity, time and memory by position in a text that is streamed under context policies.

scrubjay longcontext perplexity novels.deb --title northanger --methods window sinks --tokens 20000
"""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import numpy as np
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.experiments.files import replacement
from scrubjay.experiments.lm.options import RECOMPUTE, PerplexityOptions
from scrubjay.experiments.lm.reading import Curve, cache_nbytes, losses, recompute
from scrubjay.experiments.measurements import Records, markdown, write_table
from scrubjay.experiments.progress import GracefulInterrupt, ProgressDisplay, StopRequest
from scrubjay.experiments.resources import resident_bytes, stopwatch
from scrubjay.memory import context

_BLOCK = {
    "first": int,
    "nats": tuple[float, ...],
    "wall": float,
    "cpu": float,
    "resident": int,
    "cache_bytes": int,
}
_POSITION = {"position": int, "nats": float, "wall": float, "cpu": float}


def run_perplexity(options: PerplexityOptions, command: str) -> list[Path]:
    """Run the measurements that the output directory lacks, write table and plot, and return their paths.

    Raises ValueError on invalid options, and `GracefulInterrupt` on a stop signal; finished measurements are
    saved.
    """
    from scrubjay.experiments.lm.plots import plot_perplexity

    model, tokenizer = options.start()
    tokens = options.excerpt(tokenizer, options.tokens + 1)
    with StopRequest() as stop:
        for name in options.methods:
            _stream(model, tokens, options, name, stop)
        if options.recompute:
            _recompute(model, tokens, options, stop)
    curves = {name: Curve(Records(options.out / f"{name}.jsonl", _BLOCK).rows) for name in options.methods}
    sections = [_totals(curves, options.budget), _segments(curves)]
    if options.recompute:
        sections.append(
            _against_recompute(curves, Records(options.out / f"{RECOMPUTE}.jsonl", _POSITION), options)
        )
    table = write_table(options.out, command, *sections)
    return [table, plot_perplexity(curves, options.out / "curve.png")]


def _stream(
    model: PreTrainedModel,
    tokens: Int[Tensor, " time"],
    options: PerplexityOptions,
    name: str,
    stop: StopRequest,
) -> None:
    """Append one row per block to the method's file, resuming from the last saved cache."""
    policy, records = options.policy(name), Records(options.out / f"{name}.jsonl", _BLOCK)
    total = len(tokens) - 1
    if sum(len(row["nats"]) for row in records.rows) >= total:
        return
    checkpoints = sorted(options.out.glob(f"{name}-at-*.safetensors"))
    done = int(checkpoints[-1].stem.rpartition("-")[2]) if checkpoints else 0
    cache = (
        context.PolicyCache.load(checkpoints[-1], policy, model)
        if checkpoints
        else context.PolicyCache(policy, model)
    )
    records.keep(lambda row: row["first"] + len(row["nats"]) <= done)
    with ProgressDisplay(f"perplexity {name}", total, done, not options.quiet) as display:
        for count, first in enumerate(range(done, total, options.block), start=1):
            last = min(first + options.block, total)
            with stopwatch() as timer:
                nats = losses(model, cache, tokens[first:last], tokens[first + 1 : last + 1])
            records.append(
                {
                    "first": first,
                    "nats": [round(value, 5) for value in nats.tolist()],
                    "wall": timer.wall,
                    "cpu": timer.cpu,
                    "resident": resident_bytes(),
                    "cache_bytes": cache_nbytes(cache),
                }
            )
            display.update(last, {})
            if last == total or count % options.save_every == 0 or stop.signal_number is not None:
                _save(cache, options.out, name, last)
            if stop.signal_number is not None:
                raise GracefulInterrupt(stop.signal_number)


def _save(cache: context.PolicyCache, out: Path, name: str, tokens: int) -> None:
    """Save the cache to a file named by the number of tokens read, then delete older files."""
    path = out / f"{name}-at-{tokens:012d}.safetensors"  # zero-padded, so that names sort like numbers
    with replacement(path) as new:
        cache.save(new)
    for older in out.glob(f"{name}-at-*.safetensors"):
        if older != path:
            older.unlink()


def _sample(options: PerplexityOptions) -> list[int]:
    """Return the sorted random positions at which the loss is also measured without a cache."""
    later = range(options.budget, options.tokens)
    return sorted(random.Random(options.seed).sample(later, options.recompute))


def _recompute(
    model: PreTrainedModel, tokens: Int[Tensor, " time"], options: PerplexityOptions, stop: StopRequest
) -> None:
    records = Records(options.out / f"{RECOMPUTE}.jsonl", _POSITION)
    measured_positions = {row["position"] for row in records.rows}
    sample = [position for position in _sample(options) if position not in measured_positions]
    with ProgressDisplay(RECOMPUTE, len(sample), 0, not options.quiet) as display:
        for count, position in enumerate(sample, start=1):
            window = tokens[position + 1 - options.budget : position + 1]
            with stopwatch() as timer:
                logits = recompute(model, window)
            nats = -logits.float().log_softmax(dim=-1)[tokens[position + 1]].item()
            records.append({"position": position, "nats": nats, "wall": timer.wall, "cpu": timer.cpu})
            display.update(count, {})
            if stop.signal_number is not None:
                raise GracefulInterrupt(stop.signal_number)


def _totals(curves: dict[str, Curve], budget: int) -> str:
    rows = []
    for name, curve in curves.items():
        total = len(curve.nats)
        resident = curve.per_block("resident") / 2**20
        rows.append(
            [
                name,
                f"{total:,}",
                f"{curve.perplexity():.2f}",
                f"{curve.perplexity(min(budget, total - 1)):.2f}",
                f"{curve.perplexity(total * 3 // 4):.2f}",
                f"{curve.milliseconds('cpu'):.2f}",
                f"{curve.milliseconds('cpu', 0.75):.2f}",
                f"{curve.milliseconds('wall'):.2f}",
                f"{curve.per_block('cache_bytes').max() / 2**20:.2f}",
                f"{resident[len(resident) // 4]:,.0f} / {resident.max():,.0f}",
            ]
        )
    columns = [
        "method",
        "tokens",
        "perplexity",
        f"after {budget}",
        "last quarter",
        "CPU ms/token",
        "last quarter, ms",
        "wall ms/token",
        "cache, MiB",
        "process at 1/4 / peak, MiB",
    ]
    return markdown(columns, rows)


def _segments(curves: dict[str, Curve]) -> str:
    longest = max(len(curve.nats) for curve in curves.values())
    edges = [0, 256]
    while edges[-1] * 2 < longest:
        edges.append(edges[-1] * 2)
    edges = [*(edge for edge in edges if edge < longest), longest]
    rows = [
        [f"{first:,} to {last:,}"]
        + [f"{own.perplexity(first, last):.2f}" if first < len(own.nats) else "" for own in curves.values()]
        for first, last in itertools.pairwise(edges)
    ]
    return "Perplexity by position:\n\n" + markdown(["tokens", *curves], rows)


def _against_recompute(curves: dict[str, Curve], records: Records, options: PerplexityOptions) -> str:
    sample = set(_sample(options))
    fresh = {row["position"]: row["nats"] for row in records.rows if row["position"] in sample}
    positions = np.array(sorted(fresh))
    nats = np.array([fresh[position] for position in positions])
    seconds = np.mean([row["cpu"] for row in records.rows])
    rows = [[RECOMPUTE, f"{math.exp(nats.mean()):.2f}", "1.000", "", f"{1000 * seconds:,.0f}"]]
    for name, curve in curves.items():
        own = curve.nats[positions]
        more = own - nats
        error = more.std(ddof=1) / math.sqrt(len(more)) if len(more) > 1 else math.nan
        rows.append(
            [
                name,
                f"{math.exp(own.mean()):.2f}",
                f"{math.exp(more.mean()):.3f}",
                f"{more.mean():+.4f} ± {error:.4f}",
                f"{curve.milliseconds('cpu'):.2f}",
            ]
        )
    return (
        f"At {len(positions)} random positions, the same for all methods; recompute rereads the last "
        f"{options.budget} tokens "
        "for each:\n\n"
        + markdown(
            ["method", "perplexity", "relative to recompute", "extra nats, ± standard error", "CPU ms/token"],
            rows,
        )
    )
