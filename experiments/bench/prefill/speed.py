"""Sparse reading of a prompt by FlexPrefill against dense attention: time, blocks that are read, and error.

    apt-get download r-cran-janeaustenr
    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.prefill.speed r-cran-janeaustenr_1.0.0-1_all.deb

A model reads the first tokens of a novel by dense attention. In some of its layers FlexPrefill reads the same
queries, keys and values. The table has the processor time of both as a ratio, the share of the causal blocks
that are read, and the norm of the difference of the outputs divided by the norm of the dense output. The
model is in float32. Options: `--help`.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor
from tyro.conf import Positional

from scrubjay.experiments.lm.texts import read_text
from scrubjay.experiments.measurements import markdown
from scrubjay.experiments.resources import one_thread
from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache
from scrubjay.memory.context.policies.dense import Scoring, causal_attention
from scrubjay.memory.context.policies.flexprefill import FlexPrefillPolicy


@dataclass(frozen=True)
class PrefillBench:
    """Options of the benchmark."""

    text: Positional[Path]
    """Path of the long text: a .txt file, or a .deb package with Jane Austen's novels."""
    title: str | None = "northanger"
    """First letters of the title of the novel to read."""
    model: str = "smollm2"
    """Model name or folder."""
    lengths: tuple[int, ...] = (4096, 8192, 16384)
    """Numbers of tokens of the prompts."""
    every: int = 7
    """Distance between two measured layers; the first measured layer has index 2."""
    gammas: tuple[float, ...] = (0.8, 0.9, 0.95)
    """Shares of attention that the blocks cover."""
    min_budget: int = 1024
    """Smallest number of tokens of the vertical blocks, and of the slash blocks."""


class Result(NamedTuple):
    """Sparse and dense reading of a prompt in one layer."""

    tokens: int
    gamma: float
    seconds: float
    dense_seconds: float
    share: float
    """Share of the causal pairs of blocks that are read, as the mean over the heads."""
    error: float
    """Norm of the difference of the outputs, divided by the norm of the dense output."""


@dataclass(frozen=True)
class ComparingPolicy(FlexPrefillPolicy):
    """Policy that reads a prompt by dense attention, and compares the reading of other policies with it."""

    readers: tuple[FlexPrefillPolicy, ...] = ()
    """Policies to compare."""
    every: int = 1
    """Distance between two layers that are compared."""
    results: list[Result] = field(default_factory=list)

    def for_layer(self, index: int, count: int) -> context.ContextPolicy:
        """Return `self` for layers to compare, and a policy that keeps all tokens for the others."""
        return self if index % self.every == min(2, self.every - 1) else self.policy

    def read_prompt(
        self,
        query: Float[Tensor, "batch heads tokens width"],
        keys: Float[Tensor, "batch key_heads tokens width"],
        values: Float[Tensor, "batch key_heads tokens value_width"],
        valid: Bool[Tensor, "batch tokens"] | None,
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads tokens value_width"]:
        """Return the dense attention output; arguments as for `FlexPrefillPolicy.read_prompt`."""
        scoring = replace(scoring, prompt_reader=None)
        dense, dense_seconds = _measure(lambda: causal_attention(query, keys, values, valid, scoring))
        for reader in self.readers:
            out, seconds = _measure(partial(reader.read_prompt, query, keys, values, valid, scoring))
            blocks = reader.choose(query[0], keys[0], scoring)
            share = float(blocks.sum()) / (len(blocks) * blocks.shape[1] * (blocks.shape[1] + 1) / 2)
            error = float((out - dense).norm() / dense.norm())
            row = Result(query.shape[2], reader.gamma, seconds, dense_seconds, share, error)
            self.results.append(row)
        return dense


def _measure(read: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Return the output of a function and its processor time in seconds."""
    start = time.process_time()
    out = read()
    return out, time.process_time() - start


@torch.no_grad()
def compare(bench: PrefillBench) -> list[Result]:
    """Read prompts of all lengths; return a result for each measured layer, length and gamma.

    Raises ValueError if the text is shorter than the longest prompt.
    """
    model, tokenizer = context.load_model(bench.model, under_policy=True)
    tokens = tokenizer(read_text(bench.text, bench.title), return_tensors="pt")["input_ids"]
    if tokens.shape[1] < max(bench.lengths):
        raise ValueError(
            f"lengths={bench.lengths}: the text has {tokens.shape[1]:,} tokens; pass smaller lengths or "
            "another title"
        )
    readers = tuple(FlexPrefillPolicy(gamma=gamma, min_budget=bench.min_budget) for gamma in bench.gammas)
    policy = ComparingPolicy(readers=readers, every=bench.every)
    for length in bench.lengths:
        model(tokens[:, :length], cache=PolicyCache(policy, model), logits_to_keep=1)
    return policy.results


def main(bench: PrefillBench) -> None:
    """Compare the readings and print a table of the means over the measured layers."""
    with one_thread():
        results = compare(bench)
    rows = []
    for length, gamma in itertools.product(bench.lengths, bench.gammas):
        own = [result for result in results if (result.tokens, result.gamma) == (length, gamma)]
        ratio = sum(result.seconds for result in own) / sum(result.dense_seconds for result in own)
        share, error = (np.mean([result[index] for result in own]) for index in (4, 5))
        rows.append([f"{length:,}", f"{gamma:g}", f"{ratio:.2f}", f"{share:.2f}", f"{error:.3f}"])
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")]
    print(f"{bench.model}, {', '.join(versions)}, 1 thread, layers 2 and every {bench.every} after it\n")
    print(markdown(["tokens", "gamma", "processor time / dense", "blocks read", "error"], rows))


if __name__ == "__main__":
    main(tyro.cli(PrefillBench))
