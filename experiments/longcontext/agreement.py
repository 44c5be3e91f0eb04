"""How far policies write what the full cache would have written, at which size and in which time.

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

from scrubjay.experiments.longcontext.options import FULL, AgreementOptions
from scrubjay.experiments.longcontext.reading import held_bytes, read, tokenize_text
from scrubjay.experiments.runs.cost import Elapsed, stopwatch
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.progress import ProgressDisplay
from scrubjay.experiments.runs.records import Records, header, markdown, settle
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
class Written:
    """What a policy said about a continuation."""

    tokens: Int[Tensor, " new"]
    """The most likely token at every place."""
    log_probabilities: Float[Tensor, "new vocabulary"]
    """Of all tokens at every place."""
    reading: Elapsed
    """Time for the stretch."""
    writing: Elapsed
    """Time for the continuation."""
    cache_bytes: int
    """Bytes of keys and values at the end, wherever they lie."""


def run_agreement(options: AgreementOptions, command: str) -> list[Path]:
    """Measure what is missing, write the table, and return its path.

    Raises ValueError on options that cannot be. After Ctrl-C, stretches that were completed are not read
    again.
    """
    options.check()
    settle(options.out, options.settings())
    model, tokenizer = options.load_model()
    tokens = tokenize_text(tokenizer, options.read())
    last = len(tokens) - options.length
    if last < 0:
        raise ValueError(f"length={options.length}: the text has only {len(tokens)} tokens")
    records = Records(options.out / "stretches.jsonl", _ROW)
    methods = [FULL, *(name for name in options.methods if name != FULL)]
    generator = random.Random(options.seed)
    starts = [generator.randint(0, last) for _ in range(options.prompts)]
    with ProgressDisplay("agreement, stretches", len(starts), 0, not options.quiet) as display:
        for count, start in enumerate(starts, start=1):
            missing = [name for name in methods if not records.find(start=start, method=name)]
            if missing:
                stretch = tokens[start : start + options.length]
                for row in compare(model, stretch, options, missing):
                    records.append({"start": start, **row})
                display.update(count, {})
    rows = [row for row in records.rows if row["start"] in starts]
    write_atomically(options.out / "table.md", f"{header(command)}\n\n{_table(rows, methods, options)}\n")
    return [options.out / "table.md"]


def compare(
    model: PreTrainedModel, stretch: Int[Tensor, " time"], options: AgreementOptions, methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row for each method about one stretch."""
    full = write(model, options.policy(FULL), stretch, options)
    rows = []
    for name in methods:
        ours = full if name == FULL else write(model, options.policy(name), stretch, options, full.tokens)
        more = full.log_probabilities.exp() * (full.log_probabilities - ours.log_probabilities)
        rows.append(
            {
                "method": name,
                "agreement": (ours.tokens == full.tokens).double().mean().item(),
                "divergence": more.sum(dim=-1).mean().item(),
                "cache_bytes": ours.cache_bytes,
                "reading": ours.reading.cpu,
                "writing": ours.writing.cpu / options.new_tokens,
            }
        )
    return rows


@torch.no_grad()
def write(
    model: PreTrainedModel,
    policy: context.ContextPolicy,
    stretch: Int[Tensor, " time"],
    options: AgreementOptions,
    told: Int[Tensor, " new"] | None = None,
) -> Written:
    """Read a stretch, then predict what follows.

    Each token comes after those `told` before it, by default its own.
    """
    cache = context.PolicyCache(policy, model)
    with stopwatch() as reading:
        *_, logits = read(model, cache, stretch, options.block)
    said = [logits]
    with stopwatch() as writing:
        for place in range(options.new_tokens - 1):
            token = said[-1].argmax() if told is None else told[place]
            (logits,) = read(model, cache, token[None], 1)
            said.append(logits)
    log_probabilities = torch.stack(said).float().log_softmax(dim=-1)
    held = held_bytes(cache)
    return Written(log_probabilities.argmax(dim=-1), log_probabilities, reading, writing, held)


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
        f"{options.prompts} stretches of {options.length} tokens, budget {options.budget}, read in blocks of "
        f"{options.block}; then {options.new_tokens} tokens that full writes greedily, each predicted "
        "after the same "
        "ones.\n\n" + markdown(columns, lines)
    )
