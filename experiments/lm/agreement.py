"""Agreement of context policies with the full cache: next tokens, divergence, cache size and time.

scrubjay longcontext agreement novels.deb --methods sinks snapkv chunks --budget 256 --length 2048
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.experiments.lm.options import FULL, AgreementOptions
from scrubjay.experiments.lm.reading import cache_nbytes, read, tokenize_text
from scrubjay.experiments.measurements import Records, markdown, write_table
from scrubjay.experiments.progress import ProgressDisplay
from scrubjay.experiments.resources import ElapsedTime, stopwatch
from scrubjay.memory import context

_ROW = {
    "start": int,
    "method": str,
    "agreement": float,
    "divergence": float,
    "cache_bytes": int,
    "reading": float,
    "writing": float,
}


@dataclass(frozen=True)
class Continuation:
    """Predictions of a model under a context policy for the continuation of an excerpt."""

    tokens: Int[Tensor, " new"]
    """Most likely token at each position."""
    log_probabilities: Float[Tensor, "new vocabulary"]
    """Log-probabilities of the whole vocabulary at each position."""
    reading: ElapsedTime
    """CPU and wall-clock time to read the excerpt."""
    writing: ElapsedTime
    """CPU and wall-clock time to generate the continuation."""
    cache_bytes: int
    """Bytes of keys and values at the end, on all devices."""


def run_agreement(options: AgreementOptions, command: str) -> list[Path]:
    """Run the measurements that the output directory lacks, write the table, and return its path.

    Raises ValueError on invalid options. After Ctrl-C, the same command continues with the next excerpt that
    is not complete.
    """
    model, tokenizer = options.start()
    tokens = tokenize_text(tokenizer, options.read())
    last = len(tokens) - options.length
    if last < 0:
        raise ValueError(f"length={options.length}: the text has only {len(tokens)} tokens")
    records = Records(options.out / "stretches.jsonl", _ROW)
    methods = [FULL, *(name for name in options.methods if name != FULL)]
    generator = random.Random(options.seed)
    starts = [generator.randint(0, last) for _ in range(options.prompts)]
    plan = {
        start: missing
        for start in starts
        if (missing := [name for name in methods if not records.find(start=start, method=name)])
    }
    with ProgressDisplay("agreement, excerpts", len(plan), 0, not options.quiet) as display:
        for count, (start, missing) in enumerate(plan.items(), start=1):
            for row in compare(model, tokens[start : start + options.length], options, missing):
                records.append({"start": start, **row})
            display.update(count, {})
    rows = [row for row in records.rows if row["start"] in starts]
    return [write_table(options.out, command, _table(rows, methods, options))]


def compare(
    model: PreTrainedModel, excerpt: Int[Tensor, " time"], options: AgreementOptions, methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Measure each method on one excerpt; return one table row per method."""
    full = write(model, options.policy(FULL), excerpt, options)
    rows = []
    for name in methods:
        prediction = (
            full if name == FULL else write(model, options.policy(name), excerpt, options, full.tokens)
        )
        more = full.log_probabilities.exp() * (full.log_probabilities - prediction.log_probabilities)
        rows.append(
            {
                "method": name,
                "agreement": (prediction.tokens == full.tokens).double().mean().item(),
                "divergence": more.sum(dim=-1).mean().item(),
                "cache_bytes": prediction.cache_bytes,
                "reading": prediction.reading.cpu,
                "writing": prediction.writing.cpu / options.new_tokens,
            }
        )
    return rows


@torch.no_grad()
def write(
    model: PreTrainedModel,
    policy: context.ContextPolicy,
    excerpt: Int[Tensor, " time"],
    options: AgreementOptions,
    targets: Int[Tensor, " new"] | None = None,
) -> Continuation:
    """Read an excerpt, then predict its continuation token by token.

    After each prediction the model reads the next token of `targets`; without `targets`, its own prediction.
    """
    cache = context.PolicyCache(policy, model)
    with stopwatch() as reading:
        *_, logits = read(model, cache, excerpt, options.block)
    all_logits = [logits]
    with stopwatch() as writing:
        for place in range(options.new_tokens - 1):
            token = all_logits[-1].argmax() if targets is None else targets[place]
            (logits,) = read(model, cache, token[None], 1)
            all_logits.append(logits)
    log_probabilities = torch.stack(all_logits).float().log_softmax(dim=-1)
    cache_bytes = cache_nbytes(cache)
    return Continuation(log_probabilities.argmax(dim=-1), log_probabilities, reading, writing, cache_bytes)


def _table(rows: Sequence[dict[str, Any]], methods: Sequence[str], options: AgreementOptions) -> str:
    lines = []
    for name in methods:
        own = [row for row in rows if row["method"] == name]
        agreement = [row["agreement"] for row in own]
        error = statistics.stdev(agreement) / math.sqrt(len(own)) if len(own) > 1 else math.nan
        lines.append(
            [
                name,
                f"{100 * statistics.fmean(agreement):.1f} ± {100 * error:.1f}",
                f"{statistics.fmean(row['divergence'] for row in own):.4f}",
                f"{max(row['cache_bytes'] for row in own) / 2**20:.2f}",
                f"{statistics.fmean(row['reading'] for row in own):.2f}",
                f"{1000 * statistics.fmean(row['writing'] for row in own):.1f}",
            ]
        )
    columns = [
        "method",
        "same next token, % ± standard error",
        "divergence from full, nats",
        "cache, MiB",
        "reading, CPU s",
        "writing, CPU ms/token",
    ]
    return (
        f"{options.prompts} excerpts of {options.length} tokens, budget {options.budget}, read in blocks of "
        f"{options.block}; then {options.new_tokens} tokens of the greedy continuation of full, each "
        "predicted from the same prefix.\n\n" + markdown(columns, lines)
    )
