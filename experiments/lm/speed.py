"""Time per generated token at growing context lengths: policies, the full cache, and recomputation.

scrubjay longcontext speed novels.deb --methods full sinks --budget 256 --contexts 1024 4096 8192
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.experiments.lm.options import RECOMPUTE, SpeedOptions
from scrubjay.experiments.lm.reading import cache_nbytes, read, recompute
from scrubjay.experiments.measurements import Records, markdown, select, write_table
from scrubjay.experiments.progress import ProgressDisplay
from scrubjay.experiments.resources import stopwatch
from scrubjay.memory import context

ROW = {"context": int, "method": str, "repeat": int, "wall": float, "cpu": float, "cache_bytes": int}


def run_speed(options: SpeedOptions, command: str) -> list[Path]:
    """Run the measurements that the output directory lacks, write table and plot, and return their paths.

    Raises ValueError on invalid options. After Ctrl-C, the same command continues with the next length that
    is not complete.
    """
    from scrubjay.experiments.lm.plots import plot_speed

    model, tokenizer = options.start()
    tokens = options.excerpt(tokenizer, max(options.contexts) + options.steps * options.repeats)
    records = Records(options.out / "turns.jsonl", ROW)
    _measure(model, tokens, options, records)
    rows = [row for row in records.rows if row["context"] in options.contexts]
    table = write_table(options.out, command, _table(rows, options))
    return [table, plot_speed(rows, options.out / "speed.png")]


def _measure(
    model: PreTrainedModel,
    tokens: Int[Tensor, " time"],
    options: SpeedOptions,
    records: Records,
) -> None:
    caches: dict[str, context.PolicyCache] = {}
    plan = {
        length: [
            name
            for name in options.list_methods(length)
            if len(records.find(context=length, method=name)) < options.repeats
        ]
        for length in sorted(options.contexts)
    }
    total = sum(max((n for n in plan if name in plan[n]), default=0) for name in options.methods)
    done = 0
    with ProgressDisplay("speed, tokens read", total, 0, not options.quiet) as display:
        for length, names in plan.items():
            for name in set(caches) - set(options.list_methods(length)):
                del caches[name]
            for name in names:
                if name == RECOMPUTE:
                    continue
                if name not in caches:
                    caches[name] = context.PolicyCache(options.policy(name), model)
                cache = caches[name]
                before = cache.get_seq_length()
                for count, _ in enumerate(read(model, cache, tokens[before:length], options.block), start=1):
                    display.update(done + min(count * options.block, length - before), {})
                done += length - before
            records.keep(
                lambda row, length=length, names=names: row["context"] != length or row["method"] not in names
            )
            for repeat in range(options.repeats):
                for name in names:
                    records.append(
                        {"context": length, "method": name, "repeat": repeat}
                        | _turn(model, caches.get(name), tokens, length + repeat * options.steps, options)
                    )


def _turn(
    model: PreTrainedModel,
    cache: context.PolicyCache | None,
    tokens: Int[Tensor, " time"],
    place: int,
    options: SpeedOptions,
) -> dict[str, Any]:
    """Measure the time per token for `options.steps` tokens from position `place` on.

    With a cache, the model reads one token per call. Without a cache, a single call reads the last
    `options.budget` tokens and counts as one token.
    """
    steps = options.steps if cache is not None else 1
    with stopwatch() as timer:
        if cache is None:
            recompute(model, tokens[place + 1 - options.budget : place + 1])
        else:
            for token in tokens[place : place + steps].split(1):  # one call per token, as in generation
                next(read(model, cache, token, 1))
    return {
        "wall": timer.wall / steps,
        "cpu": timer.cpu / steps,
        "cache_bytes": 0 if cache is None else cache_nbytes(cache),
    }


def _table(rows: Sequence[dict[str, Any]], options: SpeedOptions) -> str:
    lines = []
    for length in sorted(options.contexts):
        own = {name: select(rows, context=length, method=name) for name in options.list_methods(length)}
        times = {name: [1000 * row["cpu"] for row in some] for name, some in own.items()}
        for name, some in own.items():
            cpu = statistics.median(times[name])
            lines.append(
                [
                    f"{length:,}, {name}",
                    f"{cpu:.1f}",
                    f"{min(times[name]):.1f} to {max(times[name]):.1f}",
                    f"{1000 * statistics.median(row['wall'] for row in some):.1f}",
                    f"{statistics.median(times[RECOMPUTE]) / cpu:.1f}",
                    f"{max(row['cache_bytes'] for row in some) / 2**20:.1f}",
                ]
            )
    columns = [
        "context, method",
        "CPU ms/token",
        "min to max",
        "wall ms/token",
        "times as fast as recompute",
        "cache, MiB",
    ]
    return (
        f"Medians of {options.repeats} turns of {options.steps} tokens (recompute: of one), "
        "methods in turns in one process; "
        f"budget {options.budget}.\n\n" + markdown(columns, lines)
    )
