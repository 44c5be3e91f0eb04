"""What a token costs that a language model writes under a context policy, against the model's own cache.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.decoding

Llamas of random weights, of two sizes, read a text and then go on token by token, with position ids and mask
as `generate` gives them, in float32 on one thread. Policies read 1,024 keys of a text of twice as many;
transformers' DynamicCache and `full` hold 1,024, half-way through the tokens that are timed. Contestants take
turns of a few tokens in one process, and each round begins with copies of the caches as they were. Times are
of the processor, as others may use the machine. "sinks by the kernel" is `sinks` as if it decoded through
`kernels.sink_attention`, to which sinks are coordinates of all keys, and so a copy of them for every token.
Prints a table. Options: `--help`.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
import tyro
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from scrubjay.memory import context
from scrubjay.memory.context.policies.base import LayerMemory
from scrubjay.memory.context.policies.sinks import SinksPolicy, StreamMemory

OWN, BY_KERNEL = "DynamicCache", "sinks by the kernel"
SIZES: dict[str, dict[str, Any]] = {
    "4 layers of 256": {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "SmolLM2-135M's": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}
"""Sizes of models, all with heads of 64."""


@dataclass(frozen=True)
class DecodingBench:
    """Sizes of the measurement."""

    budget: int = 1024
    """Keys read for a token."""
    policies: tuple[str, ...] = ("full", "window", "sinks", "snapkv", "recycled", "h2o", "chunks")
    """Names of context policies."""
    tokens: tuple[int, ...] = (160, 32)
    """Tokens of a round, for each of the sizes; h2o drops at every 16th, snapkv at every 32nd, and at every
    10th recycled reads all."""
    rounds: tuple[int, ...] = (7, 3)
    """Rounds, for each of the sizes."""
    turn: int = 16
    """Tokens of a contestant's turn."""
    seed: int = 0
    """Seed of weights and text."""


class KernelSinks(SinksPolicy):
    """`sinks`, but one token is read as many are."""

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return KernelStream(self.budget, self.num_sinks)


class KernelStream(StreamMemory):
    """`StreamMemory` without a way of its own for one token."""

    attend = LayerMemory.attend


def main(bench: DecodingBench) -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(bench.seed)
    print(
        f"{bench.budget:,} keys, heads of 64, float32, 1 thread; medians of rounds; "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {os.cpu_count()} CPUs\n"
    )
    print("| model | cache | processor ms a token | times DynamicCache | least to most |")
    print("|---|---|---|---|---|")
    for (size, sizes), tokens, rounds in zip(SIZES.items(), bench.tokens, bench.rounds, strict=True):
        times = measure(LlamaForCausalLM(LlamaConfig(**sizes)).eval(), bench, tokens, rounds)
        for name, own in times.items():
            ratios = [mine / theirs for mine, theirs in zip(own, times[OWN], strict=True)]
            print(
                f"| {size} | {name} | {1000 * statistics.median(own):.2f} | "
                f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |",
                flush=True,
            )


@torch.no_grad()
def measure(
    model: LlamaForCausalLM, bench: DecodingBench, tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Return each contestant's seconds of processor time a token, round by round."""
    ids = torch.randint(0, model.config.vocab_size, (1, 2 * bench.budget + tokens))
    caches: dict[str, Any] = {}
    for name, (make, seen) in contestants(model, bench, tokens).items():
        caches[name] = make()
        model.model(ids[:, :seen], cache=caches[name])
    times: dict[str, list[float]] = {name: [] for name in caches}
    for number in range(rounds):
        copies = {name: copy.deepcopy(cache) for name, cache in caches.items()}
        taken = dict.fromkeys(caches, 0.0)
        order = list(caches)
        order = order[number % len(order) :] + order[: number % len(order)]
        for _ in range(0, tokens, bench.turn):
            for name in order:
                taken[name] += write(model, copies[name], ids, bench.turn)
        for name, seconds in taken.items():
            times[name].append(seconds / (-(-tokens // bench.turn) * bench.turn))
    return times


def contestants(
    model: LlamaForCausalLM, bench: DecodingBench, tokens: int
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return how to build every cache, and how many tokens it has seen when the clock starts."""
    twice, short = 2 * bench.budget, bench.budget - tokens // 2
    found: dict[str, tuple[Callable[[], Any], int]] = {
        OWN: (lambda: DynamicCache(config=model.config), short)
    }
    for name in bench.policies:
        options = {} if name == "full" else {"budget": bench.budget}
        policy = context.make(name, **options)
        found[name] = (
            lambda policy=policy: context.PolicyCache(policy, model),
            short if name == "full" else twice,
        )
    if "sinks" in bench.policies:
        found[BY_KERNEL] = (lambda: context.PolicyCache(KernelSinks(bench.budget), model), twice)
    return found


def write(model: LlamaForCausalLM, cache: Any, ids: Int[Tensor, "1 time"], tokens: int) -> float:
    """Let the model read the next tokens one by one; return the seconds of processor time that took."""
    seen = cache.get_seq_length()
    mask = torch.ones(1, seen + tokens, dtype=torch.long)
    positions = torch.arange(seen + tokens)[None]
    began = time.process_time()
    for place in range(seen, seen + tokens):
        now = slice(place, place + 1)
        model(
            ids[:, now],
            attention_mask=mask[:, : place + 1],
            position_ids=positions[:, now],
            cache=cache,
        )
    return time.process_time() - began


if __name__ == "__main__":
    main(tyro.cli(DecodingBench, description=__doc__))
